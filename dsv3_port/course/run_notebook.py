"""One notebook executed in a kernel of its own, and what went wrong in it, in one sentence.

The kernel is always the Python that runs this code, whatever kernels are registered on the machine,
and starts in the notebook's folder, as JupyterLab starts it.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from papermill.execute import remove_error_markers

from ..engine.language import SESSION
from ..errors import PortError
from .filled import Answer, fill, states

TIMEOUT = 900  # seconds for one cell
_ADDED = {"injected-parameters", "papermill-error-cell-tag"}  # cells that papermill puts in


@dataclass(frozen=True)
class NotebookRun:
    """One executed notebook. `page` is relative to the output folder; `error` is empty where status
    is "ok"."""

    name: str
    status: str  # "ok" or "failed"
    seconds: float
    cells: int  # code cells that ran
    page: str
    error: str = ""
    slots: dict[str, str] = field(default_factory=dict)  # slot -> the judge's state


class ThisPython(AsyncKernelManager):
    """A kernel of the running interpreter; a kernelspec called python3 elsewhere on the machine
    cannot win."""

    exit_code: ClassVar[int | None] = (
        None  # of the last kernel that died; below zero: the signal that ended it
    )

    notebook: ClassVar[str] = (
        ""  # the file that is executed, as jupyter_server names it to a kernel
    )

    @property
    def kernel_spec(self) -> KernelSpec:
        spec = get_kernel_dict() | {"env": {SESSION: ThisPython.notebook}}
        return KernelSpec(**spec | {"argv": [*spec["argv"], "--log-level=ERROR"]})

    async def is_alive(self) -> bool:  # type: ignore[override]
        alive = await super().is_alive()
        if not alive and self.provisioner is not None:
            ThisPython.exit_code = await self.provisioner.poll()
        return alive


def run_notebook(
    file: Path,
    out: Path,
    parameters: Mapping[str, Any],
    timeout: float = TIMEOUT,
    label: str = "",
    answer: Answer | None = None,
) -> tuple[NotebookRun, NotebookNode | None]:
    """Execute one notebook into out/executed; its failure is told, not raised. `label` heads a bar
    over its cells. answer: what goes into its slots, in a copy."""
    target = out / "executed" / file.name
    target.unlink(missing_ok=True)
    try:
        original = nbformat.read(file, as_version=4)
        nbformat.validate(original)
        source = file if answer is None else _filled(original, out / "filled" / file.name, answer)
    except PortError:
        raise
    except Exception as error:  # nbformat raises json's kinds and its own
        why = f"not a readable notebook: {' '.join(str(error).split())[:120]}"
        return NotebookRun(file.stem, "failed", 0.0, 0, "", why), None
    bar = (
        {"desc": label, "leave": False, "file": sys.stdout, "disable": None, "position": 1}
        if label
        else False
    )
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    problem: Exception | None = None
    start = time.perf_counter()
    ThisPython.notebook = str(file)
    try:
        papermill.execute_notebook(
            str(source),
            str(target),
            dict(parameters),
            kernel_name="python3",
            language="python",
            cwd=str(file.parent),
            progress_bar=bar,
            execution_timeout=timeout,
            kernel_manager_class=ThisPython,
        )
    except Exception as error:  # whatever a notebook does, the next one runs
        problem = error
    seconds = time.perf_counter() - start
    nb = nbformat.read(target, as_version=4) if target.exists() else original
    failure = _failure(nb, original, problem, timeout)
    if not failure and problem is not None:  # only cells that are meant to fail did
        nb = remove_error_markers(nb)
        nbformat.write(nb, target)
    status = "failed" if failure else "ok"
    return NotebookRun(
        file.stem,
        status,
        round(seconds, 3),
        _ran(nb),
        f"pages/{file.stem}.html",
        failure,
        states(nb),
    ), nb


def _filled(nb: NotebookNode, target: Path, answer: Answer) -> Path:
    fill(nb, answer)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, target)
    return target


def _tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _code(nb: NotebookNode) -> list[NotebookNode]:
    return [
        c for c in nb.cells if c.cell_type == "code" and c.source.strip() and not _tags(c) & _ADDED
    ]


def _ran(nb: NotebookNode) -> int:
    return sum(c.execution_count is not None for c in _code(nb))


def _place(cell: NotebookNode, original: NotebookNode) -> str:
    """Which cell it is, counted from 1 in the notebook as the learner sees it, with its first line."""
    ids = [c.get("id") for c in original.cells]
    number = (
        f"cell {ids.index(cell.get('id')) + 1} of {len(ids)}"
        if cell.get("id") in ids
        else "the parameters cell"
    )
    first = next((line.strip() for line in cell.source.splitlines() if line.strip()), "")
    return f"{number} (`{first[:80]}`)"


def _failure(
    nb: NotebookNode, original: NotebookNode, problem: Exception | None, timeout: float
) -> str:
    """What went wrong and where, in one sentence; empty if all code cells ran as they should."""
    started = [c for c in nb.cells if c.metadata.get("papermill", {}).get("start_time")]
    where = _place(started[-1], original) if started else "before the first cell"
    if isinstance(problem, CellTimeoutError):
        return f"{where}: still running after {timeout:g} s, stopped"
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error" and "raises-exception" not in _tags(cell):
                value = next((line for line in output.evalue.splitlines() if line.strip()), "")
                return f"{_place(cell, original)}: {output.ename}: {value}".rstrip(": ")
    if isinstance(problem, DeadKernelError):
        return f"{where}: the kernel died{_why_dead(ThisPython.exit_code)}"
    if problem is not None and not isinstance(problem, PapermillExecutionError):
        return f"{where}: {type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
    ran, code = _ran(nb), len(_code(nb))
    if ran == 0 or ran < code:
        return f"only {ran} of {code} code cells ran"
    return ""


def _why_dead(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return "" if exit_code is None else f" with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    reason = {
        "SIGKILL": ", most often because the machine ran out of memory",
        "SIGSEGV": ", a crash in native code",
    }.get(name, "")
    return f" by {name}{reason}"

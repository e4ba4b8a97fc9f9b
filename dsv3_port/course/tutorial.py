"""Run the course: every notebook in order, each in a kernel of its own, and the pages that show
what came out.

Kernels start in the notebooks' folder, as JupyterLab starts them, and always with the Python that
runs this code, whatever kernels are registered on the machine. Output layout: executed/NAME.ipynb,
pages/NAME.html, slides/NAME.html, guide/NAME.html (workshop), index.html, results/ (what the
notebooks measured), runs.json (one entry a notebook, kept over runs of single notebooks).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import nbformat
import papermill
import yaml
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from papermill.execute import remove_error_markers
from tqdm import tqdm

from ..bench.measure import device_info
from ..engine.device import pick_device
from ..errors import PortError
from ..files import write_atomic
from .notebook import read_notebook
from .pages import write_guide, write_index, write_pages
from .slides import write_slides

KNOWN = ("profile", "device", "seed")
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


class ThisPython(AsyncKernelManager):
    """A kernel of the running interpreter; a kernelspec called python3 elsewhere on the machine
    cannot win."""

    exit_code: ClassVar[int | None] = (
        None  # of the last kernel that died; below zero: the signal that ended it
    )

    @property
    def kernel_spec(self) -> KernelSpec:
        spec = get_kernel_dict()
        return KernelSpec(**spec | {"argv": [*spec["argv"], "--log-level=ERROR"]})

    async def is_alive(self) -> bool:  # type: ignore[override]
        alive = await super().is_alive()
        if not alive and self.provisioner is not None:
            ThisPython.exit_code = await self.provisioner.poll()
        return alive


def find_notebooks() -> Path:
    """The notebooks' folder of this checkout, or of the folder that `dsv3-port start` made."""
    from ..paths import repo_root

    folder = repo_root() / "notebooks"
    if not any(folder.glob("[0-9][0-9]_*.ipynb")):
        raise PortError(
            f"{folder}: no notebooks here; the tutorial runs in a checkout or a folder of `dsv3-port start`"
        )
    return folder


def choose(notebooks_dir: Path, only: Sequence[str] | None = None) -> list[Path]:
    """The numbered notebooks in order; `only` names some of them by number ("03", "3") or name."""
    found = sorted(notebooks_dir.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise PortError(
            f"{notebooks_dir}: no notebooks here; the tutorial runs in a checkout or a folder of `dsv3-port start`"
        )
    if not only:
        return found
    chosen = []
    for word in only:
        key = word.removesuffix(".ipynb")
        fits = [f for f in found if f.stem == key or f.stem[:2] == key.zfill(2)]
        if not fits:
            raise PortError(f"no notebook {word!r}; there are {', '.join(f.stem for f in found)}")
        chosen += fits
    return sorted(set(chosen))


def read_profile(name: str, folder: Path) -> dict[str, Any]:
    """Papermill parameters of folder/NAME.yaml, or of a YAML file given by its path."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in folder.glob("*.yaml"))) or "none"
        raise PortError(
            f"unknown profile {name!r}: {file} does not exist; in {folder} there are {known}"
        )
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PortError(f"{file}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or set(values) - set(KNOWN):
        raise PortError(f"{file}: must hold {', '.join(KNOWN)} and nothing else")
    return values


def run_tutorial(
    notebooks_dir: str | Path,
    out_dir: str | Path,
    *,
    profile: str = "tiny",
    device: str = "auto",
    only: Sequence[str] | None = None,
    seed: int | None = None,
    timeout: float = TIMEOUT,
    progress: bool = True,
    on_done: Callable[[NotebookRun], None] | None = None,
) -> list[NotebookRun]:
    """Execute notebooks and build out_dir/index.html; a failing notebook is recorded and the rest
    still run.

    device "auto" and seed None leave what the profile says. A run of the whole course starts with
    empty results (the former results.json is kept as results-before.json); `only` adds to what is
    there.
    """
    notebooks, out = Path(notebooks_dir).resolve(), Path(out_dir).resolve()
    todo, course = choose(notebooks, only), choose(notebooks)
    parameters: dict[str, Any] = {"profile": profile, "device": "auto", "seed": 0}
    parameters |= read_profile(profile, notebooks.parent / "ci" / "profiles")
    parameters |= {"device": device} if device != "auto" else {}
    parameters |= {"seed": seed} if seed is not None else {}
    where = str(
        pick_device(parameters["device"])
    )  # a device that is not there is refused before anything runs
    parameters |= {"results_dir": str(out / "results")}
    names = [f.stem for f in course]
    try:
        runs = _prepare(out, fresh=not only)
        write_guide(notebooks / "workshop", out / "guide")
        bar = tqdm(
            todo,
            desc="notebooks",
            unit="notebook",
            file=sys.stdout,
            disable=None if progress else True,
        )
        for file in bar:
            at = names.index(file.stem)
            label = f"{file.stem} ({at + 1} of {len(names)})"
            run, nb = run_notebook(file, out, parameters, timeout, label if progress else "")
            around = {"previous": names[at - 1] if at else "", "following": (names + [""])[at + 1]}
            write_pages(nb, file, out / "pages", **around)
            write_slides(nb, file.stem, out / "slides", notebooks)
            runs[run.name] = run
            _write_runs(out, runs)
            info = device_info(where)
            line = f"{info['device_name']} (tier {info['tier']}), torch {info['versions']['torch']}, profile {profile}"
            write_index(out, [read_notebook(f) for f in course], list(runs.values()), line)
            if on_done is not None:
                on_done(run)
    except OSError as error:
        raise PortError(
            f"{error.filename or out}: cannot be written: {error.strerror or error}"
        ) from error
    return [runs[f.stem] for f in todo]


def _prepare(out: Path, fresh: bool) -> dict[str, NotebookRun]:
    """Make the folders; returns the runs that are kept."""
    for folder in (out / "executed", out / "pages", out / "results"):
        folder.mkdir(parents=True, exist_ok=True)
    results = out / "results"
    if fresh:
        if (results / "results.json").exists():
            os.replace(results / "results.json", results / "results-before.json")
        for picture in [*results.glob("ladder*.png"), *results.glob("ladder*.svg")]:
            picture.unlink()
        return {}
    try:
        rows = json.loads((out / "runs.json").read_text(encoding="utf-8"))
        return {row["name"]: NotebookRun(**row) for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        return {}  # nothing ran here yet, or another version wrote it


def _write_runs(out: Path, runs: Mapping[str, NotebookRun]) -> None:
    rows = [asdict(run) for run in runs.values()]
    write_atomic(out / "runs.json", json.dumps(rows, indent=1, ensure_ascii=False))


def run_notebook(
    file: Path, out: Path, parameters: Mapping[str, Any], timeout: float = TIMEOUT, label: str = ""
) -> tuple[NotebookRun, NotebookNode]:
    """Execute one notebook into out/executed; its failure is told, not raised. `label` heads a bar
    over its cells."""
    target = out / "executed" / file.name
    target.unlink(missing_ok=True)
    original = nbformat.read(file, as_version=4)
    bar = (
        {"desc": label, "leave": False, "file": sys.stdout, "disable": None, "position": 1}
        if label
        else False
    )
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    problem: Exception | None = None
    start = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(file),
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
        file.stem, status, round(seconds, 3), _ran(nb), f"pages/{file.stem}.html", failure
    ), nb


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

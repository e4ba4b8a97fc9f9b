"""Run the course: every notebook in order, each in a kernel of its own, and the pages that show
what came out.

Output layout: executed/NAME.ipynb, pages/NAME.html, slides/NAME.html, guide/NAME.html (workshop),
docs/, index.html, results/ (what the notebooks measured), runs.json (one entry a notebook, kept over runs
of single notebooks).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..bench.machine import device_info
from ..engine.device import pick_device
from ..errors import PortError
from ..files import write_atomic
from ..steps import SECOND
from .docs import write_docs
from .filled import answers
from .front import DEVICE, write_index
from .notebook import Notebook, course_files, read_notebook
from .pages import write_guide, write_pages
from .run_notebook import TIMEOUT, NotebookRun, run_notebook
from .slides import write_slides
from .translations import of_language, versions

KNOWN = ("profile", "device", "seed")


def find_notebooks() -> Path:
    """The notebooks' folder of this checkout, or of the folder that `dsv3-port start` made."""
    from ..paths import repo_root

    folder = repo_root() / "notebooks"
    if not course_files(folder):
        raise PortError(
            f"{folder}: no notebooks here; the tutorial runs in a checkout or a folder of `dsv3-port start`"
        )
    return folder


def part_of(name: str) -> int:
    """1 or 2: a notebook of a step of Part II is Part II's, every other one Part I's."""
    return 2 if name in {s.notebook for s in SECOND} else 1


def choose(
    notebooks_dir: Path, only: Sequence[str] | None = None, part: int | None = None
) -> list[Path]:
    """The notebooks in order; `only` names some of them by number ("03", "3", "06a", "a2") or name,
    `part` keeps those of Part I or II."""
    found = course_files(notebooks_dir)
    if not found:
        raise PortError(
            f"{notebooks_dir}: no notebooks here; the tutorial runs in a checkout or a folder of `dsv3-port start`"
        )
    of_part = [f for f in found if part in (None, part_of(f.stem))]
    if not only:
        return of_part
    chosen = []
    for word in only:
        key = word.removesuffix(".ipynb")
        fits = [f for f in found if key.zfill(2) in (f.stem, f.stem.partition("_")[0])]
        fits = fits or [f for f in found if f.stem[:2] == key.zfill(2)]  # "6": 06a and 06b
        if not fits:
            raise PortError(f"no notebook {word!r}; there are {', '.join(f.stem for f in found)}")
        chosen += fits
    kept = [f for f in of_part if f in chosen]
    if not kept:
        raise PortError(f"no notebook of part {part} is among {', '.join(f.stem for f in chosen)}")
    return kept


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
    part: int | None = None,
    seed: int | None = None,
    timeout: float = TIMEOUT,
    progress: bool = True,
    yours: str = "",
    lang: str = "en",
    on_done: Callable[[NotebookRun], None] | None = None,
) -> list[NotebookRun]:
    """Execute notebooks and build out_dir/index.html; a failing notebook is recorded and the rest
    still run.

    device "auto" and seed None leave what the profile says. A run of the whole course, or of Part I,
    starts with empty results (the former results.json is kept as results-before.json); `only` and
    Part II add to what is there. yours: what is written into the slots of copies (filled.answers).
    lang "zh": executes the Chinese notebooks, where there are any; the English pages then share their
    outputs.
    """
    answer = answers(yours) if yours else None
    notebooks, out = Path(notebooks_dir).resolve(), Path(out_dir).resolve()
    todo, course = choose(notebooks, only, part), choose(notebooks)
    parameters = _parameters(profile, notebooks.parent / "ci" / "profiles", device, seed)
    # a device that is not there is refused before anything runs
    where = str(pick_device(parameters["device"]))
    parameters |= {"results_dir": str(out / "results")}
    names = [f.stem for f in choose(notebooks, part=part)]  # links lead to pages of this run
    stack = ExitStack()
    try:
        stack.enter_context(_alone(out))
        runs = _prepare(out, todo, fresh=not only and part != 2)
        _write_runs(out, runs)
        _write_texts(notebooks, out)
        about, twins = [_about(f) for f in course], _twins(course)
        quiet = None if progress else True
        for file in tqdm(todo, "notebooks", unit="notebook", file=sys.stdout, disable=quiet):
            at = names.index(file.stem)
            label = f"{file.stem} ({at + 1} of {len(names)})" if progress else ""
            ran = of_language(file, lang)
            run, nb = run_notebook(ran, out, parameters, timeout, label, answer)
            if nb is not None:
                _write_notebook(nb, ran, out, names, at)
                write_slides(nb, file.stem, out / "slides", notebooks)
            runs[run.name] = run
            _write_runs(out, runs)
            write_index(out, about, list(runs.values()), _device_line(where, profile), twins)
            if on_done is not None:
                on_done(run)
    except OSError as error:
        raise PortError(
            f"{error.filename or out}: cannot be written: {error.strerror or error}"
        ) from error
    finally:
        stack.close()
    return [runs[f.stem] for f in todo]


def _write_notebook(nb: Any, ran: Path, out: Path, names: Sequence[str], at: int) -> None:
    """The pages of a notebook that was executed, the at-th of `names`."""
    around = {
        "previous": names[at - 1] if at else "",
        "following": names[at + 1] if at + 1 < len(names) else "",
    }
    write_pages(nb, ran, out / "pages", **around)


def _device_line(device: str, profile: str) -> str:
    """In English; the front page looks it up in its language (front.DEVICE)."""
    info = device_info(device)
    torch = info["versions"]["torch"]
    return DEVICE.format(info["device_name"], info["tier"], torch, profile)


def _parameters(profile: str, folder: Path, device: str, seed: int | None) -> dict[str, Any]:
    """What the notebooks are given: the profile's values, unless device or seed say otherwise."""
    values: dict[str, Any] = {"profile": profile, "device": "auto", "seed": 0}
    values |= read_profile(profile, folder)
    values |= {"device": device} if device != "auto" else {}
    return values | ({"seed": seed} if seed is not None else {})


def _write_texts(notebooks: Path, out: Path) -> None:
    """The workshop's pages and docs/, which are there before any notebook ran."""
    write_guide(notebooks / "workshop", out / "guide")
    try:
        write_docs(notebooks.parent, out / "docs")
    except PortError as problem:  # the course runs without
        print(f"dsv3-port: {problem}", file=sys.stderr)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One tutorial an output folder."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise PortError(
            f"{out}: another tutorial is running into this folder; wait for it, or give --out another one"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _twins(course: Sequence[Path]) -> dict[str, dict[str, Notebook]]:
    """Language -> name -> what the notebook says of itself in it."""
    found: dict[str, dict[str, Notebook]] = {}
    for file in course:
        for language, path in versions(file).items():
            if language:
                found.setdefault(language, {})[file.stem] = _about(path)
    return found


def _about(file: Path) -> Notebook:
    """What a notebook says of itself; its name where it cannot be read."""
    try:
        return read_notebook(file)
    except Exception:  # run_notebook has told why
        return Notebook(file.stem, file.stem)


def _prepare(out: Path, todo: Sequence[Path], fresh: bool) -> dict[str, NotebookRun]:
    """Make the folders; returns the runs that are kept: what is killed while it runs leaves no old
    "ok" and no index."""
    (out / "index.html").unlink(missing_ok=True)
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
        anew = {file.stem for file in todo}
        return {row["name"]: NotebookRun(**row) for row in rows if row["name"] not in anew}
    except (OSError, ValueError, TypeError, KeyError):
        return {}  # nothing ran here yet, or another version wrote it


def _write_runs(out: Path, runs: Mapping[str, NotebookRun]) -> None:
    rows = [asdict(run) for run in runs.values()]
    write_atomic(out / "runs.json", json.dumps(rows, indent=1, ensure_ascii=False))

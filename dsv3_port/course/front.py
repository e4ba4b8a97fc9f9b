"""The front page of the course: where to start, the ladder, every notebook and what it says of itself."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from ..bench.paired import busy_text
from ..bench.records import load
from ..bench.results_table import stamp
from ..errors import PortError
from ..paths import recorded_file
from ..plots.style import ON_DARK
from ..steps import PRODUCTION, STEPS
from ..version import __version__
from .docs import docs_links
from .notebook import Notebook
from .pages import TEMPLATES

RECORDED = "recorded-ladder.png"  # beside the run's own pictures


@dataclass(frozen=True)
class Picture:
    link: str
    alt: str
    caption: str = ""


def ladder_pictures(results: Path) -> list[Picture]:
    """The ladders that notebook 10 drew of this run; the recorded one, with its device and date, where
    there are none or the machine was busy and they show no verdict."""
    found = {f.name for kind in ("png", "svg") for f in results.glob(f"ladder*.{kind}")}
    busy = _busy(results / "results.json") if found else ""
    if not found or busy:
        return _recorded(results, busy)
    return [
        Picture(
            f"results/{name}",
            "The ladder"
            + (", a batch of sequences" if "batch" in name else "")
            + ": time after each step of the port, on this machine",
        )
        for name in sorted(
            found, key=lambda name: (len(name), name)
        )  # one sequence before the batch
    ]


def _busy(file: Path) -> str:
    """Why the newest ladder of a results file gives no verdict; "" if it does, or none is there."""
    try:
        ladders = load(file).select(lambda r: r.label.startswith("ladder "))
    except PortError:
        return ""
    if not ladders.records:
        return ""
    newest = {r.phase: r.run for r in ladders}
    return busy_text([r for r in ladders if newest[r.phase] == r.run])


def _recorded(results: Path, busy: str) -> list[Picture]:
    try:
        picture, records = recorded_file("ladder-cpu.png"), load(recorded_file("ladder-cpu.json"))
    except PortError:  # an older folder of `dsv3-port start`
        return []
    results.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(picture, results / RECORDED)
    why = f"This run's machine was busy ({busy.removeprefix('busy: ')}). " if busy else ""
    return [
        Picture(
            f"results/{RECORDED}",
            "A recorded ladder: time after each step of the port, not of this run",
            f"{why}Recorded earlier, not in this run: {stamp(list(records))}.",
        )
    ]


def write_index(
    out_dir: Path, notebooks: Sequence[Notebook], runs: Sequence[Any], where: str
) -> Path:
    """out_dir/index.html: every notebook with what it says about itself, and with its NotebookRun,
    if it has one."""
    by_name = {run.name: run for run in runs}
    cards: list[dict[str, Any]] = [
        {
            "about": n,
            "run": by_name.get(n.name),
            "steps": [s for s in (*STEPS, *PRODUCTION) if s.notebook == n.name],
            "slides": f"slides/{n.name}.html"
            if (out_dir / "slides" / f"{n.name}.html").is_file()
            else "",
        }
        for n in notebooks
    ]
    shown = [by_name[n.name] for n in notebooks if n.name in by_name]
    docs = docs_links(out_dir)
    guide = [(f"guide/{f.stem}.html", f.stem) for f in sorted((out_dir / "guide").glob("*.html"))]
    page = (
        Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
        .get_template("index.html")
        .render(
            cards=cards,
            done=len(shown),
            failed=sum(run.status != "ok" for run in shown),
            where=where,
            guide=guide,
            docs=docs,
            reading=sum(n.reading_minutes for n in notebooks),
            exercises=sum(n.exercise_minutes for n in notebooks),
            seconds=sum(run.seconds for run in shown),
            pictures=ladder_pictures(out_dir / "results"),
            first=next((card for card in cards if card["about"].name.startswith("00")), None),
            on_dark=ON_DARK,
            version=__version__,
            date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        )
    )
    file = out_dir / "index.html"
    file.write_text(page, encoding="utf-8")
    return file

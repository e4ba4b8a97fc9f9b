"""The front page of the course: where to start, the ladder, every notebook and what it says of itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from ..bench.paired import busy_text
from ..bench.records import Results, load
from ..bench.results_table import stamp
from ..errors import PortError
from ..paths import recorded_file
from ..plots.bars import ladder
from ..plots.style import ON_DARK, PHONE
from ..steps import PRODUCTION, STEPS
from ..version import __version__
from .docs import docs_links
from .notebook import Notebook
from .pages import TEMPLATES

RECORDED = "recorded-ladder.png"  # beside the run's own pictures
FOR_PHONES = "phone-{}"  # the same, drawn as wide as a phone


@dataclass(frozen=True)
class Picture:
    link: str
    alt: str
    caption: str = ""
    phone: str = ""


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
            phone=_for_phones(results / name, lambda: _newest(results / "results.json")),
        )
        for name in sorted(
            found, key=lambda name: (len(name), name)
        )  # one sequence before the batch
    ]


def _busy(file: Path) -> str:
    """Why the newest ladder of a results file gives no verdict; "" if it does, or none is there."""
    newest = _newest(file)
    return busy_text(newest.records) if newest.records else ""


def _newest(file: Path) -> Results:
    """The newest ladder of a results file, or nothing."""
    try:
        ladders = load(file).select(lambda r: r.label.startswith("ladder "))
    except PortError:
        return Results([])
    newest = {r.phase: r.run for r in ladders}
    return Results([r for r in ladders if newest[r.phase] == r.run])


def _for_phones(picture: Path, records: Callable[[], Results]) -> str:
    """The link to a narrow picture of the same ladder, drawn where it is not there or older; "" where
    there are no records to draw."""
    file = picture.with_name(FOR_PHONES.format(picture.name))
    if not file.is_file() or file.stat().st_mtime < picture.stat().st_mtime:
        found = records()
        narrow = ladder(found).narrow if found.records and picture.suffix == ".png" else None
        if narrow is None:
            return ""
        file.write_bytes(narrow().png())
    return f"results/{file.name}"


def _recorded(results: Path, busy: str) -> list[Picture]:
    try:
        picture, records = recorded_file("ladder-cpu.png"), load(recorded_file("ladder-cpu.json"))
    except PortError:  # an older folder of `dsv3-port start`
        return []
    results.mkdir(parents=True, exist_ok=True)
    shutil.copy2(picture, results / RECORDED)  # with its date: what was drawn of it stays
    why = f"This run's machine was busy ({busy.removeprefix('busy: ')}). " if busy else ""
    return [
        Picture(
            f"results/{RECORDED}",
            "A recorded ladder: time after each step of the port, not of this run",
            f"{why}Recorded earlier, not in this run: {stamp(list(records))}.",
            _for_phones(results / RECORDED, lambda: records),
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
            phone=PHONE,
            version=__version__,
            date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        )
    )
    file = out_dir / "index.html"
    file.write_text(page, encoding="utf-8")
    return file

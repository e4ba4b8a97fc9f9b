"""The front page of the course: where to start, the ladder, every notebook and what it says of itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from ..bench.paired import busy_reason
from ..bench.records import Results, load
from ..bench.results_table import stamp
from ..errors import PortError
from ..messages import N_, sentences, told, tr, using
from ..paths import recorded_file
from ..plots.bars import ladder
from ..plots.fonts import drawn_language
from ..plots.style import ON_DARK, PHONE
from ..steps import SECOND, STEPS
from ..version import __version__
from .docs import docs_links
from .links import page_name
from .notebook import Notebook
from .pages import TEMPLATES, switch
from .translations import code

GUIDE = (N_("glossary"), N_("instructor"), N_("troubleshooting"))  # names of the workshop's pages
DEVICE = N_("{0} (tier {1}), torch {2}, profile {3}")
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
            tr(
                "The ladder, a batch of sequences: time after each step of the port, on this machine"
            )
            if "batch" in name
            else tr("The ladder: time after each step of the port, on this machine"),
            phone=_for_phones(results / name, lambda: _newest(results / "results.json")),
        )
        for name in sorted(
            found, key=lambda name: (len(name), name)
        )  # one sequence before the batch
    ]


def _busy(file: Path) -> str:
    """Why the newest ladder of a results file gives no verdict; "" if it does, or none is there."""
    newest = _newest(file)
    return busy_reason(newest.records) if newest.records else ""


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
    here = results / RECORDED
    if drawn_language() == "en":
        shutil.copy2(picture, here)  # with its date: what was drawn of it stays
    else:
        here = here.with_suffix(f".{drawn_language()}{here.suffix}")
        if not here.is_file() or here.stat().st_mtime < picture.stat().st_mtime:
            here.write_bytes(ladder(records).png())
    why = tr("This run's machine was busy ({why}).").format(why=busy)
    earlier = tr("Recorded earlier, not in this run: {stamp}.").format(stamp=stamp(list(records)))
    return [
        Picture(
            f"results/{here.name}",
            tr("A recorded ladder: time after each step of the port, not of this run"),
            sentences(why if busy else "", earlier),
            _for_phones(here, lambda: records),
        )
    ]


def write_index(
    out_dir: Path,
    notebooks: Sequence[Notebook],
    runs: Sequence[Any],
    where: str,
    twins: Mapping[str, Mapping[str, Notebook]] | None = None,
) -> Path:
    """out_dir/index.html: every notebook with what it says about itself, and with its NotebookRun,
    if it has one; and index.zh-CN.html where `twins` has what notebooks say in Chinese (language ->
    name -> notebook)."""
    here: dict[str, Mapping[str, Notebook]] = {"": {}} | dict(twins or {})
    for language, said in here.items():
        others = switch({k: page_name("index", k) for k in here if k != language})
        with using(code(language)):
            page = _index(out_dir, notebooks, runs, where, language, said, others)
        file = out_dir / page_name("index", language)
        file.write_text(page, encoding="utf-8")
    return out_dir / "index.html"


def _index(
    out_dir: Path,
    notebooks: Sequence[Notebook],
    runs: Sequence[Any],
    where: str,
    language: str,
    said: Mapping[str, Notebook],
    others: Sequence[tuple[str, str, str]],
) -> str:
    by_name = {run.name: run for run in runs}
    cards: list[dict[str, Any]] = [
        {
            "about": said.get(n.name, n),
            "run": by_name.get(n.name),
            "page": localised(out_dir, f"pages/{n.name}.html", language),
            "file": f"notebooks/{f'{language}/' if n.name in said else ''}{n.name}.ipynb",
            "steps": [s for s in (*STEPS, *SECOND) if s.notebook == n.name],
            "slides": localised(out_dir, f"slides/{n.name}.html", language)
            if (out_dir / "slides" / f"{n.name}.html").is_file()
            else "",
            "difficulty": n.card.get("Difficulty", ""),
            "reading": n.reading_minutes,
            "exercises": n.exercise_minutes,
        }
        for n in notebooks
    ]
    shown = [by_name[n.name] for n in notebooks if n.name in by_name]
    env = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    env.globals |= {"tr": tr, "told": told}
    return env.get_template("index.html").render(
        lang=code(language),
        others=others,
        cards=cards,
        done=len(shown),
        failed=sum(run.status != "ok" for run in shown),
        where=told(where),
        guide=guide_links(out_dir, language),
        docs=docs_links(out_dir, language),
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


def localised(out_dir: Path, page: str, language: str) -> str:
    """A page, or its version in a language where that is there."""
    path = Path(page)
    other = path.with_name(page_name(path.stem, language)).as_posix()
    return other if (out_dir / other).is_file() else page


def guide_links(out_dir: Path, language: str) -> list[tuple[str, str]]:
    """(link, name) of the workshop's pages."""
    names = [f.stem for f in sorted((out_dir / "guide").glob("*.html")) if "." not in f.stem]
    return [(localised(out_dir, f"guide/{name}.html", language), told(name)) for name in names]

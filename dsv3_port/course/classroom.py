"""A class's progress on one page, from the learners' own progress.json files, collected by hand. No
server, no script, no net; nothing of the page leaves the folder that it is written into."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

from jinja2 import Environment, FileSystemLoader

from ..errors import PortError
from ..files import write_atomic
from ..messages import language, told, tr
from ..version import __version__
from .kept import Tried, read_progress
from .slots import Slot
from .verdicts import STATES, State
from .yours import slots

TEMPLATES = Path(__file__).with_name("templates")
LARGEST = 100_000  # bytes; a learner's whole file has about 2,000
OURS = {"results.json", "results-before.json", "runs.json"}  # what lies beside progress.json
STUCK = 3  # tries without a right one, from which a teacher wants to know


@dataclass(frozen=True)
class Learner:
    name: str
    slots: dict[str, Tried]

    def built(self, known: Sequence[str]) -> int:
        return sum(row.built for slot_id, row in self.slots.items() if slot_id in known)


@dataclass(frozen=True)
class Classroom:
    """`problems`: what was not read, or not understood, one line each."""

    learners: tuple[Learner, ...]
    problems: tuple[str, ...]


def read_class(folder: str | Path) -> Classroom:
    """Every *.json below a folder: one learner a file, named after it or after the folder that holds
    it. A file that is no progress.json becomes a problem. PortError where nothing is to be read."""
    root = Path(folder)
    if not root.is_dir():
        raise PortError(f"{root}: no such folder; collect the learners' progress.json files in one")
    files = sorted(f for f in root.rglob("*.json") if f.is_file() and _counts(f, root))
    learners: list[Learner] = []
    problems: list[str] = []
    for file in files:
        shown = file.relative_to(root).as_posix()
        try:
            if file.stat().st_size > LARGEST:
                raise PortError(f"{file}: too large for a progress file")
            rows = read_progress(file)
        except (PortError, OSError) as error:
            problems.append(str(error).replace(str(file), shown))
            continue
        name = _name(file.relative_to(root), root)
        if name in {known.name for known in learners}:
            name = f"{name} ({shown})"
        learners.append(Learner(name, rows))
        if strange := sorted(set(rows) - set(slots())):
            problems.append(f"{shown}: slots that this version does not know: {', '.join(strange)}")
    if not learners and not problems:
        raise PortError(
            f"{root}: holds no progress.json; a learner's lies in results/ beside their notebooks"
        )
    return Classroom(tuple(sorted(learners, key=lambda x: x.name.casefold())), tuple(problems))


def _counts(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return not hidden and file.name not in OURS


def _name(file: Path, root: Path) -> str:
    """mira/results/progress.json and mira-progress.json are Mira's."""
    stem = re.sub(r"[-_ .]*progress[-_ .]*", "", file.stem, flags=re.IGNORECASE)
    parts = [p for p in file.parts[:-1] if p not in ("results", "out")]
    return "/".join([*parts, *([stem] if stem else [])]) or root.resolve().name


@dataclass(frozen=True)
class Cell:
    """One learner at one slot, as the page says it."""

    state: State | None  # None: not begun
    words: str
    kind: str  # built, tried, none
    title: str = ""


def cell_of(row: Tried | None) -> Cell:
    if row is None or not (row.tries or row.hints or row.built):
        return Cell(None, "", "none")
    state = STATES[row.state]
    asked = "solution" if row.hints > 3 else _counted(row.hints, "hint")
    words = ", ".join(w for w in (_counted(row.tries, "try", "tries"), asked) if w)
    if row.built and not state.runs:
        state, words = STATES["right"], f"{words}; now {state.word}"
    return Cell(state, words, "built" if row.built else "tried", row.last)


def _counted(number: int, one: str, more: str = "") -> str:
    return f"{number} {one if number == 1 else more or one + 's'}" if number else ""


def stuck(room: Classroom, known: dict[str, Slot]) -> list[str]:
    """Who tried often and is not through, the most tries first: where a question would help."""
    rows = [
        (row.tries, f"{learner.name} at {slot_id}: {cell_of(row).words}")
        for learner in room.learners
        for slot_id, row in learner.slots.items()
        if slot_id in known and not row.built and row.tries >= STUCK
    ]
    return [text for _, text in sorted(rows, key=lambda r: -r[0])]


def _foot(room: Classroom, slot_id: str) -> str:
    rows = [r for learner in room.learners if (r := learner.slots.get(slot_id)) and r.tries]
    built = sum(row.built for row in rows)
    said = tr("{built} of {all}").format(built=built, all=len(room.learners))
    if not rows:
        return said
    return said + tr(", median {n:g} tries").format(n=median(row.tries for row in rows))


def write_class(folder: str | Path, target: str | Path) -> Classroom:
    """Write the page of a class. PortError as read_class, and where it cannot be written."""
    room, known = read_class(folder), slots()
    names = list(known)
    rows = [
        (
            learner.name,
            tr("{built} of {all}").format(built=learner.built(names), all=len(names)),
            [cell_of(learner.slots.get(name)) for name in names],
        )
        for learner in room.learners
    ]
    env = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    env.globals |= {"tr": tr, "told": told, "lang": language()}
    page = env.get_template("class.html").render(
        slots=list(known.values()),
        rows=rows,
        foot=[_foot(room, name) for name in names],
        stuck=stuck(room, known),
        problems=room.problems,
        version=__version__,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )
    try:
        write_atomic(Path(target), page)
    except OSError as error:
        raise PortError(f"{target}: cannot be written: {error.strerror or error}") from error
    return room

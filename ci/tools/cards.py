"""A notebook's card against its own text and against runs: minutes of reading by word count,
seconds as measured.

`python ci/tools/cards.py out/runs.json` is for a runner that others share: the run is first brought to
the pace of the machine that the cards were measured on, and what is then far off is a warning.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROWS = ("Reading", "Exercises", "Run", "Difficulty", "Prerequisites", "Tiers")
WORDS, LINES, LOOK = (
    150,
    12,
    0.25,
)  # words and lines of code a minute, minutes for what a cell shows
UNREAD = {"exercise", "solution"}  # has minutes of its own
SKIMMED = {"imports", "parameters", "map"}  # code that is the same everywhere
Cell = dict[str, Any]


def _source(cell: Cell) -> str:
    text = cell.get("source", "")
    return "".join(text) if isinstance(text, list) else text


def _tags(cell: Cell) -> set[str]:
    return set(cell.get("metadata", {}).get("tags", []))


def reading_minutes(cells: Sequence[Cell]) -> float:
    """Words at 150 a minute (technical prose, with thinking), code at 12 lines, a quarter of a
    minute an output."""
    minutes = 0.0
    for cell in cells:
        if _tags(cell) & UNREAD:
            continue
        if cell.get("cell_type") == "markdown":
            minutes += len(re.findall(r"[A-Za-z0-9_']+", _source(cell))) / WORDS
        else:
            lines = [line for line in _source(cell).splitlines() if line.strip()]
            minutes += LOOK + (0 if _tags(cell) & SKIMMED else len(lines) / LINES)
    return minutes


def rows_of(cells: Sequence[Cell]) -> dict[str, str]:
    """The card's rows by their English names; empty without a card."""
    text = next((_source(c) for c in cells if "card" in _tags(c)), "")
    return dict(re.findall(r"^\|\s*([A-Za-z]+)[^|]*\|\s*(.*?)\s*\|\s*$", text, re.MULTILINE))


def number(text: str) -> int:
    found = re.search(r"\d+", text)
    return int(found[0]) if found else 0


def problems(cells: Sequence[Cell]) -> Iterator[str]:
    """What is wrong with the card, as sentences; nothing about a card that is not there."""
    card = rows_of(cells)
    if not card:
        return
    for row in ROWS:
        if row not in card:
            yield f"the card has no row {row!r}"
    said, counted = number(card.get("Reading", "")), reading_minutes(cells)
    if not 0.75 * counted - 3 <= said <= 1.25 * counted + 3:
        yield f"the card says {said} minutes of reading, the word count {counted:.0f}"
    if "word count" not in card.get("Reading", ""):
        yield "the card does not say that its minutes of reading are by word count"
    if "measured" not in card.get("Run", ""):
        yield "the card does not say where its seconds were measured"


def off_by_much(cells: Sequence[Cell], seconds: float) -> str:
    """A sentence if a measured run is far from the card's seconds (twice as long, or a third); else
    empty."""
    said = number(rows_of(cells).get("Run", ""))
    if said / 3 - 10 <= seconds <= 2 * said + 10:
        return ""
    return f"the card says {said} seconds, the run took {seconds:.0f}"


def measured(notebooks: Path, runs: Path) -> dict[str, tuple[list[Cell], float]]:
    """Cells and seconds of every notebook that runs.json of `dsv3-port tutorial` has as ok."""
    found = {}
    for run in json.loads(runs.read_text(encoding="utf-8")):
        file = notebooks / f"{run['name']}.ipynb"
        if run["status"] == "ok" and file.is_file():
            found[run["name"]] = (
                json.loads(file.read_text(encoding="utf-8"))["cells"],
                run["seconds"],
            )
    return found


def against_runs(notebooks: Path, runs: Path, pace: float = 1.0) -> list[str]:
    """Findings of every measured notebook, on a machine that takes `pace` times as long as that of
    the cards."""
    lines = (
        (name, off_by_much(cells, seconds / pace))
        for name, (cells, seconds) in measured(notebooks, runs).items()
    )
    return [f"{name}: {text}" for name, text in lines if text]


def pace_of(notebooks: Path, runs: Path) -> float:
    """The median of measured over stated seconds: what a slow machine does to all notebooks alike."""
    ratios = [
        seconds / said
        for cells, seconds in measured(notebooks, runs).values()
        if (said := number(rows_of(cells).get("Run", "")))
    ]
    return median(ratios) if ratios else 1.0


def main(argv: Sequence[str]) -> int:
    """Warnings in GitHub's form; a shared runner is no measurement, so none of them fails the job."""
    notebooks, runs = Path(__file__).resolve().parents[2] / "notebooks", Path(argv[0])
    pace = pace_of(notebooks, runs)
    print(f"this machine takes {pace:.2f} times as long as the cards say")
    for line in against_runs(notebooks, runs, pace):
        print(
            f"::warning file=notebooks/{line.partition(':')[0]}.ipynb::{line} at the pace of the cards' machine"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The times on a notebook's card: minutes of reading and building are estimates, counted from the text and
the slots; seconds of running were measured, and stand in run_seconds.json and nowhere else.

`python ci/tools/cards.py` writes the three rows into every card.
`--record out/runs.json WHERE` takes the seconds from a run of `dsv3-port tutorial` first; WHERE says on what
and beside what: "two CPU cores beside tests".
`python ci/tools/cards.py out/runs.json` is for a runner that others share: the run is first brought to
the pace of the machine that the cards were measured on, and what is then far off is a warning.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

SECONDS = Path(__file__).with_name("run_seconds.json")
SLOTS = Path(__file__).resolve().parents[2] / "dsv3_port" / "course" / "slots"
UNTIMED = 1.5  # of a plan, until a class has timed it
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


def slot_minutes() -> dict[str, int]:
    """Slot -> its minutes, from the modules' text: importing them imports torch."""
    texts = (file.read_text(encoding="utf-8") for file in sorted(SLOTS.glob("*.py")))
    pair = re.compile(r"^\s+id=\"(\w+\.\w+)\",.*?^\s+minutes=(\d+),", re.MULTILINE | re.DOTALL)
    return {name: int(minutes) for text in texts for name, minutes in pair.findall(text)}


def expected(cells: Sequence[Cell], name: str) -> dict[str, str]:
    """The rows that are not written by hand, as they must stand on the card."""
    text = "\n".join(_source(c) for c in cells if "yours" in _tags(c))
    planned = sum(slot_minutes()[one] for one in re.findall(r"@slot\(\"([\w.]+)\"", text))
    run = json.loads(SECONDS.read_text(encoding="utf-8"))
    reading = f"{reading_minutes(cells):.0f} minutes, estimated by word count"
    rows = {"Reading": reading}
    if planned:
        build = (
            f"{planned} minutes planned, no class has timed it: reckon with {UNTIMED * planned:.0f}"
        )
        rows["Build"] = build
    if name in run["seconds"]:
        measured = f"measured on {run['where']} ({run['date']})"
        rows["Run"] = f"{run['seconds'][name]} seconds, {measured}"
    else:
        rows["Run"] = "not measured yet"
    return rows


def problems(cells: Sequence[Cell], name: str) -> Iterator[str]:
    """What is wrong with the card, as sentences; nothing about a card that is not there."""
    card = rows_of(cells)
    if not card:
        return
    for row in ROWS:
        if row not in card:
            yield f"the card has no row {row!r}"
    due = expected(cells, name)
    said, counted = number(card.get("Reading", "")), number(due["Reading"])
    if not 0.75 * counted - 3 <= said <= 1.25 * counted + 3:
        yield f"the card says {said} minutes of reading, the text has {counted}"
    elif "estimated" not in card.get("Reading", ""):
        yield "the card does not say that its minutes of reading are estimated"
    for row in ("Build", "Run"):
        if card.get(row) != due.get(row):
            yield f"{row} is {card.get(row)!r}, not {due.get(row)!r}: run python ci/tools/cards.py"


def write(notebooks: Path) -> list[str]:
    """Put the counted and measured rows into every card; names of the notebooks that changed."""
    made = []
    for file in sorted(notebooks.glob("*.ipynb")):
        nb = json.loads(file.read_text(encoding="utf-8"))
        cell = next((c for c in nb["cells"] if "card" in _tags(c)), None)
        if cell is None:
            continue
        text = _source(cell)
        for row, value in expected(nb["cells"], file.stem).items():
            text = re.sub(rf"^(\|\s*{row}[^|]*\|).*$", rf"\1 {value} |", text, flags=re.MULTILINE)
        if text != _source(cell):
            cell["source"] = text.splitlines(keepends=True)
            whole = json.dumps(nb, indent=1, ensure_ascii=False) + "\n"
            file.write_text(whole, encoding="utf-8")
            made.append(file.stem)
    return made


def record(runs: Path, where: str) -> None:
    """The seconds of every notebook that ran through."""
    found = json.loads(runs.read_text(encoding="utf-8"))
    seconds = {run["name"]: round(run["seconds"]) for run in found if run["status"] == "ok"}
    old = json.loads(SECONDS.read_text(encoding="utf-8"))["seconds"] if SECONDS.exists() else {}
    if missing := sorted(set(old) - set(seconds)):
        raise SystemExit(
            f"{runs}: no run of {', '.join(missing)}; record a run of the whole course"
        )
    said = {"where": where, "date": date.today().isoformat(), "seconds": seconds}
    SECONDS.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


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
    notebooks = Path(__file__).resolve().parents[2] / "notebooks"
    if argv and argv[0] == "--record":
        record(Path(argv[1]), argv[2])
    if not argv or argv[0] == "--record":
        print("cards written:", ", ".join(write(notebooks)) or "none changed")
        return 0
    runs = Path(argv[0])
    pace = pace_of(notebooks, runs)
    print(f"this machine takes {pace:.2f} times as long as the cards say")
    for line in against_runs(notebooks, runs, pace):
        print(
            f"::warning file=notebooks/{line.partition(':')[0]}.ipynb::{line} at the pace of the cards' machine"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

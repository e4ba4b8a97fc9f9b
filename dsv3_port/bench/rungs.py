"""The step of the full port eager, captured, compiled, compiled and captured, as recorded on a GPU: by
part graphs of `ci/bench/speed.py`, or by an experiment until there is such a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_json
from ..markdown import cell, table
from ..messages import N_, told, tr
from .cases import Bench, Case
from .parts_graphs import EAGER, RUNGS, SPLIT
from .results_table import seconds_text
from .speed_tables import what_of

EXPERIMENTS = "experiment-*.json"
NAMES = (EAGER, *RUNGS)
STEP, BOUND, REACHED = N_("a step"), N_("the device's bound"), N_("of it reached")
# what a case is called (speed_tables.what_of), for the catalogue
SIZES = (
    *(N_("{0} decode, batch {1}, {2} cached"), N_("{0} prefill, batch {1}, {2} tokens")),
    *(N_("{0} decode, batch {1}, {2} cached, {3}"), N_("{0} prefill, batch {1}, {2} tokens, {3}")),
    N_("buffer {0} times as long"),
)


@dataclass(frozen=True)
class Rungs:
    """One case. `seconds`: rung -> (low, high), quartiles of a record, or what an experiment saw.
    `what`, `device` and `conditions` are looked up in the catalogue where they are said."""

    what: str
    phase: str
    batch: int
    seconds: dict[str, tuple[float, float]]
    bound: float  # seconds that the step's work takes at the rate measured beside it
    share: float  # of the bound's rate, by the fastest of NAMES
    device: str
    when: str  # versions and date
    conditions: tuple[str, ...] = ()  # of an experiment
    read: float = 0.0  # TB/s of the read that its bound is of

    @property
    def experiment(self) -> bool:
        return bool(self.conditions)

    @property
    def where(self) -> str:
        """Device, versions, date, and the conditions of an experiment."""
        place = f"{told(self.device)}, {self.when}"
        if not self.experiment:
            return place
        bound = tr("bound: bytes at the {rate:g} TB/s that a read of 1 GiB had")
        parts = [*map(told, self.conditions), bound.format(rate=self.read)]
        return tr("{place}: {conditions}").format(place=place, conditions=tr("; ").join(parts))


def recorded_rungs(folder: str | Path, benches: Sequence[Bench]) -> list[Rungs]:
    """From the records of a GPU; where there is none, from the experiments in `folder`."""
    cases = [c for b in benches if b.part == "graphs" and b.tier == "cuda" for c in b.cases]
    if cases:
        return [_of_case(c) for c in cases]
    files = sorted(Path(folder).glob(EXPERIMENTS))
    return [r for f in files for r in _of_experiment(read_json(f))]


def _of_case(case: Case) -> Rungs:
    first = case.records[0]
    (bound,) = (n for n, facts in case.facts.items() if "rate" in facts)
    return Rungs(
        what_of(case, device=False),
        first.phase,
        first.batch,
        {r.name: (r.q1, r.q3) for r in case.records if r.name in (*NAMES, SPLIT)},
        case.facts[EAGER]["work"] / case.facts[bound]["rate"],
        max(case.facts[n]["fraction"] for n in NAMES if n in case.facts),
        first.device_name,
        f"torch {first.versions['torch']}, {case.date[:10]}",
    )


def _of_experiment(found: dict[str, Any]) -> list[Rungs]:
    return [
        Rungs(
            f"{row['profile']} {found['dtype']} decode, batch {row['batch']}, {found['context']} cached",
            "decode",
            row["batch"],
            {n: (min(row[n]) / 1e6, max(row[n]) / 1e6) for n in NAMES},
            row["bound"] / 1e6,
            row["share"],
            found["device"],
            f"{found['versions']}, {found['date']}",
            (found["conditions"], found["profiles"]),
            found["read_tb_s"],
        )
        for row in found["rows"]
    ]


def span_text(low: float, high: float) -> str:
    """In one unit: "195–231 µs"."""
    first, last = seconds_text(low), seconds_text(high)
    if first == last:
        return last
    same = first.split()[1] == last.split()[1]
    return f"{first.split()[0]}–{last}" if same else f"{first}–{last}"


def columns(found: Sequence[Rungs]) -> tuple[str, ...]:
    """NAMES, and the split attention where it was recorded."""
    return (*NAMES, SPLIT) if any(SPLIT in r.seconds for r in found) else NAMES


def rung_rows(found: Sequence[Rungs]) -> list[tuple[str, ...]]:
    names = columns(found)
    return [
        (
            told(r.what),
            *(span_text(*r.seconds[n]) if n in r.seconds else "–" for n in names),
            seconds_text(r.bound),
            f"{r.share:.0%}",
        )
        for r in found
    ]


def markdown(found: Sequence[Rungs]) -> str:
    """The table with its conditions below."""
    if not found:
        return tr("No GPU has been measured.")
    line = tr("*Recorded: {where}.*")
    if any(r.experiment for r in found):
        line = tr("*Experiment: {where}.*")
    where = "\n\n".join(line.format(where=cell(w)) for w in sorted({r.where for r in found}))
    heads = (STEP, *columns(found), BOUND, REACHED)
    return f"{table(tuple(map(told, heads)), rung_rows(found))}\n\n{where}"

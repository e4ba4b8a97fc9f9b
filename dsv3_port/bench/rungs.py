"""The step of the full port eager, captured, compiled, compiled and captured, as recorded on a GPU: by
part graphs of `ci/bench/speed.py`, or by an experiment until there is such a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_json
from ..markdown import cell, table
from .cases import Bench, Case
from .parts_graphs import EAGER, RUNGS
from .results_table import seconds_text
from .speed_tables import what_of

EXPERIMENTS = "experiment-*.json"
NAMES = (EAGER, *RUNGS)
HEADS = ("a step", *NAMES, "bound", "of it reached")


@dataclass(frozen=True)
class Rungs:
    """One case. `seconds`: rung -> (low, high), quartiles of a record, or what an experiment saw."""

    what: str
    phase: str
    batch: int
    seconds: dict[str, tuple[float, float]]
    bound: float  # seconds that the step's work takes at the rate measured beside it
    share: float  # of the bound's rate, by the fastest rung
    where: str  # device, versions, date, conditions
    experiment: bool


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
        {r.name: (r.q1, r.q3) for r in case.records if r.name in NAMES},
        case.facts[EAGER]["work"] / case.facts[bound]["rate"],
        max(case.facts[n]["fraction"] for n in NAMES if n in case.facts),
        f"{first.device_name}, torch {first.versions['torch']}, {case.date[:10]}",
        False,
    )


def _of_experiment(found: dict[str, Any]) -> list[Rungs]:
    where = (
        f"{found['device']}, {found['versions']}, {found['date']}: {found['conditions']}; "
        f"{found['profiles']}; bound: bytes at the {found['read_tb_s']} TB/s that a read of 1 GiB had"
    )
    return [
        Rungs(
            f"{row['profile']} {found['dtype']} decode, batch {row['batch']}, {found['context']} cached",
            "decode",
            row["batch"],
            {n: (min(row[n]) / 1e6, max(row[n]) / 1e6) for n in NAMES},
            row["bound"] / 1e6,
            row["share"],
            where,
            True,
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


def rung_rows(found: Sequence[Rungs]) -> list[tuple[str, ...]]:
    return [
        (
            r.what,
            *(span_text(*r.seconds[n]) if n in r.seconds else "–" for n in NAMES),
            seconds_text(r.bound),
            f"{r.share:.0%}",
        )
        for r in found
    ]


def markdown(found: Sequence[Rungs]) -> str:
    """The table with its conditions below."""
    if not found:
        return "No GPU has been measured."
    kind = "Experiment" if any(r.experiment for r in found) else "Recorded"
    where = "\n\n".join(f"*{kind}: {cell(w)}.*" for w in sorted({r.where for r in found}))
    return f"{table(HEADS, rung_rows(found))}\n\n{where}"

"""Times paired round by round, and what they are worth: the ratio with its spread, the noise floor,
and whether the machine was quiet enough for a verdict."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..messages import tr

if TYPE_CHECKING:
    from .records import Record

LEAST_FLOOR = 0.02  # below it no run on a machine with a scheduler is believed
UNSURE = 0.10  # the same code twice, further apart than this: nothing of the run is believed


@dataclass(frozen=True)
class Ratio:
    """Time of one variant over the time of another, paired round by round: above 1, the second one
    is faster."""

    median: float
    low: float  # quartiles of the ratios of single rounds
    high: float
    samples: list[float] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.median:.2f}× [{self.low:.2f}–{self.high:.2f}]"


def quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, q3


def ratio_of(first: list[float], second: list[float]) -> Ratio:
    """first / second, round by round."""
    values = [x / y for x, y in zip(first, second, strict=True)]
    return Ratio(statistics.median(values), *quartiles(values), values)


def floor_of(records: Sequence[Record]) -> float:
    """The noise floor of one run and phase: the larger distance from 1 of the quartiles of the same
    code timed twice, 2 % at least. Records without such a pair (older files) give 2 %."""
    return floor_between([p for p in (r.same_code for r in records) if p])


def floor_between(pairs: Sequence[Ratio]) -> float:
    """The same of ratios, each of the same code timed twice."""
    return max([LEAST_FLOOR, *(abs(q - 1) for p in pairs for q in (p.low, p.high))])


def busy_text(records: Sequence[Record]) -> str:
    """That and why these records give no verdict; "" if they do."""
    why = busy_reason(records)
    return tr("busy: {why}").format(why=why) if why else ""


def busy_reason(records: Sequence[Record]) -> str:
    """Why these records give no verdict; "" if they do."""
    if not any(r.busy for r in records):
        return ""
    off = [abs(p.median - 1) for p in (r.same_code for r in records) if p]
    if off and max(off) > UNSURE:
        return tr("the same code twice differs by {share:.0%}").format(share=max(off))
    share = max(r.busy_share for r in records)
    return tr("{share:.0%} used by others").format(share=share)

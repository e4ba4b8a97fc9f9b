"""Which word a measurement allows: faster, slower, or none.

Every measurement times its first variant twice. How far that pair of the same code lies apart is the
noise floor: a difference counts only if its median and its nearer quartile lie beyond the floor, and a
busy machine gives no verdict. One process says nothing of the next: on a CPU a difference that two
starts of the same program differ by does not count either, so that the word stays when it is run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ..errors import PortError
from ..messages import tr
from ..steps import STEPS, title_of
from .paired import Ratio, busy_text, floor_of, ratio_of
from .records import Results

PHASES = ("prefill", "decode")
# Relative, by tier. cpu: two pairs of rungs (notebook 03, batch 1) in seven starts of the process, on two
# idle cores: median ratios from 0.89 to 0.98 and from 0.94 to 1.06; the starts' own noise floors were 5
# to 13 %, once 30 %.
BETWEEN_STARTS = {"cpu": 0.15}

FASTER, SLOWER, NEITHER, BUSY = "faster", "slower", "no difference that this run can show", "busy"


@dataclass(frozen=True)
class Outcome:
    """What one run says of `after` against `before`. `ratio` above 1: `after` takes less time."""

    before: str
    after: str
    phase: str
    word: str  # FASTER, SLOWER, NEITHER or BUSY
    ratio: Ratio
    floor: float  # relative: the run's first variant timed twice, or BETWEEN_STARTS if that is more
    busy: str = ""  # why there is no verdict

    @property
    def factor(self) -> str:
        """`1.31× faster [1.28–1.34]`; no factor where the machine was busy."""
        if self.word == BUSY:
            return tr("no verdict, {why}").format(why=self.busy)
        r = self.ratio
        if self.word == SLOWER:
            slower = tr("{times:.2f}× slower [{low:.2f}–{high:.2f}]")
            return slower.format(times=1 / r.median, low=1 / r.high, high=1 / r.low)
        if self.word == NEITHER:
            none = tr("no difference that this run can show ({ratio}, counts from {floor:.0%} on)")
            return none.format(ratio=r, floor=self.floor)
        faster = tr("{times:.2f}× faster [{low:.2f}–{high:.2f}]")
        return faster.format(times=r.median, low=r.low, high=r.high)

    def __str__(self) -> str:
        said = tr("{after} against {before}: {factor}").format(
            after=title_of(self.after), before=title_of(self.before), factor=self.factor
        )
        return _of_phase(self.phase, said)


def _of_phase(phase: str, said: str) -> str:
    return tr("{phase}: {said}").format(phase=phase, said=said) if phase else said


@dataclass(frozen=True)
class Said:
    """Sentences about one run, for a notebook's page and for a terminal."""

    outcomes: tuple[Outcome, ...]

    @property
    def busy(self) -> bool:
        """Whether a busy machine left an outcome without a verdict."""
        return any(o.word == BUSY for o in self.outcomes)

    @property
    def faster(self) -> bool:
        """Whether every outcome is that."""
        return all(o.word == FASTER for o in self.outcomes)

    def lines(self) -> list[str]:
        """One an outcome; where a busy machine gives no verdict, one for all of a phase."""
        said: list[str] = []
        for (phase, before, busy), found in groupby(
            self.outcomes, lambda o: (o.phase, o.before, o.busy)
        ):
            group = list(found)
            if not busy or len(group) == 1:
                said += map(str, group)
                continue
            none = tr("{n} against {before}: no verdict, {why}")
            of_all = none.format(n=len(group), before=title_of(before), why=busy)
            said.append(_of_phase(phase, of_all))
        return said

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _repr_markdown_(self) -> str:
        return "\n".join(f"- {line}" for line in self.lines())


def outcome(results: Results, before: str, after: str, phase: str | None = None) -> Outcome:
    """`after` against `before`, both of one interleaved run (PortError otherwise)."""
    a, b = results.pair(before, after, phase)
    ratio = ratio_of(a.samples, b.samples)
    run = [r for r in results if (r.run, r.phase) == (a.run, a.phase)]
    floor, busy = max(floor_of(run), BETWEEN_STARTS.get(a.tier, 0.0)), busy_text(run)
    if busy:
        word = BUSY
    elif ratio.median > 1 + floor and ratio.low > 1 + floor:
        word = FASTER
    elif ratio.median < 1 / (1 + floor) and ratio.high < 1 / (1 + floor):
        word = SLOWER
    else:
        word = NEITHER
    return Outcome(before, after, a.phase, word, ratio, floor, busy)


def say(
    results: Results, before: str | None = None, after: str | Sequence[str] | None = None
) -> Said:
    """What the newest run of each phase says of its variants against `before` (default: its first)."""
    if not results.records:
        raise PortError("there are no records to speak of; measure first")
    found = []
    for phase in sorted({r.phase for r in results}, key=lambda p: (p != "prefill", p)):
        run = [r for r in results if r.phase == phase][-1].run
        here = Results([r for r in results if (r.phase, r.run) == (phase, run)])
        base = before or here.names[0]
        wanted = [after] if isinstance(after, str) else after or here.names
        found += [outcome(here, base, n, phase) for n in wanted if n != base and n in here.names]
    if not found:
        raise PortError(
            f"nothing was measured beside {before!r}; there are {', '.join(map(repr, results.names))}"
        )
    return Said(tuple(found))


def step_rows(results: Results, base: str) -> list[tuple[str, ...]]:
    """Each step of the port, cumulative, against `base`: number, title, then prefill eager, prefill
    graph, decode eager, decode graph; "–" where it was not run."""

    def cell(name: str, phase: str, graph: bool) -> str:
        there = [r for r in results if (r.name, r.phase, r.mode != "eager") == (name, phase, graph)]
        return outcome(results, base, name, phase).factor if there else "–"

    return [
        (s.number, s.title, *(cell(s.id, p, graph) for p in PHASES for graph in (False, True)))
        for s in STEPS
        if s.id in results.names
    ]

"""A port on cards that are not here: which layouts hold the model, how long a decode step is by
measured kernels, what binds it, and which porting step to do next.

A layout that does not divide the model, or does not fit the cards, is never suggested and has no
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config import DeepseekV3Config
from ..count.step_work import step_work
from ..engine.graph import graph_blockers
from ..errors import PortError
from ..messages import N_
from ..plan import PortPlan
from ..steps import PRODUCTION, STEPS
from .compose import Composed, compose
from .kernel_model import KernelModel
from .planner import Forecast, cannot_cut, forecast, smallest_world, world_sizes

SAME = 1.2  # composed times that are nearer than this are not told apart
LEAST = 0.03  # a step that shortens decode by less is not named as the next one
HEADS = (  # of Layout.row
    *(N_("ranks"), N_("copies"), N_("memory"), N_("decode ms"), N_("covered"), N_("binds")),
    N_("next"),
)


@dataclass(frozen=True)
class Layout:
    """`world_size` ranks hold one copy of the model; `copies` of it on the given cards. `decode` is
    None where the layout is not possible; `reason` says why."""

    world_size: int
    copies: int
    memory: Forecast
    decode: Composed | None
    reason: str
    next_step: str = ""  # id of the step that shortens decode most, if any does
    after: Composed | None = None

    @property
    def possible(self) -> bool:
        return self.decode is not None

    def row(self) -> dict[str, Any]:
        """A row of a table, milliseconds."""
        d = self.decode
        cells: tuple[Any, ...] = (self.world_size, self.copies or "–")
        if d is None:
            return dict(zip(HEADS, (*cells, "–", "–", "–", self.reason, "–"), strict=True))
        cells += (self.memory.reason, f"~{d.ms:.0f} ({d.low:.0f}–{d.high:.0f})")
        cells += (f"{d.covered:.0%}", d.binds)
        then = f"{self.next_step} → ~{self.after.ms:.0f}" if self.after else N_("none")
        return dict(zip(HEADS, (*cells, then), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """decode_ms: low end, middle, high end; collectives are counted and not in it."""
        d = self.decode
        return {
            "composed": True,
            "world_size": self.world_size,
            "copies": self.copies,
            "possible": self.possible,
            "reason": self.reason or self.memory.reason,
            "total_bytes": self.memory.total_bytes,
            "decode_ms": None if d is None else [d.low, d.ms, d.high],
            "covered": None if d is None else d.covered,
            "binds": None if d is None else d.binds,
            "collectives_not_timed": None if d is None else d.sent.calls,
            "next_step": self.next_step,
            "rows": [] if d is None else list(d.rows),
        }


def layouts(
    config: DeepseekV3Config,
    worlds: Sequence[int],
    *,
    cards: int | None = None,
    hbm_gib: float = 64.0,
    batch: int = 1,
    context: int = 4096,
    plan: PortPlan | None = None,
    model: KernelModel | None = None,
) -> list[Layout]:
    """Each number of ranks, bfloat16: memory, and decode of `batch` sequences in a cache of
    `context` if it is possible. cards: how many there are; a copy of the model takes a whole number
    of times that.
    """
    plan = plan or PortPlan.full()
    if beyond := [s.id for s in PRODUCTION if s.id in plan.step_ids]:
        raise PortError(
            f"what-if: step {beyond[0]!r} is of Part II, and no table has its kernels' times: choose a plan of "
            "Part I, such as full"
        )
    if plan.quant != "none":
        raise PortError("what-if: no table has the times of w8a8's kernels: leave +w8a8 out")
    found = []
    for world in worlds:
        memory = forecast(config, (world,), hbm_gib, batch=batch, seq_len=context, plan=plan)[0]
        reason = _impossible(config, world, cards, memory)
        if not memory.fits and world in world_sizes(config):
            least = smallest_world(config, hbm_gib, "bfloat16", batch, context, plan)
            reason += f"; {least} ranks are the fewest that do" if least else ""
        copies = 0 if reason else (cards or world) // world
        if reason:
            found.append(Layout(world, 0, memory, None, reason))
            continue
        made = _decode(config, plan, world, batch, context, model)
        step, after = _next(config, plan, world, batch, context, model, made)
        found.append(Layout(world, copies, memory, made, "", step, after))
    return found


def _impossible(config: DeepseekV3Config, world: int, cards: int | None, memory: Forecast) -> str:
    divide = world_sizes(config)
    if world not in divide:
        return cannot_cut(world, divide)
    if not memory.fits:
        return f"does not fit: {memory.reason}"
    if cards and (world > cards or cards % world):
        return f"{cards} cards are not a whole number of copies on {world} ranks"
    return ""


def suggested(found: Sequence[Layout]) -> Layout:
    """The possible layout with the shortest decode step, or the one of fewest ranks that is not
    SAME times longer; PortError where none is possible."""
    possible = [x for x in found if x.decode]
    if not possible:
        reasons = "; ".join(f"{x.world_size} ranks: {x.reason}" for x in found)
        raise PortError(f"what-if: no layout is possible: {reasons}")
    times = {x.world_size: x.decode.ms for x in possible if x.decode}
    return min(
        (x for x in possible if times[x.world_size] <= SAME * min(times.values())),
        key=lambda x: x.world_size,
    )


def _decode(
    config: DeepseekV3Config,
    plan: PortPlan,
    world: int,
    batch: int,
    context: int,
    model: KernelModel | None,
) -> Composed:
    work = step_work(config, plan, world_size=world, batch=batch, tokens=1, context=context)
    return compose(work, plan.graph, "", model)


def _next(
    config: DeepseekV3Config,
    plan: PortPlan,
    world: int,
    batch: int,
    context: int,
    model: KernelModel | None,
    now: Composed,
) -> tuple[str, Composed | None]:
    """The missing step that shortens decode most, if by LEAST or more. A graph is one only where
    nothing blocks it; the cut over ranks is the layout's own."""
    best: tuple[str, Composed | None] = ("", None)
    for s in STEPS:
        if s.id == "tensor_parallel" or getattr(plan, s.field) == s.ported:
            continue
        if s.field == "graph" and (plan.graph != "eager" or graph_blockers(plan)):
            continue
        try:
            made = _decode(config, plan.plus(s.id), world, batch, context, model)
        except PortError:  # a plan whose GE graph was not counted
            continue
        least = best[1].ms if best[1] else now.ms * (1 - LEAST)
        if made.ms < least:
            best = (s.id, made)
    return best

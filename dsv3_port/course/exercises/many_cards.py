"""Exercise of 09_many_cards: where the all-reduce of a MoE layer stands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import Exercise

POINTS = ("gate_up", "swiglu", "routed", "shared", "sum", "residual")
_RANKS, _HIDDEN, _WIDTH = 2, 4, 6


def moe_layer(reduce_at: set[str], ranks: int = _RANKS) -> tuple[Tensor, int]:
    """A MoE layer of one routed and one shared expert over `ranks` ranks in one process, summed
    over them at the named
    points: (rank 0's result [3, H], number of all-reduces).
    """
    generator = torch.Generator().manual_seed(9)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = random(3, _HIDDEN)
    experts = [
        (random(_WIDTH, _HIDDEN), random(_WIDTH, _HIDDEN), random(_HIDDEN, _WIDTH))
        for _ in range(2)
    ]
    calls = 0

    def point(name: str, values: list[Tensor]) -> list[Tensor]:
        nonlocal calls
        if name not in reduce_at:
            return values
        calls += 1
        return [torch.stack(values).sum(0)] * ranks

    def expert(which: int, name: str) -> list[Tensor]:
        gate, up, down = (w.chunk(ranks, d) for w, d in zip(experts[which], (0, 0, 1), strict=True))
        both = point(
            "gate_up", [torch.cat((x @ g.T, x @ u.T), 1) for g, u in zip(gate, up, strict=True)]
        )
        inner = point("swiglu", [F.silu(b.chunk(2, 1)[0]) * b.chunk(2, 1)[1] for b in both])
        return point(name, [h @ d.T for h, d in zip(inner, down, strict=True)])

    routed, shared = expert(0, "routed"), expert(1, "shared")
    total = point("sum", [r + s for r, s in zip(routed, shared, strict=True)])
    return point("residual", [x + t for t in total])[0], calls


_PLACES = {
    "none": (
        set(),
        "Without an all-reduce each rank keeps its own partial sum, and the ranks go on with different "
        "hidden states. Where has every rank its part of all H numbers?",
    ),
    "inside the MLP": (
        {"gate_up"},
        "Between a column cut and the row cut after it the ranks hold different columns of "
        "the width I, and adding different columns means nothing. The sum belongs after the row cut.",
    ),
    "after SwiGLU": (
        {"swiglu"},
        "After SwiGLU the ranks still hold different columns of the width I. down_proj takes "
        "them as they are; the partial sums are its results.",
    ),
    "after the residual": (
        {"residual"},
        "The residual stream is whole on every rank, so a sum after adding it counts "
        "it W times. Add the ranks up first, then the residual.",
    ),
    "only routed": ({"routed"}, "The shared expert is cut as well: its part stays a partial sum."),
    "only shared": (
        {"shared"},
        "The routed experts are cut as well: their part stays a partial sum.",
    ),
    "twice": (
        {"routed", "shared"},
        "The numbers are right, but you pay two all-reduces where one does: both results "
        "are partial sums over the same ranks and may be added before. The old sample paid twice, in every MoE "
        "layer and step.",
    ),
    "counted again": (
        {"routed", "shared", "sum"},
        "What was added up once must not be added up again: after the first "
        "all-reduce every rank has the whole sum, and the second multiplies it by W.",
    ),
}


def _check_places(answer: Any) -> str | None:
    if isinstance(answer, str) and answer in POINTS:
        answer = {answer}
    if not isinstance(answer, (set, frozenset, list, tuple)) or not all(
        isinstance(p, str) for p in answer
    ):
        return f"Give a set of points out of {', '.join(POINTS)}."
    chosen = set(answer)
    if odd := sorted(chosen - set(POINTS)):
        return f"There is no point {odd[0]!r}; there are {', '.join(POINTS)}."
    (want, _), (got, calls) = moe_layer(set(), 1), moe_layer(chosen)
    if torch.allclose(got, want) and calls == 1:
        return None
    for name, (points, _) in _PLACES.items():
        if chosen == points:
            return name
    if torch.allclose(got, want):
        return f"Right numbers with {calls} all-reduces; one is enough."
    off = float((got - want).abs().max() / want.abs().max())
    return f"With these points the layer is off by {off:.0%} of its largest number: change one at a time and look."


EXERCISES = (
    Exercise(
        id="09.all_reduce",
        notebook="09_many_cards",
        title="Place the all-reduce",
        minutes=6,
        difficulty=2,
        check=_check_places,
        wrong=dict(_PLACES),
        solution="""
answer = {"sum"}  # routed + shared are partial sums over the same ranks: one all-reduce for both
""",
    ),
)

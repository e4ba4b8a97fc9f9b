"""Exercises of 09_many_cards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import Exercise

# ---- repair the gather ---------------------------------------------------------------------------


def _right(flat: Tensor, world: int) -> Tensor:
    parts = flat.unflatten(0, (world, -1))  # [W, B, S, V/W]
    return parts.movedim(0, -2).flatten(-2)


def _reshaped(flat: Tensor, world: int) -> Tensor:
    batch = flat.shape[0] // world
    return flat.reshape(batch, flat.shape[1], -1)


def _batch_first(flat: Tensor, world: int) -> Tensor:
    return _right(flat.unflatten(0, (-1, world)).transpose(0, 1).flatten(0, 1), world)


def _interleaved(flat: Tensor, world: int) -> Tensor:
    return flat.unflatten(0, (world, -1)).movedim(0, -1).flatten(-2)


def _first_part(flat: Tensor, world: int) -> Tensor:
    return flat[: flat.shape[0] // world]


def _summed(flat: Tensor, world: int) -> Tensor:
    return flat.unflatten(0, (world, -1)).sum(0)


_GATHERS = {
    "reshape alone": (
        _reshaped,
        "This is the old sample's line: right for one sequence, and with two the first row gets rank 0's "
        "vocabulary of both sequences. The rank axis is outermost; it must move behind S before it is "
        "merged with V/W.",
    ),
    "batch before rank": (
        _batch_first,
        "You read the leading axis as [B, W]. The collective puts whole ranks one after the other: "
        "rows 0 to B-1 are all of rank 0, so it is [W, B].",
    ),
    "vocabulary interleaved": (
        _interleaved,
        "You moved the rank axis behind V/W: token ids come out as 0 of rank 0, 0 of rank 1, "
        "and so on. A rank holds neighbouring ids, so the rank axis belongs before V/W.",
    ),
    "one part": (
        _first_part,
        "You return one rank's part of the vocabulary: sampling can then choose only those tokens. The old "
        "sample shipped that for seven weeks.",
    ),
    "summed": (
        _summed,
        "You added the parts. A sum belongs to a row cut, whose parts are partial sums; the head is a column "
        "cut, whose parts stand side by side.",
    ),
}


def _check_gather(answer: Any) -> str | None:
    cases = [
        (torch.arange(world * batch * 3 * 4.0).view(world * batch, 3, 4), world)
        for world, batch in ((2, 1), (2, 2), (3, 2))
    ]
    got = [answer(flat.clone(), world) for flat, world in cases]
    if not all(isinstance(g, Tensor) for g in got):
        return f"gather must return a tensor, not {type(got[0]).__name__}."

    def same_as(form: Any) -> bool:
        return all(torch.equal(g, form(*case)) for g, case in zip(got, cases, strict=True))

    if same_as(_right):
        return None
    for name, (form, _) in _GATHERS.items():
        if same_as(form):
            return name
    want = _right(*cases[1])
    return (
        f"For two ranks and two sequences the first row should start {want[0, 0].tolist()}; yours has shape "
        f"{list(got[1].shape)} and starts {got[1].flatten()[:8].tolist()}."
    )


# ---- place the all-reduce ------------------------------------------------------------------------

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
        id="09.gather",
        notebook="09_many_cards",
        title="Repair the gather",
        minutes=8,
        difficulty=2,
        check=_check_gather,
        function="gather(flat, world) that turns [W*B, S, V/W] into [B, S, V].",
        wrong=dict(_GATHERS),
        solution="""
def gather(flat, world):
    parts = flat.unflatten(0, (world, -1))   # [W, B, S, V/W]
    return parts.movedim(0, -2).flatten(-2)  # [B, S, W, V/W] -> [B, S, V]

answer = gather
""",
    ),
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

"""The slot of 06b_small_operators: queries and keys turned by their position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...model.attention import LatentProjections
from ...model.decoder import DeepseekV3
from ...plan import PortPlan
from ..toys import Toy
from ..written import load_function
from . import Function, Slot, Wrong, changed

STUB = '''
def turn(x, cos, sin):
    """x [B, N, S, D] of pairs (x0, x1), (x2, x3), …; cos, sin [B, 1, S, D] with pair i's angle
    at i and at i + D/2 -> [B, N, S, D], every pair turned by its angle"""
    ...
'''

SOLUTION = STUB.replace(
    "    ...\n",
    """\
    x = torch.cat((x[..., 0::2], x[..., 1::2]), -1)     # first members, then second
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin
""",
)

INTERLEAVED = STUB.replace(
    "    ...\n",
    """\
    half = x.shape[-1] // 2
    c, s = cos[..., :half], sin[..., :half]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)
""",
)
COMPLEX = STUB.replace(
    "    ...\n",
    """\
    half = x.shape[-1] // 2
    angle = torch.complex(cos[..., :half].contiguous(), sin[..., :half].contiguous())
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * angle).flatten(-2)
""",
)


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Every pair turns at a speed of its own, every row of the batch starts elsewhere."""
    b, n, s, d = (sizes[k] for k in ("B", "N", "S", "D"))
    speed = torch.rand(d // 2, generator=generator) + 0.1
    angle = (torch.arange(s) + 5.0 * torch.arange(b)[:, None])[:, None, :, None] * speed
    angle = torch.cat((angle, angle), -1)
    return {
        "x": torch.randn(b, n, s, d, generator=generator),
        "cos": angle.cos(),
        "sin": angle.sin(),
    }


TOY = Toy({"B": 2, "N": 3, "S": 5, "D": 14}, inputs, ("B", "N", "S", "D"))


class Scores(Toy):
    """Compared are a query's products with the keys before it: what attention sees. An order of the
    numbers that queries and keys share does not matter to them, and is no mistake."""

    def outcome(self, function: Function, seed: int) -> tuple[Any, list[str]]:
        result, touched = super().outcome(function, seed)
        arguments = self.inputs(torch.Generator().manual_seed(seed), self.sizes)
        x = arguments["x"]
        if not isinstance(result, Tensor) or (result.shape, result.dtype) != (x.shape, x.dtype):
            return result, touched
        with torch.no_grad():
            other = function(x.flip(1), arguments["cos"], arguments["sin"])
        return result @ other.transpose(-1, -2), touched


def toy(function: Function, slot: Slot) -> str | None:
    """First a result's kind and shape, then the products."""
    got, touched = TOY.outcome(function, 0)
    want = TOY.outcome(load_function(slot.solution, slot.name), 0)
    if (
        not isinstance(got, Tensor)
        or touched
        or (got.shape, got.dtype) != (want[0].shape, want[0].dtype)
    ):
        return TOY.first_place((got, touched), want)
    return Scores(TOY.sizes, inputs, ("B", "N", "S", "S"))(function, slot)


def attach(twin: DeepseekV3, function: Function) -> None:
    for at in (m for m in twin.modules() if isinstance(m, LatentProjections)):
        object.__setattr__(at, "turn", lambda x, cos, sin, interleaved: function(x, cos, sin))


SLOTS = (
    Slot(
        id="06b.turn",
        notebook="06b_small_operators",
        title="Turned by the position",
        minutes=12,
        difficulty=2,
        stub=STUB,
        solution=SOLUTION,
        finished="model.rope:apply_rope_ported",
        hints=(
            "A pair (a, b) turned by an angle is (a cos - b sin, b cos + a sin). Bring the pairs into the "
            "layout of cos and sin first, then all of them turn at once.",
            "x[..., 0::2] and x[..., 1::2] are the first and second members, [B, N, S, D/2] each; one behind "
            "the other they are [B, N, S, D], as cos and sin are. Their halves are a and b.",
            "With x in halves: x * cos + torch.cat((-b, a), -1) * sin.",
        ),
        wrong={
            "pairs not brought to halves": Wrong(
                changed(
                    SOLUTION,
                    (
                        "    x = torch.cat((x[..., 0::2], x[..., 1::2]), -1)     # first members, then second\n",
                        "",
                    ),
                ),
                "x0 turns with x1, not with the number half a row further: which two numbers are a pair here?",
            ),
            "turned the other way": Wrong(
                changed(SOLUTION, ("(-b, a)", "(b, -a)")),
                "Clockwise for one, counter-clockwise for the other: which of a and b gets the minus? The "
                "model was trained with (a cos - b sin, b cos + a sin).",
            ),
            "minus left out": Wrong(
                changed(SOLUTION, ("(-b, a)", "(b, a)")),
                "A turn changes no length: compare the norms of a pair before and after yours.",
            ),
            "not turned": Wrong(
                changed(SOLUTION, ("return x * cos + torch.cat((-b, a), -1) * sin", "return x")),
                "The position is lost: every key looks the same from everywhere. Which text would still look "
                "right?",
            ),
            "scaled, not turned": Wrong(
                changed(SOLUTION, ("x * cos + torch.cat((-b, a), -1) * sin", "x * (cos + sin)")),
                "Each number is scaled by itself: a turn mixes the two of a pair.",
            ),
        },
        accepted={"left in pairs": INTERLEAVED, "complex numbers": COMPLEX},
        plan=PortPlan.full(),
        needs={"rope": "per_step"},
        toy=toy,
        attach=attach,
        calls=lambda twin, cached: 2 * twin.config.num_hidden_layers * (1 + cached),
    ),
)

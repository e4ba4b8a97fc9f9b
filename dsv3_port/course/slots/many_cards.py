"""The slot of 09_many_cards: the parts of the logits in order, as a gather leaves them to each rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...engine.loading import with_plan
from ...model.decoder import DeepseekV3
from ...parallel import TensorParallel
from ...plan import PortPlan
from ..over_ranks import WORLD, objection, only_embedded
from ..toys import Toy
from ..written import Sent
from . import Function, Slot, Wrong, changed

STUB = '''
def arrange(flat, world):
    """[W*B, S, V/W] as the gather leaves it, whole ranks one below the other; world = W
    -> [B, S, V], token ids in order"""
    ...
'''

SOLUTION = STUB.replace(
    "    ...\n",
    """\
    parts = flat.unflatten(0, (world, -1))       # [W, B, S, V/W]
    return parts.movedim(0, -2).flatten(-2)      # [B, S, W, V/W] -> [B, S, V]
""",
)
LAST = "parts.movedim(0, -2).flatten(-2)      # [B, S, W, V/W] -> [B, S, V]"


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    world, batch, new, part = (sizes[k] for k in ("W", "B", "S", "V/W"))
    return {"flat": torch.randn(world * batch, new, part, generator=generator), "world": world}


@dataclass(frozen=True)
class PartsOfOne(TensorParallel):
    """One process that has the whole vocabulary and hands it on as WORLD ranks would: parts, one below
    the other, put in order by `arrange`."""

    def all_gather_last(self, x: Tensor) -> Tensor:
        return self.arrange(torch.cat(x.chunk(WORLD, -1)), WORLD)


def make(base: DeepseekV3, function: Function) -> DeepseekV3:
    only_embedded(base, "09.arrange")
    twin = with_plan(base, base.plan.replace(graph="eager", tensor_parallel=True))
    twin.lm_head.parallel = PartsOfOne(arrange=function)
    return twin


def attach(twin: DeepseekV3, function: Function) -> None:
    raise AssertionError("ranks arrange, and a model alone has one: `make` gives it parts")


def over_two(finished: DeepseekV3, source: str, file: str) -> str | None:
    return objection("arrange", finished, Sent(source, "arrange", file))


SLOTS = (
    Slot(
        id="09.arrange",
        notebook="09_many_cards",
        title="The gathered logits in order",
        minutes=15,
        difficulty=2,
        stub=STUB,
        solution=SOLUTION,
        finished="parallel:parts_side_by_side",
        hints=(
            "Which axis counts what? Split what the collective put into one axis, bring the ranks to the "
            "place where they belong, and merge them there.",
            "flat [W*B, S, V/W] is [W, B, S, V/W] in memory: all rows of rank 0 come first. Rank 0 holds "
            "token ids 0 to V/W - 1, so that in [B, S, V] the rank stands before V/W: [B, S, W, V/W].",
            "flat.unflatten(0, (world, -1)) is [W, B, S, V/W].",
        ),
        wrong={
            "reshape alone": Wrong(
                STUB.replace(
                    "    ...\n",
                    "    return flat.reshape(flat.shape[0] // world, flat.shape[1], -1)\n",
                ),
                "Right for one sequence; which rows mix with two? The first row of yours holds rank 0's "
                "part of two sequences.",
            ),
            "batch before rank": Wrong(
                changed(
                    SOLUTION, ("(world, -1)", "(-1, world)"), ("movedim(0, -2)", "movedim(1, -2)")
                ),
                "You read the first axis as [B, W]. The collective puts whole ranks one after the other: rows "
                "0 to B - 1 are all of rank 0.",
            ),
            "vocabulary interleaved": Wrong(
                changed(SOLUTION, ("movedim(0, -2)", "movedim(0, -1)")),
                "Token ids come out as 0, 0, 1, 1: the first of rank 0, the first of rank 1, and so on. A "
                "rank holds neighbours.",
            ),
            "one part": Wrong(
                changed(SOLUTION, (LAST, "parts[0]")),
                "Half of the words can no longer be said: you return one rank's part of the vocabulary.",
            ),
            "summed": Wrong(
                changed(SOLUTION, (LAST, "parts.sum(0)")),
                "A sum is for a row cut, whose parts are partial sums of all outputs. The head is a column "
                "cut: its parts stand side by side.",
            ),
        },
        accepted={
            "side by side": STUB.replace(
                "    ...\n", "    return torch.cat(flat.chunk(world), -1)\n"
            ),
            "permute": STUB.replace(
                "    ...\n",
                """\
    rows, new, part = flat.shape
    parts = flat.view(world, rows // world, new, part)
    return parts.permute(1, 2, 0, 3).reshape(rows // world, new, world * part)
""",
            ),
        },
        plan=PortPlan.full(),
        needs={"tensor_parallel": True},
        toy=Toy({"W": 3, "B": 2, "S": 5, "V/W": 7}, inputs, ("B", "S", "V"), exact=True),
        attach=attach,
        calls=lambda twin, cached: 1 + cached,
        moment=f"on the parts of {WORLD} ranks",
        make=make,
        extra=over_two,
        looked=f"; {WORLD} real processes that gather with it compute the same",
    ),
)

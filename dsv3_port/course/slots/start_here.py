"""The warm-up slot of 00_start_here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...model.decoder import DeepseekV3
from ...plan import PortPlan
from ..toys import Toy
from . import Function, Slot, Wrong, changed

STUB = '''
def last(hidden):
    """hidden [B, S, H] -> [B, 1, H]: what the head needs of it to choose the next token."""
    ...
'''

SOLUTION = STUB.replace("    ...\n", "    return hidden[:, -1:]\n")
LINE = "hidden[:, -1:]"


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    return {"hidden": torch.randn(sizes["B"], sizes["S"], sizes["H"], generator=generator)}


def attach(twin: DeepseekV3, function: Function) -> None:
    twin.keep = function


SLOTS = (
    Slot(
        id="00.last",
        notebook="00_start_here",
        title="The position that chooses",
        minutes=5,
        difficulty=1,
        stub=STUB,
        solution=SOLUTION,
        finished="model.linear:last_position",
        hints=(
            "The head turns a position's row into logits, and the next token is chosen from one "
            "position only. Which one has read the whole prompt?",
            "hidden is [B, S, H]: sequences, positions, width. The result is [B, 1, H]: the axis of "
            "positions stays, one position long.",
            "A slice keeps its axis, a number removes it: hidden[:, a:b] is [B, b-a, H].",
        ),
        wrong={
            "first position": Wrong(
                changed(SOLUTION, (LINE, "hidden[:, :1]")),
                "Which token is chosen from these logits? The first position has seen one token only.",
            ),
            "axis gone": Wrong(
                changed(SOLUTION, (LINE, "hidden[:, -1]")),
                "One axis is gone: the head and the cached steps expect [B, 1, H].",
            ),
            "mean": Wrong(
                changed(SOLUTION, (LINE, "hidden.mean(1, keepdim=True)")),
                "The right shape, and no position: a mean over positions was never trained to choose.",
            ),
        },
        accepted={
            "narrow": changed(SOLUTION, (LINE, "hidden.narrow(1, hidden.shape[1] - 1, 1)")),
            "unsqueeze": changed(SOLUTION, (LINE, "hidden[:, -1].unsqueeze(1)")),
        },
        plan=PortPlan.full(),
        needs={"lm_head": "last"},
        toy=Toy({"B": 2, "S": 5, "H": 7}, inputs, ("B", "1", "H"), exact=True),
        attach=attach,
        calls=lambda twin, cached: 1 + cached,
    ),
)

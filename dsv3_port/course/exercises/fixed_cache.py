"""Exercises of 06a_fixed_cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Exercise

Place = Callable[[int, Tensor, int], tuple[Any, Any]]


def _place(padded: int, pad: Tensor, step: int) -> tuple[Tensor, Tensor]:
    at = torch.full_like(pad, padded + step)
    return at, at - pad


_PLACES: dict[str, tuple[Place, str]] = {
    "slot without padding": (
        lambda padded, pad, step: (padded + step - pad, padded + step - pad),
        "You took the padding off the slot too. The cache stores padded positions as well, so that all rows write at "
        "one place; row 0 of yours writes among its padding, where the mask hides the new token from itself.",
    ),
    "position with padding": (
        lambda padded, pad, step: (torch.full_like(pad, padded + step),) * 2,
        "The position counts the padding. Prefill gave the first real token position 0, so that the new token now "
        "seems further from its prompt than it is: rotary embeddings see that distance. Short rows go wrong, full "
        "rows do not, and a test with one prompt does not notice.",
    ),
    "one early": (
        lambda padded, pad, step: (
            torch.full_like(pad, padded + step - 1),
            padded + step - 1 - pad,
        ),
        "One too early: the prompt fills slots 0 to padded - 1, and you overwrite its last token.",
    ),
    "one late": (
        lambda padded, pad, step: (
            torch.full_like(pad, padded + step + 1),
            padded + step + 1 - pad,
        ),
        "One too late: the first decoded token (step 0) goes right behind the prompt, to slot `padded`. Yours leaves "
        "an empty slot that attention reads.",
    ),
    "steps not counted": (
        lambda padded, pad, step: (torch.full_like(pad, padded), padded - pad),
        "Every step writes to the same slot and overwrites the token before: a slot that is not advanced, as in the "
        "failure above. Add the step.",
    ),
    "swapped": (
        lambda padded, pad, step: _place(padded, pad, step)[::-1],
        "Slot and position are swapped: the slot counts padding, the position does not.",
    ),
}


def _listed(values: Any) -> list[int]:
    return [int(v) for v in values]


def _check_place(answer: Any) -> str | None:
    cases = [
        (6, torch.tensor([4, 0]), 0),
        (6, torch.tensor([4, 0]), 3),
        (5, torch.tensor([0, 2, 1]), 1),
    ]
    got = []
    for padded, pad, step in cases:
        pair = answer(padded, pad.clone(), step)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            return "place must return two sequences, (slot [B], position [B])."
        if any(getattr(p, "ndim", 1) == 0 or not hasattr(p, "__len__") for p in pair):
            return "Give one slot and one position for each row: two sequences of length B, not single numbers."
        got.append(tuple(_listed(p) for p in pair))

    def same_as(form: Place) -> bool:
        return got == [tuple(_listed(p) for p in form(*case)) for case in cases]

    if same_as(_place):
        return None
    for name, (form, _) in _PLACES.items():
        if same_as(form):
            return name
    return (
        f"For prompts padded to 6 with pad = [4, 0], step 0 writes slots [6, 6] at positions [2, 6]; yours are "
        f"{got[0][0]} and {got[0][1]}."
    )


EXERCISES = (
    Exercise(
        id="06a.slot_and_position",
        notebook="06a_fixed_cache",
        title="Slot and position under left padding",
        minutes=10,
        difficulty=2,
        check=_check_place,
        function="place(padded, pad, step) that returns (slot [B], position [B]).",
        wrong=dict(_PLACES),
        solution="""
import torch

def place(padded, pad, step):
    slot = torch.full_like(pad, padded + step)   # one slot for all rows: padding is stored too
    return slot, slot - pad                      # positions count real tokens only

answer = place
""",
    ),
)

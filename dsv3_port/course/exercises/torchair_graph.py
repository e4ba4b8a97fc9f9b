"""Exercises of 07_torchair_graph."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ...count.tape import Tape
from ...errors import PortError
from . import Exercise

# ---- a mask that asks the host for nothing -------------------------------------------------------

ROOM = 12
_SLOTS = ([3, 7], [0, 11], [5, 5])


def _visible(slot: Tensor, room: int) -> Tensor:
    return torch.arange(room, device=slot.device) <= slot.unsqueeze(1)


def _by_list(slot: Tensor, room: int) -> Tensor:
    return torch.stack([torch.arange(room) <= n for n in slot.tolist()])


def _without_itself(slot: Tensor, room: int) -> Tensor:
    return torch.arange(room) < slot.unsqueeze(1)


def _first_row(slot: Tensor, room: int) -> Tensor:
    return (torch.arange(room) <= slot[0]).expand(len(slot), room)


def _hidden(slot: Tensor, room: int) -> Tensor:
    return ~_visible(slot, room)


def _only_filled(slot: Tensor, room: int) -> Tensor:
    longest = int(slot.max()) + 1
    return torch.arange(longest) <= slot.unsqueeze(1)


_MASKS = {
    "host read": (
        _by_list,
        "The slots are read on the host: it waits for the device in every step, and a capture refuses it. "
        "Compare tensors with tensors: arange(room) against slot with a new last axis.",
    ),
    "new token hidden": (
        _without_itself,
        "The new token has been written at `slot` when attention runs, and a token attends to itself: "
        "position `slot` must be visible too.",
    ),
    "one row for all": (
        _first_row,
        "Every row got the first row's slot. Rows of a batch may stand at different places: keep the "
        "batch axis, slot.unsqueeze(1).",
    ),
    "inverted": (_hidden, "True means visible; yours is True where a key must be hidden."),
    "cut to what is filled": (
        _only_filled,
        "The shape follows the values: it needs the longest slot on the host, and the next step "
        "has another shape, so another graph. A static mask covers all of `room` and hides the "
        "rest.",
    ),
}


def _check_mask(answer: Any) -> str | None:
    slots = [torch.tensor(s) for s in _SLOTS]
    want = [_visible(s, ROOM) for s in slots]
    plain = answer(slots[0].clone(), ROOM)
    if not isinstance(plain, Tensor) or plain.dtype != torch.bool:
        return f"visible must return a boolean tensor, not {getattr(plain, 'dtype', type(plain).__name__)}."
    if plain.shape != want[0].shape:
        return (
            "cut to what is filled"
            if plain.shape == _only_filled(slots[0], ROOM).shape
            else (
                f"The mask must be [B, room] = {list(want[0].shape)}; yours is {list(plain.shape)}."
            )
        )
    for name in ("new token hidden", "one row for all", "inverted"):
        if torch.equal(plain, _MASKS[name][0](slots[0], ROOM)):
            return name
    if not torch.equal(plain, want[0]):
        return "With slots 3 and 7, keys 0 to 3 of the first row and 0 to 7 of the second must be True, no others."
    try:
        tape = Tape.capture(lambda slot: answer(slot, ROOM), slots[0])
    except PortError:
        return "host read"
    replayed = [tape.replay(s).clone() for s in slots]
    if all(torch.equal(a, b) for a, b in zip(replayed, want, strict=True)):
        return None
    return "Right when it is called, wrong when it is replayed: some value was fixed at capture."


# ---- which lengths to compile for ----------------------------------------------------------------

PROMPT_LENGTHS = (35, 90, 118, 120, 131, 250, 480, 500, 760, 900)  # one request each
MOST_GRAPHS = 3


def padding_waste(lengths: Any, prompts: Any = PROMPT_LENGTHS) -> int:
    """Padded positions that are computed for nothing, each prompt at the shortest length that holds
    it."""
    return sum(min(n for n in lengths if n >= p) - p for p in prompts)


def _best() -> tuple[int, ...]:
    sets = (c for c in combinations(PROMPT_LENGTHS, MOST_GRAPHS) if max(c) == max(PROMPT_LENGTHS))
    return min(sets, key=padding_waste)


_LENGTHS = {
    "one length": (
        [1024],
        "One graph for all prompts is INPUT_MAX_LEN as the old sample has it: correct, and most of what is "
        "computed is padding. You may compile three.",
    ),
    "powers of two": (
        [128, 256, 1024],
        "Powers of two ignore the traffic: 131 tokens pad to 256 and 480 to 1024. Choose lengths that "
        "occur: a graph length just below a cluster's longest prompt is never useful.",
    ),
    "a graph each": (
        sorted(PROMPT_LENGTHS),
        "No padding at all, and a compilation for every new length, for ever: the recompilation storm of "
        "this notebook. Three graphs are allowed.",
    ),
    "longest does not fit": (
        [120, 250, 500],
        "The longest prompt has 900 tokens and fits into none of your lengths; pad_left refuses "
        "it. The largest length must hold the longest prompt.",
    ),
}


def _check_lengths(answer: Any) -> str | None:
    try:
        lengths = sorted({int(n) for n in answer})
    except (TypeError, ValueError):
        return "Give a list of up to three prompt lengths, such as [128, 512, 1024]."
    if not lengths or lengths[0] < 1:
        return "Give one positive length at least."
    if len(lengths) > MOST_GRAPHS:
        return "a graph each"
    if lengths[-1] < max(PROMPT_LENGTHS):
        return "longest does not fit"
    if len(lengths) == 1:
        return "one length"
    if lengths == _LENGTHS["powers of two"][0]:
        return "powers of two"
    waste, best = padding_waste(lengths), padding_waste(_best())
    if waste <= best:
        return None
    return (
        f"Your lengths compute {waste} padded positions; {best} is possible with three graphs. Look at the gap "
        "above each prompt."
    )


EXERCISES = (
    Exercise(
        id="07.no_host_read",
        notebook="07_torchair_graph",
        title="A mask that asks the host for nothing",
        minutes=8,
        difficulty=2,
        check=_check_mask,
        function="visible(slot, room) that returns a boolean tensor [B, room].",
        wrong=dict(_MASKS),
        solution="""
import torch

def visible(slot, room):
    return torch.arange(room, device=slot.device) <= slot.unsqueeze(1)

answer = visible
""",
    ),
    Exercise(
        id="07.prompt_lengths",
        notebook="07_torchair_graph",
        title="Three graphs for ten prompts",
        minutes=10,
        difficulty=2,
        check=_check_lengths,
        wrong=dict(_LENGTHS),
        solution="""
from itertools import combinations
from dsv3_port.course.exercises.torchair_graph import PROMPT_LENGTHS, padding_waste

sets = [c for c in combinations(PROMPT_LENGTHS, 3) if max(c) == max(PROMPT_LENGTHS)]
answer = list(min(sets, key=padding_waste))
""",
    ),
)

"""Exercises of 08_aclgraph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...count.tape import Tape
from . import Exercise

# ---- a decode loop over a replayed step ----------------------------------------------------------

Loop = Callable[[Tape, Tensor, int], list[Tensor]]
STEPS, VOCABULARY = 5, 7


def small_step() -> tuple[Tape, Tensor]:
    """A captured step over a vocabulary of 7 (the next logits depend on the token and on a running
    state) and its first token [1, 1]."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(8))
    state = torch.zeros(1, VOCABULARY)

    def step(ids: Tensor) -> Tensor:  # [1, 1] -> [1, V]
        state.mul_(0.5).add_(table[ids[:, 0]])
        return state * 2 - state.mean(-1, keepdim=True)

    tape = Tape.capture(step, torch.tensor([[0]]))
    state.zero_()  # the capture computed as well
    return tape, torch.tensor([[3]])


def _right(tape: Tape, token: Tensor, steps: int) -> list[Tensor]:
    rows = []
    for _ in range(steps):
        rows.append(tape.replay(token).clone())
        token = rows[-1].argmax(-1, keepdim=True)
    return rows


def _not_cloned(tape: Tape, token: Tensor, steps: int) -> list[Tensor]:
    rows = []
    for _ in range(steps):
        rows.append(tape.replay(token))
        token = rows[-1].argmax(-1, keepdim=True)
    return rows


def _rebound(tape: Tape, token: Tensor, steps: int) -> list[Tensor]:
    rows = []
    for _ in range(steps):
        rows.append(tape.run().clone())
        token = rows[-1].argmax(-1, keepdim=True)  # noqa: F841, the mistake: nothing reads it
    return rows


def _same_token(tape: Tape, token: Tensor, steps: int) -> list[Tensor]:
    return [tape.replay(token).clone() for _ in range(steps)]


_LOOPS: dict[str, tuple[Loop, str]] = {
    "output not copied": (
        _not_cloned,
        "All your rows are one tensor: a replay writes its output to the same address every time, so "
        "you hold the last step's logits several times. Clone what must outlive the next replay "
        "(npugraph_ex: clone_output).",
    ),
    "input not copied": (
        _rebound,
        "You gave the variable `token` a new tensor, but the tape reads its own buffer, which still "
        "holds what it was captured with. replay(token) copies it there; run() does not.",
    ),
    "same token": (
        _same_token,
        "Every step got the first token: feed each step the arg max of the logits before it, shape [1, 1].",
    ),
}


def _check_loop(answer: Any) -> str | None:

    def rows_of(loop: Loop) -> list[Tensor]:
        tape, first = small_step()
        return loop(tape, first.clone(), STEPS)

    def same(a: list[Tensor], b: list[Tensor]) -> bool:
        return len(a) == len(b) and all(
            x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True)
        )

    got = rows_of(answer)
    if not isinstance(got, (list, tuple)) or not all(isinstance(g, Tensor) for g in got):
        return f"decode must return a list of tensors, not {type(got).__name__}."
    if len(got) != STEPS:
        return f"decode was asked for {STEPS} steps and returned {len(got)}."
    if same(list(got), rows_of(_right)):
        return None
    for name, (loop, _) in _LOOPS.items():
        if same(list(got), rows_of(loop)):
            return name
    return (
        "The first step that differs from eager decoding: "
        + str(
            next(
                i
                for i, (a, b) in enumerate(zip(got, rows_of(_right), strict=True))
                if not torch.equal(a, b)
            )
        )
        + "."
    )


# ---- copy, capture again, or nothing -------------------------------------------------------------

CHANGES = (
    "next token id",
    "KV cache contents",
    "slot, advanced in the graph",
    "one more sequence in the batch",
    "a new cache for a new request",
    "weights overwritten in place",
    "temperature of the sampler outside",
)
_ACTIONS = ("nothing", "copy", "capture")
_PLAN = dict(
    zip(
        CHANGES,
        ("copy", "nothing", "nothing", "capture", "capture", "nothing", "nothing"),
        strict=True,
    )
)

_PLANS = {
    "cache copied": (
        _PLAN | {"KV cache contents": "copy"},
        "The captured step itself writes the cache, at the addresses it was captured with. Copying "
        "gigabytes a step would cost more than a graph saves.",
    ),
    "slot copied": (
        _PLAN | {"slot, advanced in the graph": "copy"},
        "slot.add_ is one of the captured operators: each replay advances it. A copy from the host is work "
        "for nothing, and wrong as soon as the two disagree.",
    ),
    "token rebound": (
        _PLAN | {"next token id": "nothing"},
        "The sampler makes a new tensor each step; the graph reads its own static input. Without a copy "
        "it decodes the captured token for ever.",
    ),
    "batch copied": (
        _PLAN | {"one more sequence in the batch": "copy"},
        "Another batch size is another shape: every operator of the graph was captured for the old one. "
        "Engines capture one graph for each of a few batch sizes and pad up to them.",
    ),
    "new cache ignored": (
        _PLAN | {"a new cache for a new request": "nothing"},
        "The graph goes on writing to the old cache's addresses: text of another request. Keep one "
        "cache and rewind it, or capture again.",
    ),
    "new cache copied": (
        _PLAN | {"a new cache for a new request": "copy"},
        "A copy would be the whole cache. npugraph_ex captures again when a tensor that is written to "
        "has moved; better still, keep one cache and rewind it.",
    ),
    "weights captured again": (
        _PLAN | {"weights overwritten in place": "capture"},
        "An in-place copy_ keeps the address, and the graph reads there: the next replay uses "
        "the new values. New weight tensors would need a capture.",
    ),
    "temperature captured": (
        _PLAN | {"temperature of the sampler outside": "capture"},
        "The sampler runs on the host, behind the graph: what it does is not captured.",
    ),
}


def _check_plan(answer: Any) -> str | None:
    if not isinstance(answer, dict):
        return "Give a dict: each of CHANGES -> 'nothing', 'copy' or 'capture'."
    missing = [c for c in CHANGES if c not in answer]
    if missing:
        return f"No decision yet for: {', '.join(missing)}."
    odd = [v for v in answer.values() if v not in _ACTIONS]
    if odd:
        return f"{odd[0]!r} is no action; they are {', '.join(_ACTIONS)}."
    wrong = [c for c in CHANGES if answer[c] != _PLAN[c]]
    if not wrong:
        return None
    for name, (plan, _) in _PLANS.items():
        if plan[wrong[0]] == answer[wrong[0]]:
            return name
    return f"Not {answer[wrong[0]]!r} for {wrong[0]!r}: which address does the graph read, and does it change?"


EXERCISES = (
    Exercise(
        id="08.decode_loop",
        notebook="08_aclgraph",
        title="A decode loop over a replayed step",
        minutes=10,
        difficulty=2,
        check=_check_loop,
        function="decode(tape, token, steps) that returns a list of logits [1, V], one for each step.",
        wrong=dict(_LOOPS),
        solution="""
def decode(tape, token, steps):
    rows = []
    for _ in range(steps):
        rows.append(tape.replay(token).clone())          # the next replay overwrites the output
        token = rows[-1].argmax(-1, keepdim=True)        # a new tensor: replay copies it in
    return rows

answer = decode
""",
    ),
    Exercise(
        id="08.what_changed",
        notebook="08_aclgraph",
        title="Copy, capture again, or nothing",
        minutes=6,
        difficulty=1,
        check=_check_plan,
        wrong=dict(_PLANS),
        solution="""
answer = {
    "next token id": "copy",
    "KV cache contents": "nothing",
    "slot, advanced in the graph": "nothing",
    "one more sequence in the batch": "capture",
    "a new cache for a new request": "capture",
    "weights overwritten in place": "nothing",
    "temperature of the sampler outside": "nothing",
}
""",
    ),
)

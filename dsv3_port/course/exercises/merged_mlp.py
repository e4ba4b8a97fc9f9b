"""Exercises of 05_merged_mlp: the order of merging and cutting (names: merged_names.py, loading:
strict_fill.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import Exercise

WIDTH, HIDDEN = 8, 3


def _weights() -> tuple[Tensor, Tensor]:
    """gate and up [I, H] whose values all differ."""
    gate = torch.arange(WIDTH * HIDDEN, dtype=torch.float32).view(WIDTH, HIDDEN)
    return gate, gate + 100


def _cut(x: Tensor, rank: int, world: int, dim: int = 0) -> Tensor:
    share = x.shape[dim] // world
    return x.narrow(dim, rank * share, share)


def _right(gate: Tensor, up: Tensor, rank: int, world: int) -> Tensor:
    return torch.cat((_cut(gate, rank, world), _cut(up, rank, world)))


def _cut_after(gate: Tensor, up: Tensor, rank: int, world: int) -> Tensor:
    return _cut(torch.cat((gate, up)), rank, world)


def _up_first(gate: Tensor, up: Tensor, rank: int, world: int) -> Tensor:
    return _right(up, gate, rank, world)


def _interleaved(gate: Tensor, up: Tensor, rank: int, world: int) -> Tensor:
    return torch.stack((_cut(gate, rank, world), _cut(up, rank, world)), 1).flatten(0, 1)


def _whole(gate: Tensor, up: Tensor, rank: int, world: int) -> Tensor:
    return torch.cat((gate, up))


def _side_by_side(gate: Tensor, up: Tensor, rank: int, world: int) -> Tensor:
    return torch.cat((_cut(gate, rank, world), _cut(up, rank, world)), 1)


def _cut_inputs(gate: Tensor, up: Tensor, rank: int, world: int) -> Tensor:
    return _cut(torch.cat((gate, up)), rank, world, dim=1)


_WRONG = {
    "cut after the merge": (
        _cut_after,
        "You merge first and cut then: with two ranks, rank 0 gets only gate rows and rank 1 "
        "only up rows, and SwiGLU multiplies gate by gate. Cut both, then merge.",
    ),
    "up first": (
        _up_first,
        "The halves are swapped: npu_swiglu applies SiLU to the first half, so gate must come before up. "
        "Shapes agree, which is why nothing complains.",
    ),
    "interleaved": (
        _interleaved,
        "Rows alternate gate, up, gate, up; npu_swiglu splits its input in the middle. All gate rows of "
        "this rank come first, then all its up rows.",
    ),
    "whole": (
        _whole,
        "Every rank holds everything: nothing was cut. Each rank keeps I/W rows of gate and I/W of up.",
    ),
    "side by side": (
        _side_by_side,
        "You joined along the inputs (dimension 1): weights are [out, in], and both products need the "
        "same inputs. Join along dimension 0.",
    ),
    "cut the inputs": (
        _cut_inputs,
        "You cut the inputs (dimension 1). gate and up are cut by outputs (column cut); the row cut "
        "belongs to down_proj, whose all-reduce then completes the block.",
    ),
}


def _check_merge(answer: Any) -> str | None:
    gate, up = _weights()
    cases = [(rank, world) for world in (2, 1) for rank in range(world)]
    got = [answer(gate.clone(), up.clone(), rank, world) for rank, world in cases]
    if not all(isinstance(g, Tensor) for g in got):
        return f"merge_for_rank must return a tensor, not {type(got[0]).__name__}."

    def same_as(form: Any) -> bool:
        return (
            all(
                torch.equal(g, want)
                for g, want in zip(got, (form(gate, up, *c) for c in cases), strict=True)
            )
            if form is not _cut_inputs
            else torch.equal(got[0], form(gate, up, *cases[0]))
        )

    if same_as(_right):
        return None
    for name, (form, _) in _WRONG.items():
        if same_as(form):
            return name
    off = next(
        i for i, case in enumerate(cases) if not torch.equal(got[i], _right(gate, up, *case))
    )
    (rank, world), part = cases[off], got[off]
    rows = WIDTH // world
    both = f"{rank * rows} to {(rank + 1) * rows - 1}"
    return (
        f"Rank {rank} of {world} should hold {2 * rows} rows, gate {both}, then up {both}, first numbers "
        f"{_right(gate, up, rank, world)[:, 0].tolist()}; yours has shape {list(part.shape)} and first numbers "
        f"{part.flatten(1)[:, 0].tolist()}."
    )


EXERCISES = (
    Exercise(
        id="05.merge_for_rank",
        notebook="05_merged_mlp",
        title="Merge and cut in the right order",
        minutes=10,
        difficulty=2,
        check=_check_merge,
        function="merge_for_rank(gate, up, rank, world) that returns this rank's merged weight.",
        wrong=dict(_WRONG),
        solution="""
import torch

def merge_for_rank(gate, up, rank, world):
    rows = gate.shape[0] // world
    return torch.cat((gate.narrow(0, rank * rows, rows), up.narrow(0, rank * rows, rows)))

answer = merge_for_rank
""",
    ),
)

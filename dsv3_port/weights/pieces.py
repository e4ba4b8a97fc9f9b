"""A parameter of one rank's model as data: a target, filled by pieces.

A piece is a cut of one published tensor along one dimension, brought into the target's form by a
pure function, and placed in a block of leading rows of the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

# of a matrix that becomes int8 (int8.py): its codes [N, K], the scale of each row [N, 1], the zeros
# [N, 1] that the vendor's format keeps beside it; "" of any other tensor
Part = Literal["", "codes", "scale", "offset"]


def same(x: Tensor) -> Tensor:
    return x


def kv_b_to_w_k(x: Tensor, nope: int, value: int) -> Tensor:
    """kv_b_proj rows of N heads [N*(Dn+Dv), R] -> kv_b_proj_w_k [N, Dn, R]: turns a query into
    latent space."""
    w_k: Tensor = x.unflatten(0, (-1, nope + value)).narrow(1, 0, nope)
    return w_k


def kv_b_to_w_v(x: Tensor, nope: int, value: int) -> Tensor:
    """kv_b_proj rows of N heads [N*(Dn+Dv), R] -> kv_b_proj_w_v [N, R, Dv]: turns a latent into a
    head's value."""
    w_v: Tensor = x.unflatten(0, (-1, nope + value)).narrow(1, nope, value).transpose(1, 2)
    return w_v


@dataclass(frozen=True, slots=True)
class Piece:
    """`transform(source.narrow(dim, start, length))` fills `target[at].narrow(0, offset, rows)`:
    contiguous rows."""

    source: str
    source_shape: tuple[int, ...]
    dim: int
    start: int
    length: int
    at: tuple[int, ...]
    offset: int
    rows: int
    transform: Callable[[Tensor], Tensor] = same
    unit: int = 1  # rows that a cut keeps together: those of a head
    part: Part = ""

    def start_of(self, rank: int) -> int:
        """Where the cut begins on another rank, for a piece of rank 0: ranks differ in nothing
        else."""
        return 0 if self.length == self.source_shape[self.dim] else rank * self.length

    def cut(self, source: Tensor) -> Tensor:
        """The block of the target that this piece fills, from the whole published tensor, or from
        the part of it that the piece is of."""
        return self.transform(source.narrow(self.dim, self.start, self.length))

    def block(self, target: Tensor) -> Tensor:
        """The rows of the target that this piece fills."""
        return (target[self.at] if self.at else target).narrow(0, self.offset, self.rows)

    def place(self, source: Tensor, target: Tensor) -> None:
        self.block(target).copy_(self.cut(source))


@dataclass(frozen=True, slots=True)
class Target:
    """One parameter of one rank: its name in the model, shape, pieces. float32 and int8 are kept
    whatever the model's dtype."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    keep_float32: bool = False
    component: str = field(
        default="", compare=False
    )  # for memory tables: embedding, attention, dense, experts, ...
    int8: bool = False

    def dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        if self.int8:
            return torch.int8
        return torch.float32 if self.keep_float32 else model_dtype

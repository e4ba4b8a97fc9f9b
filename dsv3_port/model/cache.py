"""The KV cache: growing by concatenation (upstream) or written in place at a fixed size
(ported).

What is stored is the attention's business: ExpandedAttention keeps keys [B, N, L,
Dn+Dr] and values [B, N, L, Dv], LowRankAttention one latent row [B, 1, L, R+Dr].
`widths` lists (heads, width) of each stored tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import ops
from ..errors import PortError

Write = Callable[[Tensor, Tensor, Tensor], Tensor]


def _random(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """As a normalised row has them; of int8 the codes of such values."""
    values = torch.randn(shape, generator=generator)
    return values.to(dtype) if dtype.is_floating_point else (values * 32).to(dtype)


def write_at_slot(buffer: Tensor, new: Tensor, slot: Tensor) -> Tensor:
    """buffer [B, heads, L, width] with new [B, heads, S, width] written at positions
    slot [B] and after, in place; returns the buffer itself."""
    ops.scatter_update_(buffer, slot, new, -2)
    return buffer


class Cache:
    """What both forms share: how many positions are filled, and how many of them are
    left padding in each row.

    `length` is a host number (shapes, limits); `slot` [B] int64 is the same number as a
    tensor, for graphs.
    """

    def __init__(
        self,
        layers: int,
        widths: list[tuple[int, int]],
        batch: int,
        max_length: int,
        device: torch.device | str,
        dtype: torch.dtype | Sequence[torch.dtype],
    ) -> None:
        """dtype: of all stored tensors, or one for each of `widths`."""
        self.layers, self.widths, self.batch, self.max_length = (
            layers,
            widths,
            batch,
            max_length,
        )
        self.device = torch.device(device)
        if isinstance(dtype, torch.dtype):
            dtype = [dtype] * len(widths)
        self.dtypes = list(dtype)
        self.dtype = self.dtypes[0]
        self.length = 0
        self.behind = [0] * batch  # positions that a row has less than `length`
        self.slot = torch.zeros(batch, dtype=torch.int64, device=device)
        self.pad = torch.zeros(batch, dtype=torch.int64, device=device)
        self.buffers: list[list[Tensor]] = []
        self.write: Write = write_at_slot  # the fixed form's; `new_cache` hands it on
        self.reset()

    def require_capacity(self, new: int) -> None:
        if self.length + new > self.max_length:
            raise PortError(
                f"the cache holds {self.max_length} positions; {self.length} are used and {new} more do "
                "not fit: make it with a larger max_length"
            )

    def advance(self, new: int) -> None:
        self.length += new

    def retract(self, counts: list[int]) -> None:
        """Row b gives its last counts[b] positions back, and its next ones take their
        place; `length` is then the longest row's."""
        held = [self.length - b - n for b, n in zip(self.behind, counts, strict=True)]
        if min(held) < 0:
            row = held.index(min(held))
            raise PortError(
                f"row {row} of the cache holds {held[row] + counts[row]} positions, and {counts[row]} "
                "cannot be given back"
            )
        self.length = max(held)
        self.behind = [self.length - n for n in held]
        if any(counts):
            self.slot.sub_(torch.tensor(counts, device=self.device))

    def end(self, row: int) -> None:
        """A sequence is done: a form that keeps room for each gives it to others."""

    def adopt(self, one: Cache, row: int) -> None:
        """Copy a sequence prefilled in a cache of its own into this row."""
        if (
            self.length == 0
        ):  # the growing form has no room before it is given something
            for layer, buffers in enumerate(one.buffers):
                new = (b.new_zeros(self.batch, *b.shape[1:]) for b in buffers)
                self.update(layer, *new)
            self.slot.fill_(one.length)
            self.advance(one.length)
        self.pad[row] = one.pad[0]
        for mine, its in zip(self.buffers, one.buffers, strict=True):
            for target, source in zip(mine, its, strict=True):
                target[row, :, : one.length].copy_(source[0])

    @property
    def nbytes(self) -> int:
        """Bytes that the stored tensors take now."""
        return sum(t.nbytes for layer in self.buffers for t in layer)

    def nbytes_for(self, batch: int, length: int) -> int:
        """Bytes that a cache of this form holds for `batch` sequences of `length`
        positions."""
        stored = zip(self.widths, self.dtypes, strict=True)
        row = sum(heads * width * dtype.itemsize for (heads, width), dtype in stored)
        return self.positions_for(batch, length) * row * self.layers

    def positions_for(self, batch: int, length: int) -> int:
        return batch * length

    def fill_random(self, length: int, seed: int = 0) -> None:
        """Pretend that `length` positions were processed; for timing only."""
        self.reset()
        self.require_capacity(length)
        generator = torch.Generator().manual_seed(seed)
        for layer in range(self.layers):
            values = [
                _random((self.batch, heads, length, width), dtype, generator)
                for (heads, width), dtype in zip(self.widths, self.dtypes, strict=True)
            ]
            self.update(layer, *(v.to(self.device) for v in values))
        self.slot.fill_(length)
        self.length = length

    def reset(self) -> None:
        raise NotImplementedError

    def update(self, layer: int, *new: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def narrow(self, length: int) -> Cache:
        """A cache of the first `length` positions in the same memory; `slot` and `pad`
        are shared, `length` isn't. Where a form has no room to spare: itself."""
        return self

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        shortest = self.length - max(self.behind)
        if any(self.behind) and length > shortest:
            raise PortError(
                f"rewind to {length} positions: a row of the cache holds {shortest}"
            )
        self.behind = [0] * self.batch
        self.length = length
        self.slot.fill_(length)


class GrowingCache(Cache):
    """Upstream: every step allocates a longer tensor and copies the old one into it."""

    def reset(self) -> None:
        self.buffers = [
            [
                torch.empty(
                    self.batch, heads, 0, width, device=self.device, dtype=self.dtype
                )
                for heads, width in self.widths
            ]
            for _ in range(self.layers)
        ]
        self.rewind(0)

    def update(self, layer: int, *new: Tensor) -> list[Tensor]:
        """new [B, heads, S, width] each -> everything so far [B, heads, length + S,
        width]."""
        self.buffers[layer] = [
            torch.cat((old, add), 2)
            for old, add in zip(self.buffers[layer], new, strict=True)
        ]
        return self.buffers[layer]

    def rewind(self, length: int) -> None:
        super().rewind(length)
        self.buffers = [
            [t[:, :, :length].contiguous() for t in layer] for layer in self.buffers
        ]

    def retract(self, counts: list[int]) -> None:
        raise PortError(
            "rows of a growing cache cannot be cut one by one, as drafts that were refused need it: take "
            "cache 'fixed' (step 'fixed_kv_cache') or 'paged'"
        )


class FixedCache(Cache):
    """Ported: the whole buffer is allocated once; npu scatter_update_ writes at `slot`,
    addresses never change."""

    def reset(self) -> None:
        if not self.buffers:
            self.buffers = [
                [
                    torch.zeros(
                        self.batch,
                        heads,
                        self.max_length,
                        width,
                        device=self.device,
                        dtype=self.dtype,
                    )
                    for heads, width in self.widths
                ]
                for _ in range(self.layers)
            ]
        self.rewind(0)  # what lies behind a row's end is masked until it is overwritten

    def update(self, layer: int, *new: Tensor) -> list[Tensor]:
        """new [B, heads, S, width] each -> the whole buffers [B, heads, max_length,
        width]."""
        kept = self.buffers[layer]
        for i, add in enumerate(new):
            written = self.write(kept[i], add, self.slot)
            if written is not kept[i]:  # another form than ours may make a new tensor
                kept[i] = written
        return kept

    def narrow(self, length: int) -> Cache:
        if self.write is not write_at_slot:  # it may make new tensors
            return self
        part = copy.copy(self)
        part.max_length = length
        part.buffers = [[t[:, :, :length] for t in layer] for layer in self.buffers]
        return part

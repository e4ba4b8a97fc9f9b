"""The paged KV cache: fixed blocks that sequences take when they cross a boundary and
give back at their end (arXiv 2309.06180, section 4).

Row b's position p, counted from its first real token, is row p % block of block
table[b, p // block]: its slot over all blocks is block_id * block + p % block. Padding
has no position, takes no room, and its slot is negative, which the writing operators
skip. Block 0 belongs to nobody and stays zero: entries of the table that are not in use
point there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..errors import PortError
from .cache import Cache, FixedCache, GrowingCache

STEP, MOST = 16, 1024  # of a block for the absorbed form of fused attention
NOBODY = 0  # the block of unused entries
Slots = Callable[[Tensor, Tensor, int], Tensor]  # as `slot_mapping`


@dataclass(frozen=True)
class Paging:
    """How a paged cache is laid out. block_size: positions a block. blocks: of the whole
    cache; None: as many as its sequences can fill. poison: written into blocks that are
    given back (tests: NaN), so that whatever still reads them shows."""

    block_size: int = 128
    blocks: int | None = None
    poison: float | None = None

    def __post_init__(self) -> None:
        size = self.block_size
        if size % STEP or not STEP <= size <= MOST:
            raise PortError(
                f"a paged cache's block_size is {size}: npu_fused_infer_attention_score_v2 takes a "
                f"multiple of {STEP} in {STEP}..{MOST} (128 is usual)"
            )
        if self.blocks is not None and self.blocks < 1:
            raise PortError(
                f"a paged cache of {self.blocks} blocks: it needs one at least"
            )


@dataclass
class PagedStep:
    """What one forward call needs of a paged cache."""

    index: Tensor  # [B * S] int64: slot of each new row, negative where none is written
    table: Tensor  # [B, blocks of a sequence] int32
    # valid keys of each sequence, the new ones with them: numbers of the host, or [B]
    lengths: Sequence[int] | Tensor
    positions: Tensor  # [B, S] of the new rows, negative for padding


def slot_mapping(table: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """positions [B, S] of the sequences of table [B, M] -> slots [B * S] int64; -1 for a
    negative position."""
    block = positions.clamp(min=0) // block_size
    slot = positions + (table.gather(1, block) - block) * block_size
    return torch.where(positions < 0, -1, slot).flatten()


def _ends(positions: Tensor) -> Tensor:
    """positions [B, S] -> valid keys of each sequence after them [B]."""
    return (positions[:, -1:].flatten() + 1).clamp(min=0)


class PagedCache(Cache):
    """Blocks [blocks + 1, block_size, heads, width] of each stored tensor and layer, and
    one table for all layers. `kv_lengths`: valid keys of each sequence in the step that
    `expect` announced."""

    def __init__(
        self,
        layers: int,
        widths: list[tuple[int, int]],
        batch: int,
        max_length: int,
        device: torch.device | str,
        dtype: torch.dtype | Sequence[torch.dtype],
        paging: Paging | None = None,
    ) -> None:
        self.paging = paging or Paging()
        self.slots: Slots = slot_mapping  # `new_cache` hands the model's on
        self.block_size = self.paging.block_size
        self.most = -(-max_length // self.block_size)  # blocks of one sequence
        self.blocks = self.paging.blocks or batch * self.most
        self.free = list(range(self.blocks, NOBODY, -1))
        self.owned: list[list[int]] = [[] for _ in range(batch)]
        self.pads = [0] * batch  # the host's copy of `pad`
        self.kv_lengths = [0] * batch
        self.table = torch.zeros(batch, self.most, dtype=torch.int32, device=device)
        super().__init__(layers, widths, batch, max_length, device, dtype)

    @property
    def room(self) -> int:
        """Positions that a row of the table can hold."""
        return self.most * self.block_size

    @property
    def in_use(self) -> int:
        """Blocks that sequences hold now."""
        return sum(map(len, self.owned))

    def positions_for(self, batch: int, length: int) -> int:
        """In whole blocks, and the one that belongs to nobody."""
        return (batch * -(-length // self.block_size) + 1) * self.block_size

    def reset(self) -> None:
        if not self.buffers:
            shape = (self.blocks + 1, self.block_size)
            self.buffers = [
                [
                    torch.zeros(*shape, *width, device=self.device, dtype=dtype)
                    for width, dtype in zip(self.widths, self.dtypes, strict=True)
                ]
                for _ in range(self.layers)
            ]
        self.pad.zero_()
        self.pads = [0] * self.batch
        self.rewind(0)

    def require_capacity(self, new: int) -> None:
        """Room for `new` more positions, or PortError; takes the blocks that they
        need. The first call reads `pad` from the device."""
        super().require_capacity(new)
        if self.length == 0 and not self.pad.is_meta:
            self.pads = [int(n) for n in self.pad.tolist()]
        self._take(range(self.batch), self.length + new)

    def expect(self, new: int) -> None:
        """The next step adds `new` positions."""
        if self.table.is_cpu:  # on a device it would wait for the host
            self.check_table()
        self.kv_lengths = [
            self._held(row, self.length + new) for row in range(self.batch)
        ]

    def check_table(self) -> None:
        """PortError where the table, which a caller may have written, names a block that
        does not exist."""
        for row, blocks in enumerate(self.table.tolist()):
            for block in blocks:
                if not NOBODY <= block <= self.blocks:
                    raise PortError(
                        f"the block table of row {row} names block {block}: the cache has blocks "
                        f"1..{self.blocks}, and {NOBODY} for entries that are not in use"
                    )

    def step(self, positions: Tensor, on_device: bool) -> PagedStep:
        """For a step at positions [B, S] of the sequences, negative for padding.
        on_device: lengths as a tensor, for a graph that cannot take numbers."""
        index = self.slots(self.table, positions, self.block_size)
        lengths = _ends(positions) if on_device else self.kv_lengths
        return PagedStep(index, self.table, lengths, positions)

    def update(self, layer: int, *new: Tensor) -> list[Tensor]:
        """new [B, 1, S, width] each, written at `slot` as they are; the blocks."""
        positions = torch.arange(new[0].shape[2], device=self.device)
        positions = positions + (self.slot - self.pad).unsqueeze(1)
        rows = [x.transpose(1, 2).flatten(0, 1).contiguous() for x in new]
        index = self.slots(self.table, positions, self.block_size)
        self._scatter(layer, rows, index)
        return self.buffers[layer]

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions; blocks behind them are given
        back."""
        super().rewind(length)
        for row in range(self.batch):
            self._give(row, self._blocks(row, length))
        self._show()

    def retract(self, counts: list[int]) -> None:
        """As Cache.retract; blocks behind a row's end are given back."""
        super().retract(counts)
        back = [self._give(r, self._blocks(r, self.length)) for r in range(self.batch)]
        if any(back):
            self._show()

    def end(self, row: int) -> None:
        """A sequence is done: its blocks are given back, nothing of it is written or
        read any more, and its outputs mean nothing."""
        self._give(row, 0)
        self._show()
        self.pads[row] = self.max_length  # before every position
        self.pad[row] = self.max_length

    def place(self, row: int, blocks: Sequence[int]) -> None:
        """Give an empty row these very blocks, as a scheduler with a table of its own
        does. PortError where one does not exist or is taken."""
        for block in blocks:
            if not NOBODY < block <= self.blocks:
                raise PortError(
                    f"block {block} of row {row} is out of range: the cache has blocks 1..{self.blocks}"
                )
            if block not in self.free or list(blocks).count(block) > 1:
                raise PortError(f"block {block} of row {row} is taken already")
        if self.owned[row] or len(blocks) > self.most:
            raise PortError(
                f"row {row} holds {len(self.owned[row])} blocks and can hold {self.most}: "
                f"{len(blocks)} more cannot be placed there"
            )
        # in place: a RowCache's rows share these lists
        self.free[:] = [block for block in self.free if block not in blocks]
        self.owned[row] += blocks
        self._show()

    def adopt(self, one: Cache, row: int) -> None:
        """Copy a sequence prefilled in a cache of its own into this row."""
        assert isinstance(one, PagedCache)
        if self.length == 0:
            self.slot.fill_(one.length)
            self.advance(one.length)
        self.pad[row], self.pads[row] = one.pad[0], one.pads[0]
        self._take([row], one.length)
        here = torch.arange(one.length - one.pads[0], device=self.device).unsqueeze(0)
        source = one.slots(one.table, here, one.block_size)
        target = self.slots(self.table[row : row + 1], here, self.block_size)
        for layer, buffers in enumerate(one.buffers):
            rows = [b.flatten(0, 1)[source] for b in buffers]
            self._scatter(layer, rows, target)

    def gathered(self, layer: int, step: PagedStep) -> list[Tensor]:
        """Each stored tensor in the order of the sequences [B, heads, room, width]; 0
        behind their lengths, whatever lies there."""
        lengths = _ends(step.positions).view(-1, 1, 1, 1)
        there = torch.arange(self.room, device=self.device).view(-1, 1) < lengths
        found = [b[step.table.long()].flatten(1, 2) for b in self.buffers[layer]]
        return [torch.where(there, x.transpose(1, 2), 0) for x in found]

    def _scatter(self, layer: int, rows: list[Tensor], index: Tensor) -> None:
        ops.write_slots(rows, self.buffers[layer], index)

    def _held(self, row: int, length: int) -> int:
        """Positions of a row's sequence when the longest row has `length`, padding left
        out."""
        return max(0, length - self.behind[row] - self.pads[row])

    def _blocks(self, row: int, length: int) -> int:
        return -(-self._held(row, length) // self.block_size)

    def _take(self, rows: Sequence[int], length: int) -> None:
        """Blocks for the first `length` positions of these rows; all of them or none."""
        wanted = {row: self._blocks(row, length) - len(self.owned[row]) for row in rows}
        missing = {row: n for row, n in wanted.items() if n > 0}
        if sum(missing.values()) > len(self.free):
            raise PortError(
                f"the paged cache has {len(self.free)} of {self.blocks} blocks free, and "
                f"{sum(missing.values())} are needed for position {length}: end a sequence first, or "
                "make the cache with more blocks"
            )
        for row, n in missing.items():
            self.owned[row] += [self.free.pop() for _ in range(n)]
        if missing:
            self._show()

    def _give(self, row: int, keep: int) -> bool:
        """All blocks of a row but its first `keep` are free again; whether there were any."""
        back = self.owned[row][keep:]
        del self.owned[row][keep:]
        self.release(back)
        return bool(back)

    def release(self, blocks: Sequence[int]) -> None:
        """Blocks are free for others; what was in them is poisoned, if `paging` says so."""
        self.free += reversed(blocks)
        poison = self.paging.poison
        if blocks and poison is not None:
            for buffer in (b for layer in self.buffers for b in layer):
                whole = not buffer.is_floating_point()  # int8 has no NaN
                buffer[list(blocks)] = 127 if whole else poison

    def _show(self) -> None:
        """The table as the device sees it, where it always was."""
        rows = [own + [NOBODY] * (self.most - len(own)) for own in self.owned]
        self.table.copy_(torch.tensor(rows, dtype=torch.int32))


CACHE: dict[str, type[Cache]] = {
    "growing": GrowingCache,
    "fixed": FixedCache,
    "paged": PagedCache,
}

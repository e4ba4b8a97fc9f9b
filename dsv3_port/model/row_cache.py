"""A paged cache whose rows begin and end on their own, as continuous batching needs it
(arXiv 2309.06180, section 4.3; Orca, OSDI 2022).

rows[b] is a paged cache of one sequence over the same blocks: its table, slot and pad are
row b of the whole one's. A prompt is prefilled there, and a step of all rows finds it
where it lies. A row that no sequence has is idle: its padding reaches behind every
position, so nothing of it is written (slot -1), and its table names nothing but the
block of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import PortError
from .cache import Cache
from .paged_cache import PagedCache, Paging

IDLE = 1 << 40  # positions of padding: more than steps that anybody makes


class RowCache(PagedCache):
    """`begin` gives an idle row to a sequence of at most `limit` positions, `end` takes
    it back. Blocks are taken when a sequence crosses a boundary, and all that it may come
    to need are promised at its beginning: no running row ever waits for one."""

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
        self.rows: list[PagedCache] = []
        self.running = [False] * batch
        self.idle_length = 0  # keys that an idle row reads; all of them are zeros
        super().__init__(layers, widths, batch, max_length, device, dtype, paging)
        self.rows = [self._one(row) for row in range(batch)]
        self.reset()

    def _one(self, row: int) -> PagedCache:
        """Row `row` in this cache's memory. The lists of blocks are shared too."""
        one, here = PagedCache.__new__(PagedCache), slice(row, row + 1)
        own = ("rows", "running", "idle_length")
        vars(one).update(
            {name: value for name, value in vars(self).items() if name not in own},
            batch=1,
            length=0,
            behind=[0],
            pads=[0],
            kv_lengths=[0],
            owned=self.owned[here],
            table=self.table[here],
            slot=self.slot[here],
            pad=self.pad[here],
        )
        return one

    @property
    def lengths(self) -> list[int]:
        """Positions of each row's sequence; 0 of an idle row."""
        return [one.length for one in self.rows]

    @property
    def available(self) -> int:
        """Blocks that no row has and none was promised."""
        rows = zip(self.rows, self.running, strict=True)
        promised = [self.blocks_of(one.max_length) for one, runs in rows if runs]
        return len(self.free) + self.in_use - sum(promised)

    def blocks_of(self, length: int) -> int:
        """How many blocks a sequence of `length` positions takes."""
        return -(-length // self.block_size)

    def begin(self, row: int, limit: int) -> PagedCache:
        """An idle row for a sequence of at most `limit` positions: an empty cache to prefill
        its prompt in. PortError where the row runs, where the limit is out of range, or
        where so many blocks cannot be promised."""
        if self.running[row]:
            raise PortError(f"row {row} of the cache runs a sequence: end it first")
        if not 1 <= limit <= self.max_length:
            raise PortError(
                f"a sequence of {limit} positions in row {row}: each row of the cache holds 1 to "
                f"{self.max_length}"
            )
        if self.blocks_of(limit) > self.available:
            raise PortError(
                f"{self.available} of the cache's {self.blocks} blocks are not promised, and a sequence "
                f"of {limit} positions may take {self.blocks_of(limit)}: end another one first"
            )
        one = self.rows[row]
        one.max_length, one.slots = limit, self.slots
        one.reset()
        self.running[row] = True
        return one

    def end(self, row: int) -> None:
        """A sequence is done: its blocks are given back, and the row is idle."""
        one = self.rows[row]
        one.end(0)
        one.length, one.pads = 0, [IDLE]
        one.pad.fill_(IDLE)
        self.running[row] = False

    def rewind(self, length: int) -> None:
        """Only to 0: all rows end. Rows have lengths of their own."""
        if length:
            raise PortError(
                f"rewind to {length}: each row of this cache has a length of its own; rewind a row"
            )
        for row in range(len(self.rows)):
            self.end(row)
        self.length = 1  # no step of all rows is the first of a prompt

    def retract(self, counts: list[int]) -> None:
        """Each running row gives its last positions back, as refused drafts do."""
        for one, runs, count in zip(self.rows, self.running, counts, strict=True):
            if runs and count:
                one.retract([count])

    def require_capacity(self, new: int) -> None:
        """Blocks for `new` more positions of each running row; PortError where one is then
        longer than it was begun for."""
        running = [row for row, runs in enumerate(self.running) if runs]
        for row in running:
            one = self.rows[row]
            if one.length + new > one.max_length:
                raise PortError(
                    f"row {row} of the cache was begun for {one.max_length} positions: {one.length} are "
                    f"used and {new} more do not fit; end it"
                )
        for row in running:
            self.rows[row].require_capacity(new)

    def expect(self, new: int) -> None:
        """The next step adds `new` positions to each running row."""
        self.kv_lengths = [self.idle_length] * self.batch
        for row, one in enumerate(self.rows):
            one.expect(new)  # checks the row of the table
            if self.running[row]:
                self.kv_lengths[row] = one.kv_lengths[0]

    def advance(self, new: int) -> None:
        for one, runs in zip(self.rows, self.running, strict=True):
            if runs:
                one.advance(new)

    def adopt(self, one: Cache, row: int) -> None:
        """Copy a sequence prefilled in a cache of its own into a row that was begun."""
        self.rows[row].adopt(one, 0)

    def fill_random(self, length: int, seed: int = 0) -> None:
        self.reset()
        for row in range(self.batch):
            self.begin(row, self.max_length).fill_random(length, seed + row)

"""One source tensor on its way: read in tiles of rows, dequantised, cut for every rank, hashed and
written.

A tile is a few MiB whatever the tensor, so that memory depends on the number of workers and on
nothing else. The file calls, torch's kernels and XXH3 release Python's lock: threads overlap
reading, computing and writing.
"""

from __future__ import annotations

import math
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...errors import PortError
from ..content import hasher
from ..fp8 import BLOCK, FP8_MAX, dequantize_blocks, dequantized_bands
from ..int8 import dequantize_rows, parts_of, quantize_bands
from ..layout import same
from ..pieces import Part
from ..values import ValueCheck, check_offsets
from .contents import Contents
from .plan import Block, Source

if TYPE_CHECKING:
    from .ranks import RankWriter

TILE = 8 << 20  # values in a tile


class Stopped(Exception):
    """The job ends early; what this worker was doing is given up."""


class Reader:
    """Reads parts of stored tensors into this thread's buffers, without mapping files: a file that
    shrinks meanwhile is an error, not a bus error."""

    def __init__(self) -> None:
        self._mine = threading.local()

    def buffer(self, what: str, nbytes: int) -> Tensor:
        """`nbytes` of this thread's memory called `what`, made once: fresh memory costs a page
        fault every 4 KiB."""
        held: Tensor | None = getattr(self._mine, what, None)
        if held is None or held.numel() < nbytes:
            held = torch.empty(nbytes, dtype=torch.uint8)
            setattr(self._mine, what, held)
        return held[:nbytes]

    def rows(self, source: Source, first: int, count: int, what: str = "stored") -> Tensor:
        """`count` rows from `first` as stored; the memory, called `what`, is used again by the next
        call of this thread."""
        file, name, shape = source.file, source.name, source.shape
        row = math.prod(shape[1:]) * source.dtype.itemsize
        into = self.buffer(what, count * row)
        view, at = memoryview(into.numpy().data), source.offset + first * row
        try:
            fd = os.open(
                file, os.O_RDONLY
            )  # for this call: a source may have more files than a limit
            try:
                while len(view) and (done := os.preadv(fd, [view], at)):
                    view, at = view[done:], at + done
            finally:
                os.close(fd)
        except OSError as error:
            raise PortError(f"{file}: {name} cannot be read: {error.strerror or error}") from error
        if len(view):
            raise PortError(
                f"{file}: ends inside {name}: it was cut short while it was read; download it again "
                "and run the same command, what is written stays"
            )
        return into.view(source.dtype).view(count, *shape[1:])

    def values(self, passing: Passing, first: int, count: int, dtype: torch.dtype) -> Tensor:
        """The same in `dtype`, FP8 blocks dequantised; `first` is then a multiple of 128."""
        source = passing.source
        stored = self.rows(source, first, count)
        finite = passing.tile(stored, first)
        if stored.dtype == dtype:
            return stored
        out = self.buffer("values", stored.numel() * dtype.itemsize).view(dtype).view(stored.shape)
        if stored.dtype == torch.int8:
            return out.copy_(dequantize_rows(stored, self.row_scale(passing, first, count)))
        if source.scale is None:
            passing.fits(out.copy_(stored), stored.dtype)
            return out
        scale = self.block_scale(passing, first, count)
        with _named(source):
            dequantize_blocks(stored, scale, dtype, out, finite)
        passing.fits(out, stored.dtype, float(scale.max()) * FP8_MAX)
        return out

    def bands(self, passing: Passing, first: int, count: int) -> Iterator[Tensor]:
        """The same in float32, 128 rows after the other: what is made of a band finds it in the
        processor's cache. It may lie where the one before it lay."""
        source = passing.source
        stored = self.rows(source, first, count)
        finite = passing.tile(stored, first)
        if source.scale is None:
            yield from (rows.float() for rows in stored.split(BLOCK))
            return
        scale = self.block_scale(passing, first, count)
        with _named(source):
            bands = dequantized_bands(stored, scale, finite)
        highest = float(scale.max()) * FP8_MAX
        for values in bands:
            passing.fits(values, stored.dtype, highest)
            yield values

    def block_scale(self, passing: Passing, first: int, count: int) -> Tensor:
        """Of FP8 blocks."""
        assert passing.source.scale is not None
        scale = self.rows(passing.source.scale, first // BLOCK, -(-count // BLOCK), "scale")
        passing.scales(scale, first // BLOCK)
        return scale

    def row_scale(self, passing: Passing, first: int, count: int) -> Tensor:
        """Of int8 rows: their scale [count, 1]; their offsets, where there are any, were zero."""
        source = passing.source
        assert source.scale is not None
        scale = self.rows(source.scale, first, count, "scale")
        passing.scales(scale, first, "weight_scale")
        if source.zero is not None:
            check_offsets(
                source.name, source.file, self.rows(source.zero, first, count, "zero"), first
            )
        return scale

    def parts(
        self, passing: Passing, first: int, count: int, dtype: torch.dtype
    ) -> dict[Part, Tensor]:
        """What blocks are cut from: the values in `dtype`; of a matrix that is written as int8, its
        codes and scales, made here or as they are stored."""
        source = passing.source
        if not any(b.piece.part for b in source.blocks):
            return {"": self.values(passing, first, count, dtype)}
        if source.dtype != torch.int8:
            shape = (count, *source.shape[1:])
            codes = self.buffer("codes", math.prod(shape)).view(torch.int8).view(shape)
            return parts_of(*quantize_bands(self.bands(passing, first, count), codes))
        stored = self.rows(source, first, count)
        passing.tile(stored, first)
        return parts_of(stored, self.row_scale(passing, first, count))


class Passing:
    """What is learned of a source tensor while its tiles pass: its hash, and that its values can be
    a model's."""

    def __init__(self, source: Source, allow_nonfinite: bool = False) -> None:
        self.source = source
        self._check = ValueCheck(source.name, source.file, allow_nonfinite)
        self._values, self._scales, self._finite = hasher(), hasher(), True

    def tile(self, stored: Tensor, first: int) -> bool:
        self._values.update(stored.view(torch.uint8).numpy().data)
        self._finite = self._check.tile(stored, first)
        return self._finite

    def scales(self, scale: Tensor, first: int, what: str = "weight_scale_inv") -> None:
        self._scales.update(scale.view(torch.uint8).numpy().data)
        self._check.scales(scale, first, what)

    def fits(self, values: Tensor, stored: torch.dtype, highest: float = 0.0) -> None:
        """PortError where a finite value is infinite in the dtype it is written in. highest: what
        the largest may be, if not what `stored` can hold."""
        highest = highest or torch.finfo(stored).max
        if highest > torch.finfo(values.dtype).max:
            if self._finite and not ValueCheck(self.source.name, self.source.file).tile(values):
                raise PortError(
                    f"{self.source.file}: {self.source.name} has values that are infinite in "
                    f"{str(values.dtype).removeprefix('torch.')}; write bf16 or fp32"
                )

    def end(self) -> None:
        self._check.end()

    def content(self) -> str:
        """The hash of what is stored: values, then scales."""
        found = self._values
        if self.source.scale is not None:
            found = hasher()
            found.update(self._values.digest() + self._scales.digest())
        return str(found.hexdigest())


class Written(NamedTuple):
    """Of one source tensor: the hash of what is stored, and each rank's digests, in order of its
    blocks."""

    content: str
    digests: dict[int, bytes]


def split_source(
    reader: Reader,
    source: Source,
    writers: dict[int, RankWriter],
    stop: threading.Event,
    contents: Contents,
) -> Written:
    """Write every block of `source` for every rank of `writers`; without writers it is read only.

    Raises PortError where it is not what an earlier run read, or a value cannot be a model's."""
    passing = Passing(source, contents.allow_nonfinite)
    blocks = source.blocks
    dtype = torch.float32 if any(b.dtype == torch.float32 for b in blocks) else blocks[0].dtype
    hashes: list[dict[int, Any]] = [{r: hasher() for r in writers} for _ in blocks]
    for k, block in enumerate(blocks):
        if _whole(block):  # the same bytes on every rank: hashed once
            hashes[k] = dict.fromkeys(writers, hasher())
    written = [dict.fromkeys(writers, 0) for _ in blocks]
    turn = zlib.crc32(source.name.encode()) % max(len(writers), 1)
    ranks = [*writers][turn:] + [*writers][:turn]  # two workers seldom write the same file at once
    for first, count in tiles(source.shape, source.at_once):
        if stop.is_set():
            raise Stopped
        parts = reader.parts(passing, first, count, dtype)
        for k, block in enumerate(blocks):
            view = None
            for rank in ranks:
                if view is None or not _whole(block):
                    part, offset = _part(block, rank, parts[block.piece.part], first)
                    if part is None:
                        continue
                    view = memoryview(
                        part.to(block.dtype).contiguous().view(torch.uint8).flatten().numpy().data
                    )
                    hashes[k][rank].update(view)
                writers[rank].write(block.file, block.offset + offset, view)
                written[k][rank] += len(view)
    for k, block in enumerate(blocks):
        for rank, count in written[k].items():
            if count != block.nbytes:
                raise AssertionError(
                    f"{block.target.name} of rank {rank}: {count} bytes of {source.name}, "
                    f"not {block.nbytes}"
                )
    content = passing.content()
    contents.add(source, content)  # that it is another checkpoint comes before what is wrong in it
    passing.end()
    return Written(content, {r: b"".join(h[r].digest() for h in hashes) for r in writers})


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """An error within it names file and tensor."""
    try:
        yield
    except PortError as error:
        raise PortError(f"{source.file}: {source.name}: {error}") from error


def _whole(block: Block) -> bool:
    return block.piece.length == block.piece.source_shape[block.piece.dim]


def tiles(shape: tuple[int, ...], at_once: bool) -> Iterator[tuple[int, int]]:
    """(first row, rows): tiles of whole FP8 blocks, or everything in one where a transform wants
    all rows."""
    rows = shape[0]
    step = rows if at_once else max(BLOCK, TILE // max(math.prod(shape[1:]), 1) // BLOCK * BLOCK)
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def _part(block: Block, rank: int, values: Tensor, first: int) -> tuple[Tensor | None, int]:
    """What of a tile (rows from `first`) belongs to a rank's block, and its first byte in the
    block."""
    piece, start = block.piece, block.piece.start_of(rank)
    if piece.transform is not same:
        return piece.transform(values.narrow(piece.dim, start, piece.length)), 0
    if piece.dim == 0:
        low, high = max(start, first), min(start + piece.length, first + len(values))
        if low >= high:
            return None, 0
        return values.narrow(0, low - first, high - low), (low - start) * (
            block.nbytes // piece.length
        )
    return values.narrow(piece.dim, start, piece.length), first * (block.nbytes // piece.rows)

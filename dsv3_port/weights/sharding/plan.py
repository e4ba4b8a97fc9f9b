"""What a split will read and write, known before the first value is: a rank's files, and every
source tensor with its place and the blocks it fills.

All ranks have the same files, names and shapes; only the values differ. One plan of the files
serves them all. After `sources` nobody asks the checkpoint again.
"""

from __future__ import annotations

import json
import math
import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...config import DeepseekV3Config
from ...parallel import TensorParallel
from ...plan import PortPlan
from ..checkpoint import SCALE, Checkpoint
from ..fp8 import FP8
from ..int8 import OFFSET, with_offsets
from ..int8 import SCALE as ROW_SCALE
from ..int8_formats import ASCEND, beside
from ..layout import Piece, Target, same, targets

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}  # what a split can be written in
CODES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.int8: "I8",
}
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Block:
    """The bytes that one piece fills: contiguous in one file. `number` counts the blocks of a rank
    in file order."""

    number: int
    target: Target
    piece: Piece
    file: int
    offset: int  # from the start of the file
    nbytes: int
    dtype: torch.dtype


@dataclass(frozen=True)
class FilePlan:
    name: str
    head: bytes  # length and header
    size: int


class RankPlan:
    """The files of a rank, their headers, and the place of every block. beside: what its format has
    besides weights, file name -> JSON."""

    def __init__(
        self,
        wanted: list[Target],
        dtype: torch.dtype,
        file_bytes: int,
        beside: dict[str, Any] | None = None,
    ) -> None:
        groups = _groups(wanted, dtype, file_bytes)
        self.targets, self.dtype, self.beside = wanted, dtype, beside or {}
        self.files: list[FilePlan] = []
        self.blocks: list[Block] = []
        for number, group in enumerate(groups):
            name = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
            head, size = _head(group, dtype)
            self.files.append(FilePlan(name, head, len(head) + size))
            at = len(head)
            for target in group:
                for offset, piece, nbytes in blocks_of(target, dtype):
                    self.blocks.append(
                        Block(
                            len(self.blocks),
                            target,
                            piece,
                            number,
                            at + offset,
                            nbytes,
                            target.dtype(dtype),
                        )
                    )
                at += target_bytes(target, dtype)

    @property
    def nbytes(self) -> int:
        return sum(target_bytes(t, self.dtype) for t in self.targets)

    def by_source(self) -> dict[str, list[Block]]:
        table: dict[str, list[Block]] = defaultdict(list)
        for block in self.blocks:
            table[block.piece.source].append(block)
        return dict(table)

    def by_target(self) -> list[tuple[Target, list[Block]]]:
        blocks: dict[str, list[Block]] = defaultdict(list)
        for block in self.blocks:
            blocks[block.target.name].append(block)
        return [(t, blocks[t.name]) for t in self.targets]

    def index(self) -> dict[str, Any]:
        """What model.safetensors.index.json holds."""
        names = {t.name: self.files[blocks[0].file].name for t, blocks in self.by_target()}
        return {"metadata": {"total_size": self.nbytes}, "weight_map": names}


@dataclass(frozen=True, slots=True)
class Source:
    """A published tensor as it lies in the checkpoint, and the blocks of a rank that it fills."""

    name: str
    file: Path
    offset: int  # of its first byte in the file
    shape: tuple[int, ...]
    dtype: torch.dtype  # as stored
    blocks: tuple[Block, ...] = ()
    scale: Source | None = None  # of FP8 blocks, or of int8 rows
    zero: Source | None = None  # the offsets of int8 rows

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def at_once(self) -> bool:
        """Whether a transform of its blocks wants all rows."""
        return any(b.piece.transform is not same for b in self.blocks)

    @property
    def quantised(self) -> bool:
        """Whether its blocks are made of codes and scales that it has not itself."""
        return self.dtype != torch.int8 and any(b.piece.part for b in self.blocks)


def rank_plan(
    config: DeepseekV3Config,
    layout: dict[str, Any],
    world_size: int,
    dtype: str,
    file_bytes: int,
    values: dict[str, Any],
) -> RankPlan:
    """The files of a job. layout: as `layout_of` gives it; values: those of config.json."""
    form = layout.get("quant_format", "")
    plan = PortPlan(**{k: v for k, v in layout.items() if k != "quant_format"})
    found = targets(config, plan, TensorParallel(0, world_size))
    wanted = list(with_offsets(found) if form == ASCEND else found)
    return RankPlan(
        wanted, DTYPES[dtype], file_bytes, beside(values, wanted, form) if form else None
    )


def sources(checkpoint: Checkpoint, plan: RankPlan) -> list[Source]:
    """Every published tensor that the plan needs, in the order of the files: they are read from
    front to back."""

    def stored(name: str, blocks: tuple[Block, ...] = ()) -> Source:
        file, offset, _ = checkpoint.place(name)
        dtype = checkpoint.stored_dtype(name)
        scale = zero = None
        if dtype == FP8:
            scale = stored(name + SCALE)
        elif dtype == torch.int8:
            scale = stored(name + ROW_SCALE)
            zero = stored(name + OFFSET) if name + OFFSET in checkpoint else None
        return Source(name, file, offset, checkpoint.shape(name), dtype, blocks, scale, zero)

    found = [stored(name, tuple(blocks)) for name, blocks in plan.by_source().items()]
    return sorted(found, key=lambda source: (source.file, source.offset))


def target_bytes(target: Target, dtype: torch.dtype) -> int:
    return math.prod(target.shape) * target.dtype(dtype).itemsize


def blocks_of(target: Target, dtype: torch.dtype) -> list[tuple[int, Piece, int]]:
    """(offset, piece, bytes) of each block of a target, in order; they must fill it exactly once."""
    item, found = target.dtype(dtype).itemsize, []
    for piece in target.pieces:
        depth = len(piece.at)
        row = math.prod(target.shape[depth + 1 :])
        matrix = 0
        for index, size in zip(piece.at, target.shape, strict=False):
            matrix = matrix * size + index
        first = (matrix * target.shape[depth] + piece.offset) * row
        found.append((first * item, piece, piece.rows * row * item))
    found.sort(key=lambda block: block[0])
    end = 0
    for offset, piece, nbytes in found:
        if offset != end:
            raise AssertionError(
                f"{target.name}: {piece.source} begins at byte {offset}, the one before ends at {end}"
            )
        end = offset + nbytes
    if end != target_bytes(target, dtype):
        raise AssertionError(
            f"{target.name}: its pieces fill {end} of {target_bytes(target, dtype)} bytes"
        )
    return found


def _groups(wanted: list[Target], dtype: torch.dtype, limit: int) -> list[list[Target]]:
    groups: list[list[Target]] = [[]]
    size = 0
    for target in wanted:
        new = target_bytes(target, dtype)
        if groups[-1] and size + new > limit:
            groups.append([])
            size = 0
        groups[-1].append(target)
        size += new
    return groups


def _head(group: list[Target], dtype: torch.dtype) -> tuple[bytes, int]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for target in group:
        size = target_bytes(target, dtype)
        header[target.name] = {
            "dtype": CODES[target.dtype(dtype)],
            "shape": list(target.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, at

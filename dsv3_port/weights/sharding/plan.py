"""What a split will read and write, known before the first value is: the job's identity, a rank's
files, and every source tensor with its place and the blocks it fills.

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

from ...plan import PortPlan
from ..checkpoint import SCALE, Checkpoint
from ..content import hasher, side_files
from ..fp8 import FP8
from ..layout import Piece, Target, same

FORMAT = 3
LAYOUT_FIELDS = (
    "tensor_parallel",
    "attention",
    "experts",
    "mlp",
)  # what of a plan decides names and shapes
_JOB = (
    "format",
    "source",
    "side_files",
    "world_size",
    "layout",
    "dtype",
    "file_bytes",
    "allow_nonfinite",
)
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}  # what a split can be written in
CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
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
    """The files of a rank, their headers, and the place of every block."""

    def __init__(self, wanted: list[Target], dtype: torch.dtype, file_bytes: int) -> None:
        groups = _groups(wanted, dtype, file_bytes)
        self.targets, self.dtype = wanted, dtype
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
    scale: Source | None = None  # of FP8 blocks

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def at_once(self) -> bool:
        """Whether a transform of its blocks wants all rows."""
        return any(b.piece.transform is not same for b in self.blocks)


def sources(checkpoint: Checkpoint, plan: RankPlan) -> list[Source]:
    """Every published tensor that the plan needs, in the order of the files: they are read from
    front to back."""

    def stored(name: str, blocks: tuple[Block, ...] = ()) -> Source:
        file, offset, _ = checkpoint.place(name)
        dtype = checkpoint.stored_dtype(name)
        scale = stored(name + SCALE) if dtype == FP8 else None
        return Source(name, file, offset, checkpoint.shape(name), dtype, blocks, scale)

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


def layout_of(plan: PortPlan) -> dict[str, Any]:
    """Forms that decide names and shapes. The MTP layer stands there only where it is kept: a split
    without it has the manifest that it always had."""
    fields = (*LAYOUT_FIELDS, "mtp") if plan.mtp else LAYOUT_FIELDS
    return {name: getattr(plan, name) for name in fields}


def fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of config.json and of the name, size and header of every weight file: what tells two
    checkpoints apart before their values are read."""
    text = hasher()
    text.update((checkpoint.path / "config.json").read_bytes())
    for file in checkpoint.files:
        text.update(f"{file.name}:{file.stat().st_size}:".encode())
        text.update(json.dumps(checkpoint.header(file), sort_keys=True).encode())
    return str(text.hexdigest())


def identity(
    checkpoint: Checkpoint,
    world_size: int,
    plan: PortPlan,
    dtype: str,
    file_bytes: int,
    allow_nonfinite: bool = False,
) -> dict[str, Any]:
    """What must agree for two runs to be parts of one job, as far as it is known before values are
    read; their hash, `content`, joins it at the end."""
    source, files = fingerprint(checkpoint), side_files(checkpoint.path)
    layout = layout_of(plan)
    values = (FORMAT, source, files, world_size, layout, dtype, file_bytes, allow_nonfinite)
    return dict(zip(_JOB, values, strict=True))


_HASHES = {
    "source": "source checkpoint",
    "side_files": "files beside the weights",
    "content": "values of the source",
}


def differences(found: dict[str, Any], job: dict[str, Any]) -> str:
    """In what two jobs differ, as words; empty where they are the same."""
    words: list[str] = []
    for name in (*_JOB, "content"):
        mine, its = job.get(name), found.get(name)
        if mine == its or name not in job:
            continue
        if name == "side_files" and isinstance(its, dict) and isinstance(mine, dict):
            words += sorted(f for f in {*mine, *its} if mine.get(f) != its.get(f))
        elif name in _HASHES:
            words.append(_HASHES[name])
        else:
            words.append(f"{name} ({its}, not {mine})")
    return ", ".join(words)

"""The safetensors files of a rank: their content is known before the first value is, so values go
straight to it.

All ranks have the same files, names and shapes; only the values differ. One plan of the files
serves them all.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .layout import Piece, Target

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


class RankWriter:
    """The open files of one rank, at their full size from the start (a sparse file takes no room
    before its values)."""

    def __init__(self, folder: Path, files: list[FilePlan]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._fds: list[int] = []
        self._guard, self._unsynced = threading.Lock(), set(range(len(files)))
        try:
            for file in files:
                fd = os.open(folder / file.name, os.O_RDWR | os.O_CREAT, 0o644)
                self._fds.append(fd)
                if os.fstat(fd).st_size != file.size:
                    os.ftruncate(fd, file.size)
                os.pwrite(fd, file.head, 0)
        except OSError:
            self.close()
            raise

    def write(self, file: int, offset: int, values: memoryview) -> None:
        while len(values):
            done = os.pwrite(self._fds[file], values, offset)
            values, offset = values[done:], offset + done
        with self._guard:
            self._unsynced.add(file)

    def sync(self) -> None:
        """Everything whose write has returned is on the disk afterwards; other threads may go on
        writing."""
        with self._guard:
            files, self._unsynced = self._unsynced, set()
        for file in sorted(files):
            os.fsync(self._fds[file])

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []

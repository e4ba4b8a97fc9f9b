"""What makes a split resumable: a journal for each rank, written only after the values themselves
are on the disk.

A line says that a source tensor is in this rank's files, and the hashes of the blocks it filled.
The first line says to which job it belongs. A line that was cut off by a kill is dropped, and its
tensor is written again: the same bytes to the same place. A lock for each rank keeps two runs
apart; it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...errors import PortError
from ..content import hash_bytes, stamp
from .identity import differences
from .plan import Source

DIGEST = 16  # bytes of an XXH3 hash


class Journal:
    """`done[s]`: whether source number s is written; `digests`: those of the rank's blocks;
    `contents`: name -> hash of what was read of each source that is written; `fresh`: those of them
    whose file has not changed since."""

    def __init__(self, path: Path, job: dict[str, Any], sources: list[Source], blocks: int) -> None:
        """sources: in the order of the job. blocks: how many a rank has."""
        self.path, self.job = path, job
        self._sources = {s.name: [b.number for b in s.blocks] for s in sources}
        self._number = {name: i for i, name in enumerate(self._sources)}
        self.done = bytearray(len(sources))
        self.digests = bytearray(DIGEST * blocks)
        self.contents: dict[str, str] = {}
        self.fresh: set[str] = set()
        self._files = {s.name: s.file.name for s in sources}
        self._stamps = {file.name: stamp(file) for file in dict.fromkeys(s.file for s in sources)}
        self._stream: Any = None

    def load(self) -> bool:
        """Read what an earlier run left, if it is of this job. Raises PortError where it is of
        another one."""
        if not self.path.is_file():
            return False
        good = 0
        seen: dict[str, list[int]] = {}
        with self.path.open("rb") as stream:
            for line in stream:
                entry = _entry(line)
                if entry is None:
                    break
                if good == 0:
                    other = differences(entry, self.job)
                    if other:
                        raise PortError(
                            f"{self.path}: an unfinished split is here that differs in {other}; finish "
                            "it with its own arguments, or start anew with --no-resume"
                        )
                elif "stamps" not in entry:
                    name = entry["source"]
                    self.mark(name, bytes.fromhex(entry["blocks"]), entry["content"])
                    file = self._files[name]
                    if seen.get(file) == self._stamps[file]:
                        self.fresh.add(name)
                seen = entry.get("stamps", seen)
                good += len(line)
        if not good:
            return False
        os.truncate(self.path, good)
        return True

    def open(self) -> None:
        """Begin to append; a new journal starts with its job."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("ab")
        if self._stream.tell() == 0:
            self._append([{"tool": "dsv3-port shard", **self.job}])
        self._append([{"stamps": self._stamps}])

    def mark(self, source: str, digests: bytes, content: str) -> None:
        for k, block in enumerate(self._sources[source]):
            self.digests[block * DIGEST : (block + 1) * DIGEST] = digests[
                k * DIGEST : (k + 1) * DIGEST
            ]
        self.done[self._number[source]] = 1
        self.contents[source] = content

    def record(self, written: list[tuple[str, bytes, str]]) -> None:
        """Note sources whose values were flushed to the disk."""
        self._append(
            [
                {"source": source, "blocks": digests.hex(), "content": content}
                for source, digests, content in written
            ]
        )
        for entry in written:
            self.mark(*entry)

    def _append(self, entries: list[dict[str, Any]]) -> None:
        self._stream.write(b"".join(_line(e) for e in entries))
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def digest(self, block: int) -> bytes:
        return bytes(self.digests[block * DIGEST : (block + 1) * DIGEST])

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _line(entry: dict[str, Any]) -> bytes:
    """An entry behind the hash of its text: a line that was damaged counts as cut off."""
    text = json.dumps(entry).encode()
    return hash_bytes(text).encode() + b" " + text + b"\n"


def _entry(line: bytes) -> dict[str, Any] | None:
    told, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or told != hash_bytes(text).encode():
        return None
    return dict(json.loads(text))


def lock_rank(work: Path, rank: int, name: str) -> FileLock:
    """This process's alone until released; PortError where another run has it."""
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise PortError(
            f"{work.parent}: another run is writing rank {rank}; wait for it, or give each run its own "
            "ranks with --ranks"
        ) from error
    return lock

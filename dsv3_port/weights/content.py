"""What files hold, as a hash: XXH3 with 128 bits, streamed while the bytes pass anyway.

It tells contents apart at the speed of memory. It does not say who made them: whoever can change a
file can change its hash.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import xxhash
from platformdirs import user_cache_dir

from ..errors import PortError
from ..files import write_json

# what lies beside the weights and decides what a model says
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_WORTH = 64 << 20  # bytes of a folder below which reading again is as quick as remembering
_KEPT = 64  # folders remembered
_SETTLED = 2_000_000_000  # ns: a file changed later than this may change again within one tick


def hasher() -> Any:
    return xxhash.xxh3_128()


def hash_bytes(data: bytes | memoryview) -> str:
    return str(xxhash.xxh3_128_hexdigest(data))


def hash_file(file: Path) -> str:
    try:
        return hash_bytes(file.read_bytes())
    except OSError as error:
        raise PortError(f"{file}: cannot be read: {error.strerror or error}") from error


def stays(folder: Path, name: str) -> bool:
    """Whether a file lies in the folder itself, or is a link as the Hugging Face cache makes them:
    into the blobs of a snapshot, or of a cached model where a download folder was made of links."""
    place = (folder / name).resolve().parent
    cached = place.name == "blobs" and place.parent.name.startswith("models--")
    home = folder.resolve()
    snapshot = home.parent.name == "snapshots" and place == home.parent.parent / "blobs"
    return place == home or cached or snapshot


def side_file(folder: Path, name: str) -> Path:
    """Its path. PortError where it is a link to another place: what lies there is not the
    checkpoint's to hand on."""
    if not stays(folder, name):
        raise PortError(
            f"{folder / name}: is a link out of its folder; put the file itself beside the weights"
        )
    return folder / name


def side_files(folder: Path) -> dict[str, str]:
    """Name -> hash of every side file that is there."""
    return {
        name: hash_file(side_file(folder, name))
        for name in SIDE_FILES
        if (folder / name).exists() or (folder / name).is_symlink()
    }


def of_tensors(contents: dict[str, str]) -> str:
    """One hash for a checkpoint, from those of its tensors."""
    return hash_bytes("".join(f"{n}:{contents[n]}\n" for n in sorted(contents)).encode())


def stamp(file: Path) -> list[int]:
    """What changes when a file does: size, times of content and inode, inode. The inode's time
    cannot be set back by a program that sets the content's."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


class Remembered:
    """The hashes of a folder's tensors when they were last read, in the user's cache folder: a
    second look at files whose stamp is the same costs nothing."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        self.stamps = {file.name: stamp(file) for file in files}
        root = Path(user_cache_dir("dsv3-port")) / "hashes"
        self._file = root / f"{hash_bytes(os.fsencode(folder.resolve()))}.json"
        self._known = {
            name: entry["tensors"]
            for name, entry in _load(self._file).items()
            if entry["stamp"] == self.stamps.get(name)
        }
        self._new = False

    def hash_of(self, file: Path, tensor: str) -> str | None:
        found: str | None = self._known.get(file.name, {}).get(tensor)
        return found

    def add(self, file: Path, tensor: str, found: str) -> None:
        held = self._known.setdefault(file.name, {})
        self._new |= held.get(tensor) != found
        held[tensor] = found

    def save(self) -> None:
        """Keep what is known of files that have not changed lately; a place that cannot be written
        costs the next run its time, nothing else."""
        small = sum(size for size, *_ in self.stamps.values()) < _WORTH
        if small or not self._new:
            return
        last = time.time_ns() - _SETTLED
        table = {
            name: {"stamp": self.stamps[name], "tensors": tensors}
            for name, tensors in self._known.items()
            if name in self.stamps and max(self.stamps[name][1:3]) < last
        }
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, table)
            held = sorted(self._file.parent.glob("*.json"), key=lambda f: f.stat().st_mtime)
            for old in held[:-_KEPT]:
                old.unlink(missing_ok=True)
        except OSError:
            pass


def _load(file: Path) -> dict[str, dict[str, Any]]:
    """Empty where the file is missing or anything in it is not as it was written."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        fits = all(
            isinstance(entry["stamp"], list)
            and isinstance(entry["tensors"], dict)
            and all(isinstance(text, str) for text in entry["tensors"].values())
            for entry in table.values()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    return dict(table) if fits else {}

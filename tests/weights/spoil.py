"""Copies of the embedded model to spoil: bytes of a tensor, headers, JSON."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

from dsv3_port.paths import tiny


def copy(folder: Path) -> Path:
    shutil.copytree(tiny(), folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def header(file: Path) -> tuple[int, dict[str, Any]]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return 8 + length, json.loads(stream.read(length))


def place(folder: Path, name: str) -> tuple[Path, int, int]:
    """File, first byte, bytes of a tensor."""
    for file in sorted(folder.rglob("*.safetensors")):
        start, entries = header(file)
        if name in entries:
            first, last = entries[name]["data_offsets"]
            return file, start + first, last - first
    raise KeyError(name)


def peek(folder: Path, name: str) -> bytes:
    file, first, size = place(folder, name)
    return file.read_bytes()[first : first + size]


def poke(folder: Path, name: str, data: bytes, at: int = 0) -> Path:
    file, first, size = place(folder, name)
    assert at + len(data) <= size
    with file.open("r+b") as stream:
        stream.seek(first + at)
        stream.write(data)
    return file


def edit_json(file: Path, **changes: Any) -> None:
    """Top-level values; None removes the key."""
    values = json.loads(file.read_text("utf-8"))
    for key, value in changes.items():
        values.pop(key, None)
        if value is not None:
            values[key] = value
    file.write_text(json.dumps(values, indent=2), "utf-8")

"""Headers of safetensors files: what is where, held against the file's size."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch

from ..errors import PortError
from ..files import lfs_pointer, once
from .fp8 import FP8

DTYPES = {
    "F8_E4M3": FP8,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I8": torch.int8,
}
_MAX_HEADER = 100 << 20


def read_header(file: Path) -> dict[str, Any]:
    """The safetensors header: name -> dtype, shape, offsets; its offsets must fill the file
    exactly."""
    try:
        with file.open("rb") as stream:
            first = stream.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else _MAX_HEADER + 1
            if length > _MAX_HEADER:
                raise ValueError("no safetensors header")
            header: dict[str, Any] = json.loads(stream.read(length), object_pairs_hook=once)
        header.pop("__metadata__", None)
        if not all({"dtype", "shape", "data_offsets"} <= entry.keys() for entry in header.values()):
            raise ValueError("a tensor without dtype, shape or place")
        end = _end_of_data(header)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        pointer = lfs_pointer(file)
        raise PortError(pointer or f"{file}: not readable as safetensors: {error}") from error
    size = file.stat().st_size
    if size != 8 + length + end:
        raise PortError(
            f"{file}: {size} bytes, its header promises {8 + length + end}; the file is truncated or "
            "damaged, download it again"
        )
    return header


def _end_of_data(header: dict[str, Any]) -> int:
    """The tensors must follow each other without a gap or an overlap, each as long as its shape
    says."""
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*entry["shape"], first, last)):
            raise ValueError(f"{name} has a shape or place that isn't made of whole numbers")
        size = math.prod(entry["shape"]) * (
            DTYPES[entry["dtype"]].itemsize if entry["dtype"] in DTYPES else 0
        )
        if first != end or last < first or size and last - first != size:
            raise ValueError(
                f"{name} is at bytes {first} to {last}, which does not fit its neighbours or its shape"
            )
        end = last
    return end

"""The scales of an int8 cache, in a file of their own beside a checkpoint or beside the ranks' folders:
one number a layer, the same on every rank.

FOLDER/kv_cache_scales.safetensors: tensor `model.layers.N.self_attn.kv_scale` [1] float32, the MTP layer's
behind the last; its metadata say what they were made of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from ..errors import PortError
from ..files import write_atomic
from .headers import read_header

FILE = "kv_cache_scales.safetensors"
TENSOR = ".kv_scale"


def write_kv_scales(
    folder: str | Path, scales: Mapping[str, float], made_of: Mapping[str, str]
) -> Path:
    """scales: `model.layers.N.self_attn` -> scale; made_of: words for the metadata. Replaces a file that
    was there; returns its path."""
    file = Path(folder) / FILE
    values = {name + TENSOR: torch.tensor([scale]) for name, scale in scales.items()}
    try:
        write_atomic(file, save(values, metadata={"format": "pt", **made_of}))
    except OSError as error:
        raise PortError(f"{file}: cannot be written: {error.strerror or error}") from error
    return file


def read_kv_scales(folder: str | Path) -> dict[str, float]:
    """`model.layers.N.self_attn` -> scale. PortError where the file is not there, or holds something
    else than positive numbers under these names."""
    file = Path(folder) / FILE
    if not file.is_file():
        raise PortError(
            f"{file}: no such file, and an int8 cache needs a scale for each layer: make it with `dsv3-port "
            f"calibrate --model-dir {folder} --prompts FILE`, or leave +c8 (PortPlan.kv_cache_dtype) out"
        )
    header = read_header(file)
    for name, entry in header.items():
        if not name.endswith(TENSOR) or entry["dtype"] != "F32" or entry["shape"] != [1]:
            raise PortError(
                f"{file}: {name} is {entry['dtype']} {entry['shape']}; it must be a {TENSOR} of F32 [1]: "
                "calibrate again"
            )
    with safe_open(file, framework="pt") as values:
        found = {name: float(values.get_tensor(name)) for name in header}
    for name, scale in found.items():
        if not 0 < scale < math.inf:
            raise PortError(
                f"{file}: {name} is {scale:g}; it must be a positive number: calibrate again"
            )
    return {name.removesuffix(TENSOR): scale for name, scale in found.items()}


def made_of(folder: str | Path) -> dict[str, str]:
    """The metadata of the folder's file."""
    with safe_open(Path(folder) / FILE, framework="pt") as values:
        found: dict[str, str] = dict(values.metadata() or {})
    return found

"""Writing checkpoints in the published form: config.json, an index, safetensors shards; FP8 blocks
or plain BF16."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..config import DeepseekV3Config
from ..errors import PortError
from ..files import appearing
from .checkpoint import INDEX, SCALE
from .fp8 import quantize_blocks, stored_as_fp8


def write_checkpoint(
    path: str | Path,
    config: DeepseekV3Config,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    fp8: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = 4 << 30,
) -> Path:
    """Write values in the published form, shard by shard; the folder gets its name when it is
    complete.

    fp8: matrices of `stored_as_fp8` become e4m3 blocks with scales; the rest is written in `dtype`,
    the correction bias in float32. Raises PortError where `path` exists and is not empty.
    """
    stored = (pair for name, tensor in tensors for pair in _stored(name, tensor, fp8, dtype))
    return write_stored(path, config.replace(fp8=fp8), stored, shard_bytes)


def write_stored(
    path: str | Path,
    config: DeepseekV3Config,
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int = 4 << 30,
) -> Path:
    """The same for tensors that are already as they are to be stored, scales included."""
    target = Path(path)
    if target.exists() and any(target.iterdir()):
        raise PortError(f"{target}: is there and not empty; remove it or give another folder")
    with appearing(target) as work:
        shards: list[list[str]] = []
        total = 0
        for held in _grouped(tensors, shard_bytes):
            save_file(held, work / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})
            shards.append(list(held))
            total += sum(value.nbytes for value in held.values())
        weight_map: dict[str, str] = {}
        for number, names in enumerate(shards):
            file = f"model-{number + 1:05d}-of-{len(shards):06d}.safetensors"
            os.replace(work / f"part-{number}.safetensors", work / file)
            (work / file).chmod(0o644)  # safetensors writes files that only their owner can read
            weight_map |= dict.fromkeys(names, file)
        _json(
            work / INDEX,
            {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
        )
        _json(work / "config.json", config.to_dict())
    return target


def _grouped(
    tensors: Iterable[tuple[str, Tensor]], shard_bytes: int
) -> Iterator[dict[str, Tensor]]:
    held: dict[str, Tensor] = {}
    size = 0
    for name, value in tensors:
        if held and size + value.nbytes > shard_bytes:
            yield held
            held, size = {}, 0
        held[name] = value
        size += value.nbytes
    if held:
        yield held


def _stored(
    name: str, tensor: Tensor, fp8: bool, dtype: torch.dtype
) -> Iterable[tuple[str, Tensor]]:
    if fp8 and stored_as_fp8(name):
        codes, scale = quantize_blocks(tensor)
        return [(name, codes), (name + SCALE, scale)]
    keep = torch.float32 if name.split(".")[-1] == "e_score_correction_bias" else dtype
    return [(name, tensor.to(keep).contiguous())]


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

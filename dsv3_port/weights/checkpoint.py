"""Reading and writing checkpoints: config.json, an index, safetensors shards; FP8 blocks or plain BF16/FP32.

Only safetensors are read. Opening reads headers, never tensor data, so it is quick for the published 163 files.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import DeepseekV3Config
from ..errors import PortError
from .fp8 import FP8, dequantize_blocks, quantize_blocks, scale_shape, stored_as_fp8

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SCALE = "_scale_inv"
_DTYPES = {"F8_E4M3": FP8, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_MAX_HEADER = 100 << 20


class Checkpoint:
    """A checkpoint folder. `names` are those of the values; a value's FP8 scales belong to it and have no name here."""

    def __init__(self, path: Path, config: DeepseekV3Config, where: dict[str, Path],
                 headers: dict[Path, dict[str, Any]]) -> None:
        self.path, self.config = path, config
        self._where, self._headers = where, headers
        self._open: tuple[Path, Any] | None = None
        self.names = [n for n in where if not (n.endswith(SCALE) and n.removesuffix(SCALE) in where)]
        for name in self.names:
            self._check(name)

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Read config, index and headers of a folder; every claim of the index is checked against the shards."""
        folder = Path(path)
        config = DeepseekV3Config.from_pretrained(folder)
        listed = _index(folder)
        headers: dict[Path, dict[str, Any]] = {}
        where: dict[str, Path] = {}
        alone = [] if listed else [_inside(folder, SINGLE, f"{folder}: {SINGLE} is a link to another place")]
        for file in dict.fromkeys(listed.values()) or alone:
            headers[file] = header = _header(file)
            for name in header:
                if name in where:
                    raise PortError(f"{file}: {name} is also in {where[name].name}; one of the shards is stale")
                where[name] = file
        for name, file in listed.items():
            if where.get(name) != file:
                raise PortError(f"{folder / INDEX}: says that {name} is in {file.name}, which does not hold it; "
                                "download index and shards again")
        return cls(folder, config, where, headers)

    @property
    def files(self) -> list[Path]:
        return sorted(self._headers)

    @property
    def nbytes(self) -> int:
        return sum(f.stat().st_size for f in self.files)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._where:
            raise PortError(f"{self.path}: there is no tensor {name}")
        entry: dict[str, Any] = self._headers[self._where[name]][name]
        return entry

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entry(name)["shape"])

    def stored_dtype(self, name: str) -> torch.dtype:
        return _DTYPES[self._entry(name)["dtype"]]

    def _check(self, name: str) -> None:
        """Kind of number, and for FP8 that the scales are there and fit."""
        entry, file = self._entry(name), self._where[name]
        if entry["dtype"] not in _DTYPES:
            raise PortError(f"{file}: {name} is stored as {entry['dtype']}; {', '.join(_DTYPES)} are read")
        if _DTYPES[entry["dtype"]] != FP8:
            return
        if name + SCALE not in self._where:
            raise PortError(f"{file}: {name} is FP8 and its {name + SCALE} is missing; without it "
                            "the values are unknown")
        scale = self._entry(name + SCALE)
        if scale["dtype"] != "F32":
            raise PortError(f"{self._where[name + SCALE]}: {name + SCALE} is stored as {scale['dtype']}; F32 is read")
        if len(entry["shape"]) != 2 or tuple(scale["shape"]) != scale_shape(*entry["shape"]):
            raise PortError(f"{self._where[name + SCALE]}: {name + SCALE} is {scale['shape']}, which does not fit "
                            f"{entry['shape']} in blocks of 128 x 128")

    def raw(self, name: str) -> Tensor:
        """The stored tensor as it is (a view of the file)."""
        self._entry(name)  # an error if there is none
        file = self._where[name]
        try:
            if self._open is None or self._open[0] != file:
                self._open = (file, safe_open(file, framework="pt"))
            return self._open[1].get_tensor(name)
        except Exception as error:  # safetensors raises its own kinds
            raise PortError(f"{file}: {name} cannot be read: {error}") from error

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One tensor in `dtype`, freshly allocated; FP8 blocks are dequantised (float32 product, one rounding)."""
        stored = self.raw(name)
        if stored.dtype != FP8:
            return stored.to(dtype, copy=True)
        try:
            return dequantize_blocks(stored, self.raw(name + SCALE), dtype)
        except PortError as error:
            raise PortError(f"{self._where[name]}: {name}: {error}") from error


def _index(folder: Path) -> dict[str, Path]:
    """name -> file as the index says; empty for a lone model.safetensors."""
    file = folder / INDEX
    if not file.is_file():
        if (folder / SINGLE).is_file():
            return {}
        others = [p.name for p in sorted(folder.glob("*.bin"))[:1] + sorted(folder.glob("*.pt*"))[:1]]
        hint = f"; {others[0]} is a pickle, and only safetensors are read" if others else ""
        raise PortError(f"{folder}: neither {INDEX} nor {SINGLE} is there{hint}")
    try:
        table = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        if not table or not all(isinstance(k, str) and isinstance(v, str) for k, v in table.items()):
            raise ValueError("weight_map must map tensor names to file names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PortError(f"{file}: not a usable index: {error!r}") from error
    shards: dict[str, Path] = {}
    for name, shard in table.items():
        if shard not in shards:  # 163 of them for 91,991 tensors: ask the disk once for each
            shards[shard] = _inside(folder, shard, f"{file}: {name} points to {shard!r}")
    return {name: shards[shard] for name, shard in table.items()}


def _inside(folder: Path, shard: str, what: str) -> Path:
    """The path of a shard, which must lie in the folder itself, or be a link as the Hugging Face cache makes them."""
    path, home = folder / shard, folder.resolve()
    allowed = {home}
    if home.parent.name == "snapshots":
        allowed.add(home.parent.parent / "blobs")
    if path.resolve().parent not in allowed:
        raise PortError(f"{what}, outside its folder; put the shards beside config.json")
    if not path.is_file():
        raise PortError(f"{path}: the index names this shard and it is not there; is the download complete?")
    return path


def _header(file: Path) -> dict[str, Any]:
    """The safetensors header: name -> dtype, shape, offsets; its offsets must fill the file exactly."""
    try:
        with file.open("rb") as stream:
            first = stream.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else _MAX_HEADER + 1
            if length > _MAX_HEADER:
                raise ValueError("no safetensors header")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        if not all({"dtype", "shape", "data_offsets"} <= entry.keys() for entry in header.values()):
            raise ValueError("a tensor without dtype, shape or place")
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PortError(f"{file}: not readable as safetensors: {error}") from error
    size = file.stat().st_size
    if size != 8 + length + end:
        raise PortError(f"{file}: {size} bytes, its header promises {8 + length + end}; the file is truncated or "
                        "damaged, download it again")
    return header


def write_checkpoint(path: str | Path, config: DeepseekV3Config, tensors: Iterable[tuple[str, Tensor]], *,
                     fp8: bool = True, dtype: torch.dtype = torch.bfloat16, shard_bytes: int = 4 << 30) -> Path:
    """Write a checkpoint in the published form, shard by shard; the folder gets its name when it is complete.

    fp8: matrices of `stored_as_fp8` become e4m3 blocks with scales; the rest is written in `dtype`, the correction
    bias in float32. Raises PortError where `path` exists and is not empty.
    """
    target = Path(path)
    if target.exists() and any(target.iterdir()):
        raise PortError(f"{target}: is there and not empty; remove it or give another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        shards: list[list[str]] = []
        held: dict[str, Tensor] = {}
        total = in_shard = 0

        def flush() -> None:
            if held:
                save_file(held, work / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})
                shards.append(list(held))
                held.clear()

        for name, tensor in tensors:
            for key, value in _stored(name, tensor, fp8, dtype):
                if held and in_shard + value.nbytes > shard_bytes:
                    flush()
                    in_shard = 0
                held[key] = value
                in_shard += value.nbytes
                total += value.nbytes
        flush()
        weight_map: dict[str, str] = {}
        for number, names in enumerate(shards):
            file = f"model-{number + 1:05d}-of-{len(shards):06d}.safetensors"
            os.replace(work / f"part-{number}.safetensors", work / file)
            (work / file).chmod(0o644)  # safetensors writes files that only their owner can read
            weight_map |= dict.fromkeys(names, file)
        _json(work / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
        _json(work / "config.json", config.replace(fp8=fp8).to_dict())
        work.chmod(0o755)
        if target.exists():
            target.rmdir()
        os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _stored(name: str, tensor: Tensor, fp8: bool, dtype: torch.dtype) -> Iterable[tuple[str, Tensor]]:
    if fp8 and stored_as_fp8(name):
        codes, scale = quantize_blocks(tensor)
        return [(name, codes), (name + SCALE, scale)]
    keep = torch.float32 if name.split(".")[-1] == "e_score_correction_bias" else dtype
    return [(name, tensor.to(keep).contiguous())]


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

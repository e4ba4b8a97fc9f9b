"""Reading checkpoints: config.json, an index, safetensors shards; FP8 blocks or plain BF16/FP32.

Only safetensors are read. Opening reads headers, never tensor data, so it is quick for the
published 163 files.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..config import DeepseekV3Config
from ..errors import PortError
from ..files import lfs_pointer, once, read_json
from .content import stays
from .fp8 import FP8, dequantize_blocks, scale_shape
from .values import check_values

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SCALE = "_scale_inv"
_DTYPES = {"F8_E4M3": FP8, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_MAX_HEADER = 100 << 20
_FORMATS = {
    ".qweight": "GPTQ's or AWQ's format",
    ".qzeros": "GPTQ's or AWQ's format",
    ".g_idx": "GPTQ's format",
    ".weight_packed": "compressed-tensors' format",
    ".weight_scale": "compressed-tensors' or Ascend's W8A8 format",
    ".weight_offset": "Ascend's W8A8 format",
    ".deq_scale": "Ascend's W8A8 format",
    ".quant_bias": "Ascend's W8A8 format",
    ".absmax": "bitsandbytes' format",
    ".quant_map": "bitsandbytes' format",
}


class Checkpoint:
    """A checkpoint folder. `names` are those of the values; a value's FP8 scales belong to it and
    have no name here."""

    def __init__(
        self,
        path: Path,
        config: DeepseekV3Config,
        where: dict[str, Path],
        headers: dict[Path, dict[str, Any]],
    ) -> None:
        self.path, self.config = path, config
        self._where, self._headers = where, headers
        self._data = {
            file: file.stat().st_size
            - max((e["data_offsets"][1] for e in header.values()), default=0)
            for file, header in headers.items()
        }  # where the values begin
        self._open: tuple[Path, Any] | None = None
        self.names = [
            n for n in where if not (n.endswith(SCALE) and n.removesuffix(SCALE) in where)
        ]
        for name in self.names:
            self._check(name)

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Read config, index and headers of a folder; every claim of the index is checked against
        the shards."""
        folder = Path(path)
        config = DeepseekV3Config.from_pretrained(folder)
        listed = _index(folder)
        headers: dict[Path, dict[str, Any]] = {}
        where: dict[str, Path] = {}
        alone = (
            []
            if listed
            else [_inside(folder, SINGLE, f"{folder}: {SINGLE} is a link to another place")]
        )
        for file in dict.fromkeys(listed.values()) or alone:
            headers[file] = header = _header(file)
            for name in header:
                if name in where:
                    raise PortError(
                        f"{file}: {name} is also in {where[name].name}; one of the shards is stale"
                    )
                where[name] = file
        _refuse_formats(folder, where)
        for name, file in listed.items():
            if where.get(name) != file:
                raise PortError(
                    f"{folder / INDEX}: says that {name} is in {file.name}, which does not hold it; "
                    "download index and shards again"
                )
        return cls(folder, config, where, headers)

    @property
    def files(self) -> list[Path]:
        return sorted(self._headers)

    @property
    def nbytes(self) -> int:
        return sum(f.stat().st_size for f in self.files)

    def header(self, file: Path) -> dict[str, Any]:
        return self._headers[file]

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
            raise PortError(
                f"{file}: {name} is stored as {entry['dtype']}; {', '.join(_DTYPES)} are read"
            )
        if _DTYPES[entry["dtype"]] != FP8:
            if name + SCALE in self._where:
                raise PortError(
                    f"{self._where[name + SCALE]}: {name + SCALE} is there, and {name} is stored as "
                    f"{entry['dtype']}, which has no scales; one of the two is of another checkpoint"
                )
            return
        if name + SCALE not in self._where:
            raise PortError(
                f"{file}: {name} is FP8 and its {name + SCALE} is missing; without it "
                "the values are unknown"
            )
        scale = self._entry(name + SCALE)
        if scale["dtype"] != "F32":
            raise PortError(
                f"{self._where[name + SCALE]}: {name + SCALE} is stored as {scale['dtype']}; F32 is read"
            )
        if len(entry["shape"]) != 2 or tuple(scale["shape"]) != scale_shape(*entry["shape"]):
            raise PortError(
                f"{self._where[name + SCALE]}: {name + SCALE} is {scale['shape']}, which does not fit "
                f"{entry['shape']} in blocks of 128 x 128"
            )

    def place(self, name: str) -> tuple[Path, int, int]:
        """File, first byte and number of bytes of a stored tensor, for readers that want a part of
        it."""
        first, last = self._entry(name)["data_offsets"]
        file = self._where[name]
        return file, self._data[file] + first, last - first

    def raw(self, name: str) -> Tensor:
        """The stored tensor as it is (a view of the file)."""
        self._entry(name)  # an error if there is none
        file = self._where[name]
        try:
            if self._open is None or self._open[0] != file:
                self._open = (file, safe_open(file, framework="pt"))
            tensor: Tensor = self._open[1].get_tensor(name)
            return tensor
        except Exception as error:  # safetensors raises its own kinds
            raise PortError(f"{file}: {name} cannot be read: {error}") from error

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One tensor in `dtype`, freshly allocated; FP8 blocks are dequantised (float32 product,
        one rounding). Raises PortError where a value cannot be a model's (values.py)."""
        stored, file = self.raw(name), self._where[name]
        if stored.dtype != FP8:
            check_values(name, file, stored, None)
            return stored.to(dtype, copy=True)
        scale = self.raw(name + SCALE)
        finite = check_values(name, file, stored, scale)
        try:
            return dequantize_blocks(stored, scale, dtype, finite=finite)
        except PortError as error:
            raise PortError(f"{file}: {name}: {error}") from error


def _refuse_formats(folder: Path, where: dict[str, Path]) -> None:
    """Tensors of other formats, by the names that only these use."""
    for name, file in where.items():
        kind = next((kind for end, kind in _FORMATS.items() if name.endswith(end)), None)
        if kind:
            raise PortError(
                f"{file}: {name} is of {kind}, and only FP8 blocks with scales, BF16, FP16 and FP32 are "
                f"read; take the published checkpoint that {folder.name} was made from"
            )


def _index(folder: Path) -> dict[str, Path]:
    """name -> file as the index says; empty for a lone model.safetensors."""
    file = folder / INDEX
    if not file.is_file():
        if (folder / SINGLE).is_file():
            return {}
        others = [
            p.name for p in sorted(folder.glob("*.bin"))[:1] + sorted(folder.glob("*.pt*"))[:1]
        ]
        hint = f"; {others[0]} is a pickle, and only safetensors are read" if others else ""
        quantised = [p.name for p in sorted(folder.glob("quant_model_*"))[:1]]
        if quantised:
            hint = (
                f"; {quantised[0]} is of Ascend's own quantised format (such as W8A8), and only FP8 blocks, "
                "BF16, FP16 and FP32 are read"
            )
        raise PortError(f"{folder}: neither {INDEX} nor {SINGLE} is there{hint}")
    found = read_json(file)
    table = found.get("weight_map") if isinstance(found, dict) else None
    if (
        not isinstance(table, dict)
        or not table
        or not all(isinstance(name, str) and name for name in table.values())
    ):
        raise PortError(
            f"{file}: not a usable index: weight_map must map tensor names to file names"
        )
    shards: dict[str, Path] = {}
    for name, shard in table.items():
        if shard not in shards:  # 163 of them for 91,991 tensors: ask the disk once for each
            shards[shard] = _inside(folder, shard, f"{file}: {name} points to {shard!r}")
    return {name: shards[shard] for name, shard in table.items()}


def _inside(folder: Path, shard: str, what: str) -> Path:
    """The path of a shard, which must lie in the folder itself, or be a link as the Hugging Face
    cache makes them."""
    path = folder / shard
    if "/" in shard or "\0" in shard or not stays(folder, shard):
        raise PortError(f"{what}, outside its folder; put the shards beside config.json")
    if not path.is_file():
        raise PortError(
            f"{path}: the index names this shard and it is not there; is the download complete?"
        )
    return path


def _header(file: Path) -> dict[str, Any]:
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
            _DTYPES[entry["dtype"]].itemsize if entry["dtype"] in _DTYPES else 0
        )
        if first != end or last < first or size and last - first != size:
            raise ValueError(
                f"{name} is at bytes {first} to {last}, which does not fit its neighbours or its shape"
            )
        end = last
    return end

"""Reading checkpoints: config.json, an index, safetensors shards; FP8 blocks, plain BF16/FP32, or
W8A8.

Only safetensors are read. Opening reads headers, never tensor data, so it is quick for the
published 163 files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..config import DeepseekV3Config
from ..errors import PortError
from ..files import read_json
from .content import stays
from .fp8 import FP8, dequantize_blocks, scale_shape
from .headers import DTYPES, read_header
from .int8 import OFFSET, dequantize_rows, quantize_rows
from .int8 import SCALE as ROW_SCALE
from .int8_formats import DESCRIPTION, FLOAT, INT8, Scheme, scheme_of
from .values import check_offsets, check_values

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ASCEND_INDEX = "quant_model_weight*.safetensors.index.json"  # where msmodelslim wrote it
SCALE = "_scale_inv"
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
    """A checkpoint folder. `names` are those of the values; a value's scales belong to it and have no
    name here. `scheme`: what it says of its types, where it is of a W8A8 format."""

    def __init__(
        self,
        path: Path,
        config: DeepseekV3Config,
        where: dict[str, Path],
        headers: dict[Path, dict[str, Any]],
        scheme: Scheme | None = None,
    ) -> None:
        self.path, self.config, self.scheme = path, config, scheme
        self._where, self._headers = where, headers
        self._data = {
            file: file.stat().st_size
            - max((e["data_offsets"][1] for e in header.values()), default=0)
            for file, header in headers.items()
        }  # where the values begin
        self._open: tuple[Path, Any] | None = None
        ends = (SCALE,) if scheme is None else (SCALE, ROW_SCALE, OFFSET)
        self.names = [
            n for n in where if not any(n.endswith(e) and n.removesuffix(e) in where for e in ends)
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
            headers[file] = header = read_header(file)
            for name in header:
                if name in where:
                    raise PortError(
                        f"{file}: {name} is also in {where[name].name}; one of the shards is stale"
                    )
                where[name] = file
        scheme = scheme_of(folder)
        _refuse_formats(folder, where, (ROW_SCALE, OFFSET) if scheme else ())
        for name, file in listed.items():
            if where.get(name) != file:
                raise PortError(
                    f"{folder / INDEX}: says that {name} is in {file.name}, which does not hold it; "
                    "download index and shards again"
                )
        return cls(folder, config, where, headers, scheme)

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

    def _found(self, name: str) -> dict[str, Any] | None:
        return self._entry(name) if name in self._where else None

    def kind(self, name: str) -> str:
        """W8A8_DYNAMIC of an int8 matrix, else FLOAT."""
        return INT8 if self.stored_dtype(name) == torch.int8 else FLOAT

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entry(name)["shape"])

    def stored_dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._entry(name)["dtype"]]

    def _check(self, name: str) -> None:
        """Kind of number, and for FP8 that the scales are there and fit."""
        entry, file = self._entry(name), self._where[name]
        if entry["dtype"] not in DTYPES:
            raise PortError(
                f"{file}: {name} is stored as {entry['dtype']}; {', '.join(DTYPES)} are read"
            )
        if self.scheme is not None:
            self.scheme.check(name, file, self._found)
        elif entry["dtype"] == "I8":
            raise PortError(
                f"{file}: {name} is stored as I8, and neither config.json (quantization_config) nor "
                f"{DESCRIPTION} says of which format; take the one that belongs to these weights"
            )
        if DTYPES[entry["dtype"]] != FP8:
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
        """One tensor in `dtype`, freshly allocated; FP8 blocks and int8 rows are dequantised (float32
        product, one rounding). Raises PortError where a value cannot be a model's (values.py)."""
        stored, file = self.raw(name), self._where[name]
        if stored.dtype == torch.int8:
            return dequantize_rows(*self.read_int8(name)).to(dtype)
        if stored.dtype != FP8:
            check_values(name, file, stored, None)
            return stored.to(dtype, copy=True)
        scale = self.raw(name + SCALE)
        finite = check_values(name, file, stored, scale)
        try:
            return dequantize_blocks(stored, scale, dtype, finite=finite)
        except PortError as error:
            raise PortError(f"{file}: {name}: {error}") from error

    def read_int8(self, name: str) -> tuple[Tensor, Tensor]:
        """A matrix as int8 codes [N, K] and float32 scale [N, 1]: as they are stored, or made from
        the stored values in float32. PortError where a scale is no normal number above 0."""
        stored, file = self.raw(name), self._where[name]
        if stored.dtype != torch.int8:
            return quantize_rows(self.read(name))
        scale = self.raw(name + ROW_SCALE)
        check_values(name, file, stored, scale, what="weight_scale")
        if name + OFFSET in self:
            check_offsets(name, file, self.raw(name + OFFSET))
        return stored.clone(), scale.clone()


def _refuse_formats(folder: Path, where: dict[str, Path], known: tuple[str, ...]) -> None:
    """Tensors of other formats, by the names that only these use; `known` ends are read."""
    for name, file in where.items():
        if name.endswith(known):
            continue
        kind = next((kind for end, kind in _FORMATS.items() if name.endswith(end)), None)
        if kind:
            raise PortError(
                f"{file}: {name} is of {kind}, and only FP8 blocks with scales, BF16, FP16 and FP32 are "
                f"read; take the published checkpoint that {folder.name} was made from"
            )


def _index(folder: Path) -> dict[str, Path]:
    """name -> file as the index says; empty for a lone model.safetensors."""
    file = folder / INDEX
    if not file.is_file() and (folder / DESCRIPTION).is_file():
        file = next(iter(sorted(folder.glob(ASCEND_INDEX))), file)
    if not file.is_file():
        if (folder / SINGLE).is_file():
            return {}
        others = [
            p.name for p in sorted(folder.glob("*.bin"))[:1] + sorted(folder.glob("*.pt*"))[:1]
        ]
        hint = f"; {others[0]} is a pickle, and only safetensors are read" if others else ""
        quantised = [p.name for p in sorted(folder.glob("quant_model_weight*"))[:1]]
        if quantised:
            hint = f"; {quantised[0]} is of Ascend's own quantised format, and {DESCRIPTION} is missing"
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

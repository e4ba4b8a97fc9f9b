"""What a GE graph says of its operators' results: types and shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# of the message enum DataType; the attributes of operators number types otherwise
# (ge_table.GE_TYPES)
PROTO_TYPES = {
    1: torch.float32,
    2: torch.float16,
    3: torch.int8,
    4: torch.uint8,
    5: torch.int16,
    7: torch.int32,
    8: torch.int64,
    10: torch.uint64,
    11: torch.bool,
    12: torch.float64,
    27: torch.bfloat16,
}
INPUTS = ("Data", "RefData")
# "Tensor(dtype=torch.float32, shape=torch.Size([2, s0])", as torchair notes it: names are sizes
# known at run time only
_META = re.compile(r"Tensor\(dtype=torch\.(\w+), shape=torch\.Size\(\[([^\]]*)\]\)")


@dataclass(frozen=True)
class Promise:
    """What the graph says of one output. None in `shape`: a size that is known at run time only;
    None as `shape`: nothing is said of it."""

    dtype: torch.dtype
    shape: tuple[int | None, ...] | None

    def kept(self, value: Tensor) -> bool:
        return value.dtype == self.dtype and (
            self.shape is None
            or value.dim() == len(self.shape)
            and all(b is None or a == b for a, b in zip(value.shape, self.shape, strict=True))
        )

    def __str__(self) -> str:
        if self.shape is None:
            return str(self.dtype)
        return f"{self.dtype} [{', '.join('?' if n is None else str(n) for n in self.shape)}]"


def declared(described: Any) -> Promise | None:
    """The type and shape in an output's description. torchair writes float32 and no shape where it
    has set neither."""
    dtype = PROTO_TYPES.get(described.dtype)
    if dtype is None:
        return None
    if described.HasField("shape"):
        return Promise(dtype, tuple(None if n < 0 else n for n in described.shape.dim))
    return None if dtype == torch.float32 else Promise(dtype, None)


def noted(kind: str, described: Any) -> Promise | None:
    """torchair describes inputs in the message itself; what it knows of other outputs it leaves as
    a note."""
    if kind in INPUTS:
        dtype = PROTO_TYPES.get(described.dtype)
        return (
            Promise(dtype, tuple(None if n < 0 else n for n in described.shape.dim))
            if dtype
            else None
        )
    found = _META.search(described.attr["_meta"].s.decode()) if "_meta" in described.attr else None
    if found is None or "(" in found[2]:  # Max(1, s0): how many sizes there are cannot be read off
        return None
    dtype = getattr(torch, found[1], None)
    if not isinstance(dtype, torch.dtype):
        return None
    sizes = [n.strip() for n in found[2].split(",") if n.strip()]
    return Promise(dtype, tuple(int(n) if n.isdecimal() else None for n in sizes))

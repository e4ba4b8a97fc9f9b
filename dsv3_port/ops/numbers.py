"""Dtypes as torch_npu numbers them in int arguments, and words that pack several numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import bad

# PyTorch's ScalarType; a torch.dtype given for an int argument arrives as its number
NUMBERS = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int32: 3,
    torch.float16: 5,
    torch.bfloat16: 15,
    torch.qint8: 12,
    torch.quint8: 13,
    torch.qint32: 14,
    torch.quint4x2: 16,
}
INT4 = torch.quint4x2  # eight in an int32


def dtype_named(op: str, argument: str, given: Any, *wanted: torch.dtype) -> torch.dtype:
    """One of `wanted`, given as itself or as its number."""
    for dtype in wanted:
        if given is dtype or (type(given) is int and given == NUMBERS[dtype]):
            return dtype
    names = " or ".join(f"{str(d).removeprefix('torch.')} ({NUMBERS[d]})" for d in wanted)
    raise bad(op, argument, given, names)


def unpack_int4(x: Tensor) -> Tensor:
    """Eight int4 in an int32, the lowest bits first: int32 [.., D/8] -> int8 [.., D]."""
    nibbles = x[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32, device=x.device)
    return (((nibbles & 15) ^ 8) - 8).to(torch.int8).flatten(-2)


def pack_int4(x: Tensor) -> Tensor:
    """int8 [.., D] of -8..7 -> int32 [.., D/8]."""
    parts = (x.to(torch.int64) & 15).unflatten(-1, (-1, 8))
    word = (parts << torch.arange(0, 32, 4, device=x.device)).sum(-1)
    return torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32)


def word_to_scale(scale: Tensor) -> Tensor:
    """The float32 in the low half of npu_trans_quant_param's 64-bit word."""
    return (
        scale.contiguous()
        .view(torch.int32)
        .view(*scale.shape, 2)[..., 0]
        .contiguous()
        .view(torch.float32)
    )


def word_to_offset(scale: Tensor) -> Tensor:
    """The signed 9 bits at 37, as float32."""
    return ((((scale >> 37) & 0x1FF) ^ 0x100) - 0x100).float()

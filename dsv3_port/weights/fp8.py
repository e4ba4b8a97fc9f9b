"""The published FP8 form: e4m3 values in blocks of 128 x 128, one float32 factor a block
(`weight_scale_inv`).

value[r, c] = weight[r, c] * weight_scale_inv[r // 128, c // 128]; the last block of a row or column
may be partial, so 576 rows have 5 scale rows. DeepSeek-V3 report, section 3.3.2, and the
checkpoint's own README_WEIGHTS.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import DeepseekV3Config
from ..errors import PortError
from ..published import FP8_BLOCK

BLOCK = FP8_BLOCK[0]
FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max  # 448
_QUANTISED = {
    "q_proj",
    "q_a_proj",
    "q_b_proj",
    "kv_a_proj_with_mqa",
    "kv_b_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
}


def stored_as_fp8(name: str) -> bool:
    """Whether the published checkpoint keeps this tensor as FP8 blocks: the matrices of attention
    and of all MLPs."""
    parts = name.split(".")
    return len(parts) >= 2 and parts[-1] == "weight" and parts[-2] in _QUANTISED


def kept_plain(config: DeepseekV3Config, name: str) -> bool:
    """Whether `modules_to_not_convert` names the module of this tensor: by its whole name, the
    beginning or the end of it, as transformers reads such lists."""
    module = name.removesuffix(".weight")
    return any(
        module == kept or module.startswith(f"{kept}.") or module.endswith(f".{kept}")
        for kept in config.unconverted
    )


def scale_shape(rows: int, cols: int) -> tuple[int, int]:
    return -(-rows // BLOCK), -(-cols // BLOCK)


def _table() -> Tensor:
    """All 256 e4m3 codes as float32; the two NaN codes stay NaN."""
    return torch.arange(256, dtype=torch.uint8).view(FP8).float()


_CODES = _table()
_SMALLEST = torch.finfo(torch.float32).tiny
_NAN = 0x7F  # 0x7f and 0xff are e4m3's only NaN codes
_KEEP = ~0x4000  # all bits but 14, where the repeated sign would stand
_SHIFTED_LIMIT = 2.0**119  # 256 times the scale must be finite


def dequantize_blocks(
    weight: Tensor,
    scale_inv: Tensor,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    finite: bool = False,
) -> Tensor:
    """[rows, cols] e4m3 and its scales -> [rows, cols] in `dtype`: float32 product, one rounding at
    the end. `out`, if given, takes the values; finite and PortError are those of `dequantized_bands`.
    """
    bands = dequantized_bands(weight, scale_inv, finite)
    out = torch.empty(weight.shape, dtype=dtype) if out is None else out
    for rows, values in zip(out.split(BLOCK), bands, strict=True):
        rows.copy_(values)
    return out


def dequantized_bands(weight: Tensor, scale_inv: Tensor, finite: bool = False) -> Iterator[Tensor]:
    """[rows, cols] e4m3 and its scales -> the float32 values of 128 rows after the other. They stay
    in the processor's cache: each band lies where the one before it lay.

    `finite` says that no code is NaN, where the caller has looked. Raises PortError, at once, where
    the scale grid does not belong to the shape, or a scale is not a normal number above 0.
    """
    rows, cols = weight.shape
    want = scale_shape(rows, cols)
    if tuple(scale_inv.shape) != want:
        raise PortError(
            f"weight_scale_inv is {list(scale_inv.shape)}; {rows} x {cols} in blocks of {BLOCK} needs "
            f"{list(want)}"
        )
    scale = scale_inv.float()
    low, high = (float(x) for x in scale.aminmax())
    if not _SMALLEST <= low <= high < math.inf:  # a NaN compares false
        raise PortError(
            "weight_scale_inv holds a negative, infinite or NaN value, 0 or a subnormal number"
        )
    by_column = scale.repeat_interleave(BLOCK, 1)[:, :cols]  # [scale rows, cols]
    return _bands(weight.view(torch.uint8), by_column, high < _SHIFTED_LIMIT, finite)


def _bands(codes: Tensor, by_column: Tensor, room: bool, finite: bool) -> Iterator[Tensor]:
    """room: the scales leave room for `by_shifts`."""
    shape = min(BLOCK, len(codes)), codes.shape[1]
    half, values = torch.empty(shape, dtype=torch.int16), torch.empty(shape)
    for part, factors in zip(codes.split(BLOCK), by_column, strict=True):
        count = len(part)
        if room and (finite or int(part.bitwise_and(_NAN).max()) != _NAN):
            by_shifts(part, factors, half[:count], values[:count])
        else:
            by_table(part, factors, values[:count])
        yield values[:count]


def by_table(codes: Tensor, factors: Tensor, values: Tensor) -> None:
    """float32 `values` = code * factor of its column, for every code: a look-up in the 256 values."""
    torch.mul(
        _CODES.index_select(0, codes.reshape(-1).int()).view(codes.shape), factors, out=values
    )


def by_shifts(codes: Tensor, factors: Tensor, half: Tensor, values: Tensor) -> None:
    """The same for codes that are not NaN, about twice as fast: an e4m3 code is a float16 in
    disguise.

    Sign to bit 15, exponent and mantissa to bits 13..7: read as float16 that is the value / 256,
    subnormals included (the exponents' biases are 7 and 15). 256 goes into the factor, exactly, as
    it is a power of two.
    """
    half.copy_(codes.view(torch.int8))  # int8 -> int16 repeats the sign in the upper bits
    half.bitwise_left_shift_(7).bitwise_and_(_KEEP)
    torch.mul(half.view(torch.float16), factors * 256, out=values)


def quantize_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, cols] -> (e4m3 [rows, cols], float32 scales): each block's largest magnitude becomes
    448."""
    rows, cols = weight.shape
    high, wide = scale_shape(rows, cols)
    padded = torch.zeros(high * BLOCK, wide * BLOCK)
    padded[:rows, :cols] = weight.float()
    blocks = padded.view(high, BLOCK, wide, BLOCK)
    largest = blocks.abs().amax((1, 3))
    scale = torch.where(largest > 0, largest / FP8_MAX, 1.0)
    codes = (blocks / scale[:, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return codes.view(high * BLOCK, wide * BLOCK)[:rows, :cols].contiguous(), scale

"""Quantising: by a scale that is given, or by one that each row's largest value makes."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import (
    bad,
    bounds,
    dtype_of,
    floating,
    for_device,
    one_of,
    readable,
    same_dtype,
    shape_of,
)
from .numbers import INT4, dtype_named, pack_int4
from .table import operator
from .wide import unsupported, wide


def symmetric(x: Tensor, dim: int = -1, most: float = 127.0) -> tuple[Tensor, Tensor]:
    """(int8 of x's shape, float32 scale without dim): scale = max|x| / most, q = rint(x / scale). A row
    of zeros, for which no document says anything, gives scale 0 and zeros."""
    x = wide(x)
    scale = x.abs().amax(dim, keepdim=True) / most
    q = torch.where(scale > 0, x / scale, 0).round().clamp(-most - 1, most)
    return q.to(torch.int8), scale.squeeze(dim).float()


def check_dynamic_quant(
    input: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> None:
    op = "npu_dynamic_quant"
    floating(op, "input", input)
    if for_device(input):
        dtype_of(op, "input", input, torch.float16, torch.bfloat16)
    if input.dim() < 2:
        raise bad(op, "input", input.shape, "of 2 dimensions or more")
    one_of(op, "quant_mode", quant_mode, "pertoken", "perchannel", "pertensor")
    dtype = dtype_named(op, "dst_type", 1 if dst_type is None else dst_type, torch.int8, INT4)
    if dtype is INT4 and input.shape[-1] % 8:
        raise bad(op, "input", input.shape, "with a last dimension divisible by 8 for int4")
    rows, width = input.numel() // max(input.shape[-1], 1), input.shape[-1]
    if smooth_scales is not None:
        same_dtype(op, "smooth_scales", smooth_scales, "input", input)
        if quant_mode == "perchannel":
            shape_of(op, "smooth_scales", smooth_scales, input.shape[-2], 1)
        elif group_index is None:
            shape_of(op, "smooth_scales", smooth_scales, width, names="[input's last dimension]")
    if group_index is None:
        return
    dtype_of(op, "group_index", group_index, torch.int32)
    if smooth_scales is None or group_index.dim() != 1:
        raise bad(op, "group_index", group_index, "1-D, given with smooth_scales [groups, K]")
    shape_of(op, "smooth_scales", smooth_scales, group_index.shape[0], width, names="[groups, K]")
    if readable(group_index) and group_index.numel() and bounds(group_index)[1] != rows:
        raise bad(op, "group_index", group_index.tolist(), f"ascending ends, the last one {rows}")


@operator(check_dynamic_quant)
def npu_dynamic_quant(
    input: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(q, scale): x = input * smooth_scales, scale = max|x| / 127, q = rint(x / scale).

    input [.., K] -> q int8 [.., K], scale float32 [..]: the largest of each row ("pertoken"), of each
    column over the last but one dimension ("perchannel") or of all ("pertensor", scale [1]).
    smooth_scales [K], or [groups, K] with group_index int32: the rows' cumulative ends. dst_type
    quint4x2: 7 in place of 127, eight values in an int32 [.., K/8]. Source: operator document and test
    of Ascend/op-plugin.
    """
    unsupported("npu_dynamic_quant", dst_type_max=dst_type_max or None)
    x = wide(input)
    if smooth_scales is not None and group_index is not None:
        row = torch.arange(x.numel() // x.shape[-1], device=x.device)
        group = torch.searchsorted(group_index.long(), row, right=True)
        x = x * wide(smooth_scales)[group].view(x.shape)
    elif smooth_scales is not None:
        x = x * wide(smooth_scales)
    int4 = dst_type is not None and dtype_named("", "", dst_type, torch.int8, INT4) is INT4
    most = 7.0 if int4 else 127.0
    if quant_mode == "pertensor":
        q, scale = symmetric(x.reshape(1, -1), -1, most)
        q = q.view(x.shape)
    else:
        q, scale = symmetric(x, -1 if quant_mode == "pertoken" else -2, most)
    return pack_int4(q) if int4 else q, scale


def _axis(input: Tensor, axis: int, div_mode: bool) -> int:
    """By division any axis; by multiplication the last but one for -2 and the last for all others."""
    if div_mode:
        return axis % input.dim()
    return input.dim() - (2 if axis == -2 else 1)


def check_quantize(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    dtype: int,
    axis: int = 1,
    div_mode: bool = True,
) -> None:
    op = "npu_quantize"
    floating(op, "input", input)
    if div_mode:
        dtype_named(op, "dtype", dtype, torch.qint8, torch.quint8, torch.qint32)
        dtype_of(op, "scales", scales, torch.float32, torch.bfloat16)
        if zero_points is not None:
            wanted = torch.int8, torch.uint8, torch.int32, torch.bfloat16
            dtype_of(op, "zero_points", zero_points, *wanted)
    else:
        wanted_type = dtype_named(op, "dtype", dtype, torch.qint8, INT4)
        same_dtype(op, "scales", scales, "input", input)
        if zero_points is not None:
            same_dtype(op, "zero_points", zero_points, "scales", scales)
        if wanted_type is INT4 and input.shape[-1] % 8:
            raise bad(op, "input", input.shape, "with a last dimension divisible by 8 for int4")
    if not (-input.dim() if div_mode else -2) <= axis < input.dim():
        raise bad(op, "axis", axis, f"a dimension of the input {list(input.shape)}")
    for name, x in (("scales", scales), ("zero_points", zero_points)):
        if x is None:
            continue
        size = input.shape[_axis(input, axis, div_mode)]
        whole = [1] * input.dim()
        whole[_axis(input, axis, div_mode)] = size
        last_two = x.dim() == input.dim() and list(x.shape) in (whole, [1] * input.dim())
        if not (x.dim() == 1 and x.shape[0] in (1, size)) and not last_two:
            raise bad(op, name, x.shape, f"[{size}] or [1] (or {whole}), along axis {axis}")


@operator(check_quantize)
def npu_quantize(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    dtype: int,
    axis: int = 1,
    div_mode: bool = True,
) -> Tensor:
    """rint(input / scales) + zero_points (div_mode), or rint(input * scales + zero_points), clipped.

    scales, zero_points: [input's size along axis] or [1]. dtype qint8 (12), quint8 (13), qint32 (14);
    by multiplication qint8, or quint4x2 (16): eight in an int32 [.., K/8], and axis is the last
    dimension unless it is -2. Source: operator document and test of Ascend/op-plugin.
    """
    where = _axis(input, axis, div_mode)

    def spread(x: Tensor) -> Tensor:
        shape = [1] * input.dim()
        shape[where] = -1
        return wide(x).reshape(shape)

    x = wide(input)
    if div_mode:
        y = (x / spread(scales)).round()
        y = y if zero_points is None else y + spread(zero_points)
    else:
        y = x * spread(scales)
        y = (y if zero_points is None else y + spread(zero_points)).round()
    kinds = torch.qint8, torch.quint8, torch.qint32, INT4
    kind = dtype_named("npu_quantize", "dtype", dtype, *kinds)
    if kind is torch.qint32:
        return y.to(torch.int32)
    if kind is torch.quint8:
        return y.clamp(0, 255).to(torch.uint8)
    if kind is INT4:
        return pack_int4(y.clamp(-8, 7).to(torch.int8))
    return y.clamp(-128, 127).to(torch.int8)


def check_trans_quant_param(
    scale: Tensor, offset: Tensor | None = None, round_mode: int | None = 0
) -> None:
    op = "npu_trans_quant_param"
    one_of(op, "round_mode", round_mode, None, 0, 1)
    for name, x in (("scale", scale), ("offset", offset)):
        if x is None:
            continue
        dtype_of(op, name, x, torch.float32)
        if x.dim() not in (1, 2) or not x.numel():
            raise bad(op, name, x.shape, "1-D or 2-D, not empty")
    if offset is not None and 1 not in (scale.numel(), offset.numel()):
        shape_of(op, "offset", offset, *scale.shape, names="scale's")


@operator(check_trans_quant_param)
def npu_trans_quant_param(
    scale: Tensor, offset: Tensor | None = None, round_mode: int | None = 0
) -> Tensor:
    """The int64 word of a scale, and of an offset, for the products of int8.

    Bits 0 to 31: scale's float32 without its low 13 bits (round_mode 1: rounded to them, to even);
    bit 46 set; with an offset, rint(offset) in -256..255 as 9 bits at 37. Shape: scale's, or the
    longer of the two. Source: operator document of Ascend/op-plugin.
    """
    bits = scale.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    if round_mode == 1:
        bits = bits + 0xFFF + ((bits >> 13) & 1)
    word = (bits & 0xFFFFE000) | (1 << 46)
    if offset is None:
        return word
    whole = offset.round().clamp(-256, 255).long()
    return (word & 0x4000FFFFFFFF) | ((whole & 0x1FF) << 37)

"""What is computed between two products of int8, quantised at its end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import bad, dtype_of, floating, for_device, one_of, same_dtype, shape_of
from .norm import normalise
from .numbers import dtype_named
from .quantise import symmetric
from .table import operator
from .wide import unsupported, wide


def check_add_rms_norm_dynamic_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    *,
    smooth_scale1: Tensor | None = None,
    smooth_scale2: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-06,
    output_mask: Sequence[bool] | None = None,
    y_dtype: int | None = None,
) -> None:
    op = "npu_add_rms_norm_dynamic_quant"
    floating(op, "x1", x1)
    if for_device(x1):
        dtype_of(op, "x1", x1, torch.float16, torch.bfloat16)
    if x2.shape != x1.shape:
        raise bad(op, "x2", x2.shape, f"{list(x1.shape)}, the shape of x1")
    rows = {"gamma": gamma, "smooth_scale1": smooth_scale1}
    for name, x in {**rows, "smooth_scale2": smooth_scale2, "beta": beta}.items():
        if x is not None:
            shape_of(op, name, x, x1.shape[-1], names="[x1's last dimension]")
            same_dtype(op, name, x, "x1", x1)
    same_dtype(op, "x2", x2, "x1", x1)
    if output_mask:
        first, second = output_mask
        if not (first or second):
            raise bad(op, "output_mask", list(output_mask), "True for one of the two at least")
        for i, (wanted, smooth) in enumerate(((first, smooth_scale1), (second, smooth_scale2))):
            if smooth is not None and not wanted:
                raise bad(op, "output_mask", list(output_mask), f"True beside smooth_scale{i + 1}")


@operator(check_add_rms_norm_dynamic_quant)
def npu_add_rms_norm_dynamic_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    *,
    smooth_scale1: Tensor | None = None,
    smooth_scale2: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-06,
    output_mask: Sequence[bool] | None = None,
    y_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """RMSNorm of x1 + x2 (+ beta), quantised a row at a time by one or two sets of smoothing scales.

    All arithmetic in float32, the sum too. Returns (y1, y2 int8, x = x1 + x2, scale1, scale2 float32).
    Without output_mask the second is there if both smoothing scales are; what is not asked for is
    empty. A row of zeros has scale 1 here, as in the vendor's golden. Source: operator document and
    test of Ascend/op-plugin.
    """
    unsupported("npu_add_rms_norm_dynamic_quant", y_dtype=y_dtype if y_dtype != 1 else None)
    x = wide(x1) + wide(x2)
    y = normalise(x, gamma, epsilon)[0] * wide(gamma)
    y = y if beta is None else y + wide(beta)
    both = smooth_scale1 is not None and smooth_scale2 is not None
    asked = tuple(output_mask) if output_mask else (True, both)

    def one(smooth: Tensor | None, wanted: bool) -> tuple[Tensor, Tensor]:
        if not wanted:
            return x.new_empty(0, dtype=torch.int8), x.new_empty(0, dtype=torch.float32)
        q, scale = symmetric(y if smooth is None else y * wide(smooth))
        return q, torch.where(scale > 0, scale, 1.0)

    (y1, scale1), (y2, scale2) = one(smooth_scale1, asked[0]), one(smooth_scale2, asked[1])
    return y1, y2, x.to(x1.dtype), scale1, scale2


def check_dequant_swiglu_quant(
    x: Tensor,
    *,
    weight_scale: Tensor | None = None,
    activation_scale: Tensor | None = None,
    bias: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    group_index: Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    swiglu_mode: int = 0,
    **other: object,
) -> None:
    op = "npu_dequant_swiglu_quant"
    dtype_of(op, "x", x, torch.int32, torch.float16, torch.bfloat16)
    if x.dim() != 2 or x.shape[1] % 2:
        raise bad(op, "x", x.shape, "[T, 2H]")
    rows, width, half = x.shape[0], x.shape[1], x.shape[1] // 2
    one_of(op, "quant_mode", quant_mode, 0, 1)
    one_of(op, "swiglu_mode", swiglu_mode, 0, 1, 2)
    groups = 1
    if group_index is not None:
        dtype_of(op, "group_index", group_index, torch.int64)
        if group_index.dim() != 1:
            raise bad(op, "group_index", group_index.shape, "[groups], the counts of their rows")
        groups = group_index.shape[0]
        for name, value in (("bias", bias), ("quant_offset", quant_offset)):
            if value is not None:
                raise bad(op, name, value, "None beside a group_index")
        if half > 10496 or half % 64:
            raise bad(
                op, "x", x.shape, "with H divisible by 64 and at most 10496 beside a group_index"
            )
    if x.dtype == torch.int32 and weight_scale is None:
        raise bad(op, "weight_scale", None, "given with x of int32")
    for name, scale, columns in (("weight_scale", weight_scale, width), ("bias", bias, width)):
        if scale is not None:
            dtype_of(op, name, scale, torch.float32 if name == "weight_scale" else torch.int32)
            if scale.numel() != groups * columns or scale.shape[-1] != columns:
                raise bad(op, name, scale.shape, f"[{groups}, {columns}]")
    if activation_scale is not None:
        dtype_of(op, "activation_scale", activation_scale, torch.float32)
        if activation_scale.numel() != rows:
            raise bad(op, "activation_scale", activation_scale.shape, f"[{rows}, 1]")
    for name, scale in (("quant_scale", quant_scale), ("quant_offset", quant_offset)):
        if scale is None:
            continue
        wanted = torch.float32, torch.float16, torch.bfloat16
        dtype_of(op, name, scale, *wanted[: 1 if quant_mode == 0 else 3])
        if scale.numel() not in (groups * half, groups):
            raise bad(op, name, scale.shape, f"[{groups}, {half}]")


def _swiglu(y: Tensor, mode: int, left: bool, numbers: tuple[float, float, float]) -> Tensor:
    """[T, 2H] -> [T, H]; numbers: limit, alpha and bias of the modes that clamp."""
    if mode == 1:
        gate, up = y[:, ::2], y[:, 1::2]
    else:
        first, second = y.chunk(2, -1)
        gate, up = (first, second) if left else (second, first)
    if mode == 0:
        return F.silu(gate) * up
    limit, alpha, bias = numbers
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + bias)


@operator(check_dequant_swiglu_quant)
def npu_dequant_swiglu_quant(
    x: Tensor,
    *,
    weight_scale: Tensor | None = None,
    activation_scale: Tensor | None = None,
    bias: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    group_index: Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    dst_type: int | None = None,
    round_mode: int | None = None,
    activate_dim: int | None = None,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(q int8 [T, H], scale float32 [T]) of SwiGLU of x * weight_scale[group] * activation_scale.

    x [T, 2H] int32 (a product of int8; bias int32 is added first) or 16-bit, weight_scale [G, 2H],
    activation_scale [T, 1], quant_scale [G, H], group_index int64 [G] counts of rows. silu is applied
    to the right half unless activate_left. quant_mode 1: y * quant_scale, scale = max|y| / 127,
    q = rint(y * (127 / max|y|)); 0: q = rint(y / quant_scale + quant_offset), scale 0. swiglu_mode 1
    takes even and odd columns, 2 the halves: the first clamped from above, the second from both sides
    by clamp_limit, alpha and bias as named. Rows behind the groups are undefined: scale NaN here.
    Source: operator document and test of Ascend/op-plugin.
    """
    op = "npu_dequant_swiglu_quant"
    if dst_type is not None:
        dtype_named(op, "dst_type", dst_type, torch.int8)
    unsupported(
        op, round_mode=round_mode or None, activate_dim=None if activate_dim in (None, -1) else 0
    )
    rows = x.shape[0]
    counts = torch.tensor([rows], device=x.device) if group_index is None else group_index
    row = torch.arange(rows, device=x.device)
    group = torch.searchsorted(counts.cumsum(0), row, right=True)
    there, group = group < len(counts), group.clamp(max=len(counts) - 1)

    def of_group(scale: Tensor) -> Tensor:
        return scale.float().reshape(len(counts), -1)[group]

    y = (x if bias is None else x + bias.reshape(-1)).float()
    y = y if weight_scale is None else y * of_group(weight_scale)
    y = y if activation_scale is None else y * activation_scale.reshape(rows, 1)
    y = _swiglu(y, swiglu_mode, activate_left, (clamp_limit, glu_alpha, glu_bias))
    if quant_mode == 1:
        y = y if quant_scale is None else y * of_group(quant_scale)
        most = y.abs().amax(-1)
        # one rounding: Python's 127 / most is a reciprocal and then a product
        factor = torch.full_like(most, 127).div(most)
        q, scale = torch.where(most[:, None] > 0, y * factor[:, None], 0), most / 127
    else:
        y = y if quant_scale is None else y / of_group(quant_scale)
        q = y if quant_offset is None else y + of_group(quant_offset)
        scale = torch.zeros(rows, device=x.device)
    q = torch.where(there[:, None], q, 0).round().clamp(-128, 127).to(torch.int8)
    return q, scale.masked_fill(~there, torch.nan)

"""W8A8: products of int8 matrices with inputs that get int8, and a scale, for each token.

    s[t] = max |x[t]| / 127,  q = rint(x / s)        npu_dynamic_quant
    y = (q W^T) scale[n] s[t]                        an exact int32 sum, float32 factors, one cast

A matrix is int8 [N, K] with one float32 scale for each output (weights/int8.py); the products take it
as [K, N], a view, or laid out so for FRACTAL_NZ (weight_format.py). Between the two
products of an MLP nothing is 16-bit: npu_dequant_swiglu_quant takes the int32 sums. The results of
the operators are 16-bit; a float32 model, which no NPU takes, has the int32 sums scaled here.

A row cut gives each rank some of the inputs: each quantises its own, by its own s, and the ranks'
sums are of numbers that one rank alone does not have. A column cut changes no bit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..errors import PortError
from ..ops.numbers import NUMBERS
from ..ops.plain import group_of_rows
from ..ops.providers import GroupedMatmul, by_torch_npu

SIXTEEN_BIT = (torch.bfloat16, torch.float16)
UNIT = 64  # npu_dequant_swiglu_quant takes such widths where rows are of groups


def require_int8(device: str, dtype: torch.dtype, gmm: GroupedMatmul) -> None:
    """PortError where W8A8 has no operator."""
    if device == "npu" and dtype not in SIXTEEN_BIT:
        raise PortError(
            f"w8a8 on an NPU has bfloat16 or float16 beside int8, not {str(dtype).removeprefix('torch.')}: "
            "npu_dynamic_quant takes no other"
        )
    if gmm is not by_torch_npu:
        raise PortError(
            "w8a8 multiplies its experts by torch_npu's npu_grouped_matmul: leave GMM_PROVIDER at auto"
        )


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., K] -> int8 codes [T, K], float32 scale of each token [T]."""
    return ops.npu_dynamic_quant(x.flatten(0, -2))


def product(
    codes: Tensor,
    token_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """codes [T, K], weight int8 [K, N], scale [N, 1] -> [T, N] in `dtype`."""
    flat = scale.flatten()
    if dtype in SIXTEEN_BIT:
        return ops.npu_quant_matmul(
            codes,
            weight,
            flat,
            pertoken_scale=token_scale,
            output_dtype=NUMBERS[dtype],
        )
    return sums(codes, weight, scale).to(dtype) * flat * token_scale[:, None]


def sums(codes: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The int32 sums alone: [T, K] x [K, N] -> [T, N]."""
    number = NUMBERS[torch.int32]
    return ops.npu_quant_matmul(codes, weight, scale.flatten(), output_dtype=number)


def linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """[..., K], weight int8 [K, N] -> [..., N], as the layer of float weights."""
    y = product(*quantised(x), weight, scale, x.dtype)
    return y.unflatten(0, x.shape[:-1])


def swiglu(
    total: Tensor, token_scale: Tensor, scale: Tensor, counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """int32 sums [T, 2I] of [gate | up], scale [2I, 1] or [E, 2I, 1] with the rows of each expert ->
    codes [T, I] and scales [T] of silu(gate) * up. activate_left: the operator's default is silu of
    the right half."""
    factors = scale.flatten(-2).view(-1, total.shape[-1])
    width = total.shape[-1] // 2
    fill = -width % UNIT if counts is not None else 0
    if fill:  # zeros behind each half: a small model's rows are not made larger by them
        total, factors = (
            F.pad(t.unflatten(-1, (2, -1)), (0, fill)).flatten(-2)
            for t in (total, factors)
        )
    codes, scales = ops.npu_dequant_swiglu_quant(
        total,
        weight_scale=factors,
        activation_scale=token_scale[:, None],
        group_index=counts,
        activate_left=True,
        quant_mode=1,
    )
    return (codes[:, :width].contiguous() if fill else codes), scales


def grouped_product(
    codes: Tensor,
    token_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    ends: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """codes [T, K] sorted by expert, weight int8 [E, K, N], scale [E, N, 1], ends [E] int64 -> [T, N].

    The operator wants the scale in bfloat16 for a bfloat16 result, in float32 for float16.
    """
    factors = scale.squeeze(-1)
    if dtype in SIXTEEN_BIT:
        return ops.npu_grouped_matmul(
            [codes],
            [weight],
            scale=[factors],
            per_token_scale=[token_scale],
            group_list=ends,
            split_item=3,
            group_type=0,
            group_list_type=0,
            output_dtype=NUMBERS[dtype],
        )[0]
    total = grouped_sums(codes, weight, ends).to(dtype)
    return total * factors[group_of_rows(ends, len(codes))] * token_scale[:, None]


def grouped_sums(codes: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The int32 sums alone."""
    return ops.npu_grouped_matmul(
        [codes],
        [weight],
        group_list=ends,
        split_item=3,
        group_type=0,
        group_list_type=0,
        output_dtype=NUMBERS[torch.int32],
    )[0]


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the scale that `grouped_product` takes in a model of `dtype`."""
    return dtype if dtype == torch.bfloat16 else torch.float32


def counts_of(ends: Tensor) -> Tensor:
    """Rows of each group [E] from the row after each one's last."""
    return torch.cat((ends[:1], ends[1:] - ends[:-1]))

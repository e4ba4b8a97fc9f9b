"""What GE's operators of int8 mean: quantising a token, the product of int8 matrices, and SwiGLU between
two of them. The grouped product is in ge_npu.py."""

from __future__ import annotations

from torch import Tensor

from .ge_table import GE_TYPES, GraphError, Results, operator
from .operators import checked

INT8 = 2  # ge::DataType
_QUANT_MODES = {"static": 0, "dynamic": 1}


@operator("DynamicQuant", "x smooth_scales? group_index?", {"dst_type": INT8})
def dynamic_quant(x: Tensor, smooth_scales: Tensor | None, group_index: Tensor | None) -> Results:
    return list(
        checked("npu_dynamic_quant")(x, smooth_scales=smooth_scales, group_index=group_index)
    )


@operator(
    "QuantBatchMatmulV3",
    "x1 x2 scale offset? bias? pertoken_scale?",
    dtype=...,
    transpose_x1=False,
    transpose_x2=False,
)
def quant_batch_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    bias: Tensor | None,
    pertoken_scale: Tensor | None,
    dtype: int,
    transpose_x1: bool,
    transpose_x2: bool,
) -> Tensor:
    if dtype not in GE_TYPES:
        raise GraphError(f"attribute dtype is {dtype}, which is no type that is known here")
    return checked("npu_quant_matmul")(
        x1.mT if transpose_x1 else x1,
        x2.mT if transpose_x2 else x2,
        scale,
        offset=offset,
        bias=bias,
        pertoken_scale=pertoken_scale,
        output_dtype=GE_TYPES[dtype],
    )


@operator(
    "DequantSwigluQuant",
    "x weight_scale? activation_scale? bias? quant_scale? quant_offset? group_index?",
    {"dst_type": INT8, "round_mode": "rint", "activate_dim": -1},
    activate_left=False,
    quant_mode="static",
    swiglu_mode=0,
    clamp_limit=7.0,
    glu_alpha=1.702,
    glu_bias=1.0,
)
def dequant_swiglu_quant(
    x: Tensor,
    weight_scale: Tensor | None,
    activation_scale: Tensor | None,
    bias: Tensor | None,
    quant_scale: Tensor | None,
    quant_offset: Tensor | None,
    group_index: Tensor | None,
    *,
    quant_mode: str,
    **attributes: float,
) -> Results:
    """quant_mode is a word here and a number in PyTorch's operator."""
    return list(
        checked("npu_dequant_swiglu_quant")(
            x,
            weight_scale=weight_scale,
            activation_scale=activation_scale,
            bias=bias,
            quant_scale=quant_scale,
            quant_offset=quant_offset,
            group_index=group_index,
            quant_mode=_QUANT_MODES[quant_mode],
            **attributes,
        )
    )

"""What GE's matmuls, the NPU's own operators, writes in place and collectives mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import collectives
from .ge_table import GraphError, Results, operator, same_type
from .operators import checked

# ---- matmuls -------------------------------------------------------------------------------------


@operator("MatMul", "x1 x2 bias?", transpose_x1=False, transpose_x2=False)
def matmul(
    x1: Tensor, x2: Tensor, bias: Tensor | None, transpose_x1: bool, transpose_x2: bool
) -> Tensor:
    y = batch_matmul(x1, x2, transpose_x1, transpose_x2)
    return y if bias is None else y + bias


@operator("BatchMatMul", "x1 x2", adj_x1=False, adj_x2=False)
def batch_matmul(x1: Tensor, x2: Tensor, adj_x1: bool, adj_x2: bool) -> Tensor:
    same_type(x1, x2)
    return (x1.mT if adj_x1 else x1) @ (x2.mT if adj_x2 else x2)


# attribute dtype of GroupedMatmul: the result of int8
_RESULTS = {-1: None, 0: torch.float16, 1: torch.bfloat16, 2: torch.int32}


@operator(
    "GroupedMatmul",
    "x* weight* bias* scale* offset* antiquant_scale* antiquant_offset* group_list? "
    "per_token_scale?",
    {"transpose_x": False, "act_type": 0, "tuning_config": [0]},
    dtype=-1,
    split_item=0,
    transpose_weight=False,
    group_type=-1,
    group_list_type=0,
)
def grouped_matmul(
    x: list[Tensor],
    weight: list[Tensor],
    *other: Any,
    dtype: int,
    split_item: int,
    transpose_weight: bool,
    group_type: int,
    group_list_type: int,
) -> Results:
    """A list input that is not used arrives as one empty tensor. dtype: of a result of int8."""
    bias, scale, *lists, group_list, per_token_scale = other
    if any(t.numel() for values in (bias, *lists) for t in values):
        raise GraphError("bias and offsets are not known to the interpreter")
    weights = [w.mT for w in weight] if transpose_weight else weight
    return checked("npu_grouped_matmul")(
        x,
        weights,
        scale=scale if any(s.numel() for s in scale) else None,
        per_token_scale=None if per_token_scale is None else [per_token_scale],
        output_dtype=_RESULTS[dtype],
        group_list=group_list,
        split_item=split_item,
        group_type=group_type,
        group_list_type=group_list_type,
    )


# ---- the NPU's own operators ---------------------------------------------------------------------


@operator("RmsNorm", "x gamma", epsilon=1e-6)
def rms_norm(x: Tensor, gamma: Tensor, epsilon: float) -> Results:
    return list(checked("npu_rms_norm")(x, gamma, epsilon))


@operator("AddRmsNorm", "x1 x2 gamma", epsilon=1e-6)
def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float) -> Results:
    same_type(x1, x2)
    return list(checked("npu_add_rms_norm")(x1, x2, gamma, epsilon))


@operator("SwiGlu", "x", dim=-1)
def swiglu(x: Tensor, dim: int) -> Tensor:
    return checked("npu_swiglu")(x, dim)


@operator("RotaryMul", "x r1 r2")
def rotary_mul(x: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    return checked("npu_rotary_mul")(x, r1, r2)


@operator("InterleaveRope", "x cos sin")
def interleave_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return checked("npu_interleave_rope")(x.contiguous(), cos, sin)


@operator("MoeInitRouting", "x row_idx expert_idx", active_num=...)
def moe_init_routing(x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int) -> Results:
    """GE's tensors always lie in plain order; here a Transpose is a view, which this operator would
    refuse."""
    return list(
        checked("npu_moe_init_routing")(
            x, row_idx.contiguous(), expert_idx.contiguous(), active_num
        )
    )


@operator("MoeComputeExpertTokens", "sorted_experts", num_experts=...)
def moe_compute_expert_tokens(sorted_experts: Tensor, num_experts: int) -> Tensor:
    return checked("npu_moe_compute_expert_tokens")(sorted_experts, num_experts)


@operator(
    "MoeFinalizeRoutingV2",
    "expanded_x expanded_row_idx x1? x2? bias? scales? expert_idx?",
    drop_pad_mode=0,
    k=1,
)
def moe_finalize_routing(
    rows: Tensor,
    row_idx: Tensor,
    x1: Tensor | None,
    x2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expert_idx: Tensor | None,
    drop_pad_mode: int,
    k: int,
) -> Tensor:
    return checked("npu_moe_finalize_routing")(
        rows, x1, x2, bias, scales, row_idx, expert_idx, drop_pad_mode, k
    )


# ---- written in place ----------------------------------------------------------------------------


@operator("Scatter", "var indices updates", {"reduce": "update"}, writes="var", axis=0)
def scatter(var: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """Output `var` is input `var`: the cache is written in place."""
    same_type(var, updates)
    return checked("scatter_update_")(var, indices, updates, axis)


@operator("Assign", "ref value", free=("validate_shape", "use_locking"), writes="ref")
def assign(ref: Tensor, value: Tensor) -> Tensor:
    same_type(ref, value)
    if ref.shape != value.shape:
        raise GraphError(f"value of {list(value.shape)} for a reference of {list(ref.shape)}")
    return ref.copy_(value)


# ---- collectives ---------------------------------------------------------------------------------


@operator("HcomAllReduce", "x", free=("fusion", "fusion_id"), reduction=..., group=...)
def all_reduce(x: Tensor, reduction: str, group: str) -> Tensor:
    if reduction not in collectives.REDUCTION_NAMES:
        raise GraphError(f"reduction {reduction!r} is not known to the interpreter")
    return collectives.all_reduce(_group(group), x, reduction)


@operator("HcomAllGather", "x", free=("fusion", "fusion_id"), rank_size=..., group=...)
def all_gather(x: Tensor, rank_size: int, group: str) -> Tensor:
    ranks = _group(group)
    if ranks.size() != rank_size:
        raise GraphError(f"rank_size is {rank_size}, and group {group} has {ranks.size()} ranks")
    return collectives.all_gather(ranks, x)


def _group(name: str) -> Any:
    found = collectives.named(name)
    if found is None:
        raise GraphError(
            f"no process group of this process is named {name}: a graph of several ranks runs only where "
            "it was converted"
        )
    return found

"""The choice of experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import bad, floating, one_of, same_dtype, shape_of
from .table import operator
from .wide import unsupported, wide


def check_moe_gating_top_k(
    x: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    **other: Any,
) -> None:
    op = "npu_moe_gating_top_k"
    floating(op, "x", x)
    if x.dim() != 2 or x.shape[1] > 2048:
        raise bad(op, "x", x.shape, "[n, E] with E up to 2048")
    experts = x.shape[1]
    if bias is not None:
        shape_of(op, "bias", bias, experts, names="[E]")
        same_dtype(op, "bias", bias, "x", x)
    one_of(op, "group_select_mode", group_select_mode, 0, 1)
    one_of(op, "norm_type", norm_type, 0, 1)
    one_of(op, "renorm", renorm, *((0,) if norm_type == 1 else (0, 1)))
    if group_count < 1 or experts % group_count:
        raise bad(op, "group_count", group_count, f"a divisor of the number of experts, {experts}")
    if not 1 <= k_group <= group_count:
        raise bad(op, "k_group", k_group, f"in 1..{group_count}, the number of groups")
    width = experts // group_count
    if group_count > 1 and width <= 2:
        raise bad(
            op,
            "group_count",
            group_count,
            f"such that a group has more than 2 of the {experts} experts",
        )
    if group_count * (-(-width // 32) * 32) > 2048:
        raise bad(
            op,
            "group_count",
            group_count,
            f"such that groups times {width}, rounded up to 32, is <= 2048",
        )
    if not 1 <= k <= width * k_group:
        raise bad(op, "k", k, f"in 1..{width * k_group}: {k_group} groups of {width} experts")


@operator(check_moe_gating_top_k)
def npu_moe_gating_top_k(
    x: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    input_ids: Tensor | None = None,
    tid2eid: Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose k experts a token, by biased score and within the best groups; weights come from the
    unbiased score.

    x [n, E] logits; bias [E] (e_score_correction_bias). norm_type 0 softmax, 1 sigmoid (always
    normalised); group_select_mode 0 a group's maximum, 1 the sum of its two best. Ties: the lower
    expert first. Rejected groups are masked with -inf. Returns (weights [n, k] of x's dtype,
    experts [n, k] int32, scores [n, E] float32 if out_flag).
    """
    unsupported("npu_moe_gating_top_k", input_ids=input_ids, tid2eid=tid2eid)
    score = wide(x).sigmoid() if norm_type == 1 else wide(x).softmax(-1)
    choice = score if bias is None else score + wide(bias)
    if group_count > 1:
        groups = choice.unflatten(-1, (group_count, -1))
        value = groups.amax(-1) if group_select_mode == 0 else groups.topk(2, -1).values.sum(-1)
        best = value.argsort(dim=-1, descending=True, stable=True)[..., :k_group]
        kept = (best[..., None] == torch.arange(group_count, device=x.device)).any(-2)
        choice = groups.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
    experts = choice.argsort(dim=-1, descending=True, stable=True)[..., :k]
    weights = score.gather(-1, experts)
    if norm_type == 1 or renorm == 1:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    weights = (weights * routed_scaling_factor).to(x.dtype)
    return weights, experts.int(), score if out_flag else torch.full_like(score, torch.nan)

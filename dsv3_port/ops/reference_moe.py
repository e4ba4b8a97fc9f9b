"""What the NPU's mixture-of-experts operators mean: gating, routing there and back, and the grouped
matmul.

n tokens, k choices a token, E experts, H hidden, T = n*k packed rows. Two index orders exist side
by side: v1 operators number (token t, choice j) as j*n + t (column-major), v2 operators as t*k + j
(row-major).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import kernels
from .wide import unsupported, wide

_INT32_MAX = 2**31 - 1


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


# ---- tokens to experts ---------------------------------------------------------------------------


def npu_moe_init_routing(
    x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the (token, choice) pairs by expert and copy the tokens into that order.

    x [n, H]; row_idx [n, k] int32 = j*n + t; expert_idx [n, k] int32; active_num counts tokens
    (pass n). Returns (rows [min(n, active_num)*k, H], expanded_row_idx [n*k]: sorted position of
    pair j*n + t,
    expanded_expert_idx [n*k]: the experts, sorted).
    """
    n, k = expert_idx.shape
    experts, order = expert_idx.flatten().sort(stable=True)
    source = row_idx.flatten()[order].long()
    positions = torch.arange(n * k, dtype=torch.int32, device=x.device)
    back = torch.empty_like(positions).scatter_(0, source, positions)
    return x[source[: min(n, active_num) * k] % n], back, experts


def npu_moe_init_routing_v2(
    x: Tensor,
    expert_idx: Tensor,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: Sequence[int] = (),
    row_idx_type: int = 0,
    x_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The routing of the successor: row-major indices, an expert range, counts, optional int8 rows.

    drop_pad_mode 0: rows [R, H], R = n*k, or active_num if that is fewer (it counts rows here);
    rows of experts outside active_expert_range are last and undefined. row_idx_type 0: sorted
    position of pair t*k + j, -1 if outside;
    1: the pair at each sorted position.  1: rows [E, expert_capacity, H], zero-padded, late tokens dropped (index -1).
    expert tokens (with the flag): type 0 cumulative, 1 counts, 2 [expert, count] pairs closed by
    [0, 0]; int64. quant_mode -1 none, 1 dynamic int8 per row, with `scale` [1 or range, H] as
    smoothing factors.
    """
    unsupported("npu_moe_init_routing_v2", offset=offset, x_dtype=x_dtype)
    if quant_mode not in (-1, 1) or (
        drop_pad_mode == 1 and (quant_mode != -1 or row_idx_type != 0)
    ):
        raise NotImplementedError(
            f"npu_moe_init_routing_v2: quant_mode {quant_mode} with drop_pad_mode {drop_pad_mode}"
            f" and row_idx_type {row_idx_type} has no reference implementation"
        )
    n, k = expert_idx.shape
    low, high = active_expert_range or (0, expert_num)
    experts = expert_idx.flatten().long()
    inside = (experts >= low) & (experts < high)
    order = torch.where(experts < low, _INT32_MAX, experts).argsort(stable=True)
    counts = (experts == torch.arange(low, high, device=x.device)[:, None]).sum(1)
    tokens = (
        _expert_tokens(counts, low, expert_num, expert_tokens_num_type)
        if expert_tokens_num_flag
        else counts.new_empty(0)
    )
    if drop_pad_mode == 1:
        rows, index = _drop_and_pad(x, experts, order, counts, expert_capacity, k)
        return rows, index.int(), tokens, wide(x).new_full(rows.shape[:2], torch.nan).flatten()
    count = n * k if active_num <= 0 else min(active_num, n * k)
    source, available = order[:count] // k, inside.sum()
    position = torch.arange(n * k, device=x.device)
    if row_idx_type == 0:
        index = torch.full_like(order, -1).scatter_(
            0, order, torch.where(position < available, position, -1)
        )
    else:
        index = order
    rows, valid = x[source], (position[:count] < available)
    expanded_scale = (
        rows.new_full((count,), torch.nan, dtype=torch.float32)
        if scale is None or quant_mode == 1
        else scale.float()[source]
    )
    if quant_mode == 1:
        smooth = (
            None
            if scale is None
            else (
                scale
                if scale.shape[0] == 1
                else scale[(experts[order[:count]] - low).clamp(0, high - low - 1)]
            )
        )
        rows, expanded_scale = _int8_rows(rows, smooth)
    else:
        rows = rows.masked_fill(~valid[:, None], torch.nan)
    return rows, index.int(), tokens, expanded_scale


def _expert_tokens(counts: Tensor, low: int, expert_num: int, kind: int) -> Tensor:
    """Counts of a range of experts as group_list_type 0, 1 or 2 of the grouped matmul wants them."""
    if kind == 0:
        return counts.cumsum(0)
    if kind == 1:
        return counts
    order = (counts == 0).to(torch.int8).argsort(stable=True)  # non-empty experts first, in order
    pairs = torch.stack((order + low, counts[order]), 1) * (counts[order] > 0)[:, None]
    return torch.nn.functional.pad(pairs, (0, 0, 0, expert_num - len(counts)))


def _drop_and_pad(
    x: Tensor, experts: Tensor, order: Tensor, counts: Tensor, capacity: int, k: int
) -> tuple[Tensor, Tensor]:
    """Rows [E, C, H] with what does not fit left out, and for each pair its slot e*C + c, or -1."""
    expert = experts[order]
    place = torch.arange(len(order), device=x.device) - (counts.cumsum(0) - counts)[expert]
    fits = place < capacity
    slot = torch.where(fits, expert * capacity + place, -1)
    rows = x.new_zeros(len(counts) * capacity, x.shape[1])
    rows[slot[fits]] = x[order[fits] // k]
    return rows.unflatten(0, (len(counts), capacity)), torch.empty_like(order).scatter_(
        0, order, slot
    )


def _int8_rows(rows: Tensor, smooth: Tensor | None) -> tuple[Tensor, Tensor]:
    value = wide(rows) if smooth is None else wide(rows) * wide(smooth)
    scale = value.abs().amax(-1) / 127
    return (value / scale[:, None]).round().to(torch.int8), scale


def npu_moe_compute_expert_tokens(sorted_expert_for_source_row: Tensor, num_expert: int) -> Tensor:
    """How many entries of the sorted int32 list are <= e, for e = 0..num_expert-1: an inclusive
    cumulative count.

    Returns int32 [num_expert]; npu_grouped_matmul wants it as int64 (group_list_type 0).
    """
    experts = torch.arange(
        num_expert,
        dtype=sorted_expert_for_source_row.dtype,
        device=sorted_expert_for_source_row.device,
    )
    return torch.searchsorted(sorted_expert_for_source_row, experts, right=True, out_int32=True)


# ---- experts to tokens ---------------------------------------------------------------------------


def npu_moe_finalize_routing(
    expanded_permuted_rows: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expanded_src_to_dst_row: Tensor,
    export_for_source_row: Tensor | None,
    drop_pad_mode: int | None = 0,
    k: int | None = 1,
) -> Tensor:
    """out[t] = skip1[t] + skip2[t] + sum over j of scales[t, j] * (rows[index(t, j)] +
    bias[expert[t, j]]).

    index(t, j) = expanded_src_to_dst_row[j*n + t] in drop_pad_mode 0 and 1 (v1), [t*k + j] in 2 and
    3 (v2); 1 and 3 take rows [E, C, H] and allow -1. skips [n, H], bias [E, H], scales [n, k]
    (None: weight 1, then k counts).
    Returns [n, H]. bfloat16: summed in float32, skips first, then j in order, one cast; other
    dtypes: every step in their own dtype. Index -1: bfloat16 leaves the whole term out, other
    dtypes only the row, not its bias.
    """
    rows = expanded_permuted_rows.flatten(0, -2)
    width = scales.shape[1] if scales is not None else k or 1
    index = expanded_src_to_dst_row.long()
    index = index.view(-1, width) if drop_pad_mode in (2, 3) else index.view(width, -1).t()
    exact = wide if rows.dtype == torch.bfloat16 else (lambda t: t)
    if drop_pad_mode in (1, 3):
        terms = exact(rows[index.clamp(min=0)]).masked_fill((index < 0)[..., None], 0)
    else:
        terms = exact(rows[index])
    if bias is not None and export_for_source_row is not None:
        terms = terms + exact(bias)[export_for_source_row.long()]
        if rows.dtype == torch.bfloat16:
            terms = terms.masked_fill((index < 0)[..., None], 0)
    if scales is not None:
        terms = terms * exact(scales)[..., None]
    total, *rest = [exact(s) for s in (skip1, skip2) if s is not None] + list(terms.unbind(1))
    for term in rest:  # in this order
        total = total + term
    return total.to(rows.dtype)


# ---- grouped matmul ------------------------------------------------------------------------------


def npu_grouped_matmul(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    *,
    bias: Sequence[Tensor] | None = None,
    scale: Sequence[Tensor] | None = None,
    offset: Sequence[Tensor] | None = None,
    antiquant_scale: Sequence[Tensor] | None = None,
    antiquant_offset: Sequence[Tensor] | None = None,
    per_token_scale: Sequence[Tensor] | None = None,
    group_list: Tensor | None = None,
    activation_input: Sequence[Tensor] | None = None,
    activation_quant_scale: Sequence[Tensor] | None = None,
    activation_quant_offset: Sequence[Tensor] | None = None,
    split_item: int | None = 0,
    group_type: int | None = None,
    group_list_type: int | None = 0,
    act_type: int | None = 0,
    tuning_config: Sequence[int] | None = None,
    output_dtype: int | None = None,
    x_dtype: int | None = None,
    weight_dtype: int | None = None,
    scale_dtype: int | None = None,
    per_token_scale_dtype: int | None = None,
) -> list[Tensor]:
    """Rows of group g times weight[g]: x [[M, K]], weight [[E, K, N]] (or E matrices [K, N]) ->
    [[M, N]].

    group_list int64: group_list_type 0 inclusive cumulative, 1 counts, 2 [group, count] pairs,
        groups ascending.
    There is no transpose flag: weights stored [E, N, K] are passed as w.transpose(1, 2). Products
    add up in float32, one cast. A sum larger than M raises; rows past the last group are undefined,
    here NaN. bias [[E, N]].
    """
    unsupported(
        "npu_grouped_matmul",
        scale=scale,
        offset=offset,
        antiquant_scale=antiquant_scale,
        antiquant_offset=antiquant_offset,
        per_token_scale=per_token_scale,
        activation_input=activation_input,
        activation_quant_scale=activation_quant_scale,
        activation_quant_offset=activation_quant_offset,
        output_dtype=output_dtype,
        x_dtype=x_dtype,
        weight_dtype=weight_dtype,
        scale_dtype=scale_dtype,
        per_token_scale_dtype=per_token_scale_dtype,
        act_type=act_type or None,
    )
    if len(x) != 1 or group_type != 0 or split_item not in (2, 3) or group_list is None:
        raise NotImplementedError(
            "npu_grouped_matmul: the reference takes one x with group_type=0, split_item=2 or 3 "
            f"and a group_list; got {len(x)} x, group_type={group_type}, split_item={split_item}"
        )
    rows, weights = x[0], weight[0] if len(weight) == 1 and weight[0].dim() == 3 else list(weight)
    cumulative = cumulative_groups(group_list, group_list_type or 0, len(weights))
    if bias is None:
        return [kernels.grouped_matmul(rows, weights, cumulative)]
    offsets = wide(bias[0] if len(bias) == 1 and bias[0].dim() == 2 else torch.stack(list(bias)))
    group = kernels.group_of_rows(cumulative, len(rows)).clamp(max=len(weights) - 1)
    exact = weights if isinstance(weights, list) else weights.unbind(0)
    product = kernels.grouped_matmul(wide(rows), [wide(w) for w in exact], cumulative)
    return [(product + offsets[group]).to(rows.dtype)]


def cumulative_groups(group_list: Tensor, group_list_type: int, groups: int) -> Tensor:
    """Any of the three forms of group_list as inclusive cumulative row counts, int64 [groups]."""
    if group_list_type == 0:
        return group_list
    if group_list_type == 1:
        return group_list.cumsum(0)
    group, size = group_list.unbind(1)
    open_ = (size > 0).long().cumprod(0)  # what follows the [0, 0] pair is not specified
    return group.new_zeros(groups).scatter_add_(0, group * open_, size * open_).cumsum(0)


def npu_gmm(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    group_list: Tensor | Sequence[int] | None = None,
    group_type: int = 0,
    gemm_fusion: bool = False,
    original_weight: Tensor | None = None,
) -> Tensor:
    """MindSpeed's grouped matmul: single tensors, **cumulative** group_list (int64 tensor or list
    of int)."""
    groups = (
        group_list if isinstance(group_list, Tensor) else torch.tensor(group_list, device=x.device)
    )
    return npu_grouped_matmul(
        [x],
        [weight],
        bias=None if bias is None else [bias],
        group_list=groups,
        split_item=3,
        group_type=group_type,
        group_list_type=0,
    )[0]


def npu_gmm_v2(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    group_list: Tensor | None = None,
    group_type: int = 0,
    gemm_fusion: bool = False,
    original_weight: Tensor | None = None,
) -> Tensor:
    """MindSpeed's second grouped matmul: as npu_gmm, but group_list holds **counts** (int64 tensor
    only)."""
    return npu_grouped_matmul(
        [x],
        [weight],
        bias=None if bias is None else [bias],
        group_list=group_list,
        split_item=3,
        group_type=group_type,
        group_list_type=1,
    )[0]

"""Tokens to experts: rows in the order of their experts, and how many each expert has.

n tokens, k choices a token, E experts, H hidden, T = n*k packed rows. Two index orders exist side
by side: v1 operators number (token t, choice j) as j*n + t (column-major), v2 operators as t*k + j
(row-major).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import ascending, bad, dtype_of, floating, one_of, readable, shape_of
from .table import operator
from .wide import unsupported, wide

INDEX_LIMIT = 2**24  # of n * k in the routing operators
_INT32_MAX = 2**31 - 1


def _experts(operator: str, x: Tensor, expert_idx: Tensor, int8: bool = False) -> tuple[int, int]:
    if not (int8 and x.dtype == torch.int8):
        floating(operator, "x", x)
    dtype_of(operator, "expert_idx", expert_idx, torch.int32)
    if x.dim() != 2 or expert_idx.dim() != 2 or expert_idx.shape[0] != x.shape[0]:
        raise bad(
            operator, "expert_idx", expert_idx.shape, f"[n, k] with x [n, H]; x is {list(x.shape)}"
        )
    n, k = expert_idx.shape
    if n * k >= INDEX_LIMIT:
        raise bad(operator, "expert_idx", expert_idx.shape, "fewer than 2^24 entries")
    return n, k


def check_moe_init_routing(x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int) -> None:
    op = "npu_moe_init_routing"
    n, k = _experts(op, x, expert_idx)
    dtype_of(op, "row_idx", row_idx, torch.int32)
    shape_of(op, "row_idx", row_idx, n, k, names="[n, k]")
    order = "arange(n*k).view(k, n).T.contiguous(): row_idx[t, j] = j*n + t"
    if not row_idx.is_contiguous():
        raise bad(op, "row_idx", f"a view with strides {row_idx.stride()}", f"contiguous: {order}")
    if active_num < 0:
        raise bad(op, "active_num", active_num, f"a number of tokens (not of rows), {n} for all")
    if readable(row_idx) and not torch.equal(
        row_idx.t().flatten(), torch.arange(n * k, dtype=torch.int32)
    ):
        raise bad(op, "row_idx", "in another order", order)


@operator(check_moe_init_routing)
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


def check_moe_init_routing_v2(
    x: Tensor,
    expert_idx: Tensor,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    quant_mode: int = -1,
    active_expert_range: Sequence[int] = (),
    row_idx_type: int = 0,
    **other: Any,
) -> None:
    op = "npu_moe_init_routing_v2"
    n, _ = _experts(op, x, expert_idx, int8=True)
    if x.dtype == torch.int8:
        one_of(op, "quant_mode (x of int8)", quant_mode, -1)
    one_of(op, "drop_pad_mode", drop_pad_mode, 0, 1)
    one_of(op, "row_idx_type", row_idx_type, 0, 1)
    one_of(op, "expert_tokens_num_type", expert_tokens_num_type, 0, 1, 2)
    limit = 5120 if expert_tokens_num_type == 2 else 10240
    if not 0 < expert_num <= limit:
        raise bad(op, "expert_num", expert_num, f"in 1..{limit}")
    bounds = list(active_expert_range)
    if bounds and (len(bounds) != 2 or not 0 <= bounds[0] < bounds[1] <= expert_num):
        raise bad(op, "active_expert_range", bounds, f"[first, end) within 0..{expert_num}")
    if n == 0:
        return  # the device returns here, before it looks at scales
    if drop_pad_mode == 1 and (bounds not in ([], [0, expert_num]) or not 0 < expert_capacity <= n):
        raise bad(
            op,
            "expert_capacity",
            expert_capacity,
            f"in 1..{n}, with the full expert range, in drop_pad_mode 1",
        )
    if quant_mode == 0:
        for name, value in (("scale", scale), ("offset", offset)):
            if value is None:
                raise bad(op, name, None, "float32 [1] in quant_mode 0")
            dtype_of(op, name, value, torch.float32)
            shape_of(op, name, value, 1, names="one number for all in quant_mode 0")
    elif offset is not None:
        raise bad(op, "offset", offset, "None but in quant_mode 0")
    if scale is not None:
        if quant_mode == -1:
            shape_of(op, "scale", scale, n, names="[n]")
        elif quant_mode == 1:
            width = bounds[1] - bounds[0] if bounds else expert_num
            if scale.shape not in (torch.Size((1, x.shape[1])), torch.Size((width, x.shape[1]))):
                raise bad(
                    op,
                    "scale",
                    scale.shape,
                    f"[1, {x.shape[1]}] or [{width}, {x.shape[1]}] in quant_mode 1",
                )


@operator(check_moe_init_routing_v2)
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
    [0, 0]; int64. quant_mode -1 none (x may be int8), 0 static: x * scale[0] + offset[0] in float16
    to int8; 1 dynamic int8 per row, with `scale` [1 or range, H] as
    smoothing factors.
    """
    unsupported("npu_moe_init_routing_v2", x_dtype=x_dtype)
    if quant_mode not in (-1, 0, 1) or (
        drop_pad_mode == 1 and (quant_mode == 1 or row_idx_type != 0)
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
    if n == 0:
        empty = x.new_empty((0, x.shape[1]), dtype=x.dtype if quant_mode == -1 else torch.int8)
        return empty, expert_idx.new_empty(0), tokens, x.new_empty(0, dtype=torch.float32)
    if quant_mode == 0 and scale is not None and offset is not None:
        # in float16, each step rounded
        x = (x.half() * scale.half() + offset.half()).round().clamp(-128, 127).to(torch.int8)
    if drop_pad_mode == 1:
        rows, index = _drop_and_pad(x, experts, order, counts, expert_capacity, k)
        return (
            rows,
            index.int(),
            tokens,
            x.new_full(rows.shape[:2], torch.nan, dtype=torch.float32).flatten(),
        )
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
        if scale is None or quant_mode != -1
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
        rows = rows.masked_fill(~valid[:, None], torch.nan if rows.is_floating_point() else 0)
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


def check_moe_compute_expert_tokens(sorted_expert_for_source_row: Tensor, num_expert: int) -> None:
    op, experts = "npu_moe_compute_expert_tokens", sorted_expert_for_source_row
    dtype_of(op, "sorted_expert_for_source_row", experts, torch.int32)
    if experts.dim() != 1 or experts.shape[0] >= INDEX_LIMIT:
        raise bad(
            op, "sorted_expert_for_source_row", experts.shape, "1-D with fewer than 2^24 entries"
        )
    if not 0 < num_expert <= 2048:
        raise bad(op, "num_expert", num_expert, "in 1..2048")
    if readable(experts) and not ascending(experts):
        raise bad(
            op,
            "sorted_expert_for_source_row",
            "not sorted",
            "non-decreasing, as npu_moe_init_routing gives it",
        )


@operator(check_moe_compute_expert_tokens)
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

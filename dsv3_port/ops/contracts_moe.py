"""Argument checks of the mixture-of-experts operators; see contracts.py."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .checks import (
    ascending,
    bad,
    bounds,
    dtype_of,
    floating,
    one_of,
    readable,
    same_dtype,
    shape_of,
)

INDEX_LIMIT = 2**24  # of n * k in the routing operators


def npu_moe_gating_top_k(
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


def _experts(operator: str, x: Tensor, expert_idx: Tensor) -> tuple[int, int]:
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


def npu_moe_init_routing(x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int) -> None:
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


def npu_moe_init_routing_v2(
    x: Tensor,
    expert_idx: Tensor,
    *,
    scale: Tensor | None = None,
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
    n, _ = _experts(op, x, expert_idx)
    one_of(op, "drop_pad_mode", drop_pad_mode, 0, 1)
    one_of(op, "row_idx_type", row_idx_type, 0, 1)
    one_of(op, "expert_tokens_num_type", expert_tokens_num_type, 0, 1, 2)
    limit = 5120 if expert_tokens_num_type == 2 else 10240
    if not 0 < expert_num <= limit:
        raise bad(op, "expert_num", expert_num, f"in 1..{limit}")
    bounds = list(active_expert_range)
    if bounds and (len(bounds) != 2 or not 0 <= bounds[0] < bounds[1] <= expert_num):
        raise bad(op, "active_expert_range", bounds, f"[first, end) within 0..{expert_num}")
    if drop_pad_mode == 1 and (bounds not in ([], [0, expert_num]) or not 0 < expert_capacity <= n):
        raise bad(
            op,
            "expert_capacity",
            expert_capacity,
            f"in 1..{n}, with the full expert range, in drop_pad_mode 1",
        )
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


def npu_moe_compute_expert_tokens(sorted_expert_for_source_row: Tensor, num_expert: int) -> None:
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
) -> None:
    op, rows, index, experts = (
        "npu_moe_finalize_routing",
        expanded_permuted_rows,
        expanded_src_to_dst_row,
        export_for_source_row,
    )
    floating(op, "expanded_permuted_rows", rows)
    one_of(op, "drop_pad_mode", drop_pad_mode, 0, 1, 2, 3)
    dtype_of(op, "expanded_src_to_dst_row", index, torch.int32)
    padded = drop_pad_mode in (1, 3)
    if rows.dim() != (3 if padded else 2):
        raise bad(
            op,
            "expanded_permuted_rows",
            rows.shape,
            f"{'[E, C, H]' if padded else '[n*k, H]'} in drop_pad_mode {drop_pad_mode}",
        )
    if scales is not None:
        if scales.dtype != rows.dtype and (rows.dtype, scales.dtype) != (
            torch.bfloat16,
            torch.float32,
        ):
            raise bad(
                op,
                "scales",
                scales.dtype,
                f"{rows.dtype}, the dtype of the rows (bfloat16: also float32)",
                TypeError,
            )
        if scales.dim() != 2 or index.shape != torch.Size((scales.numel(),)):
            raise bad(
                op,
                "expanded_src_to_dst_row",
                index.shape,
                f"[n*k] with scales [n, k]; they are {scales.shape}",
            )
    choices = scales.shape[1] if scales is not None else k or 1
    if (
        index.dim() != 1
        or index.shape[0] % choices
        or (not padded and index.shape[0] != rows.shape[0])
    ):
        raise bad(
            op,
            "expanded_src_to_dst_row",
            index.shape,
            f"[n*k], k = {choices}; rows are {list(rows.shape)}",
        )
    n = index.shape[0] // choices
    if skip2 is not None and skip1 is None:
        raise bad(op, "skip2", skip2, "given only together with skip1")
    for name, skip in (("skip1", skip1), ("skip2", skip2)):
        if skip is not None:
            shape_of(op, name, skip, n, rows.shape[-1], names="[n, H]")
            same_dtype(op, name, skip, "the rows", rows)
    if bias is not None:
        if experts is None:
            raise bad(op, "export_for_source_row", None, "given with a bias")
        if bias.dim() != 2 or bias.shape[1] != rows.shape[-1]:
            raise bad(op, "bias", bias.shape, f"[E, H] with H = {rows.shape[-1]}")
        same_dtype(op, "bias", bias, "the rows", rows)
    if experts is not None:
        dtype_of(op, "export_for_source_row", experts, torch.int32)
        shape_of(op, "export_for_source_row", experts, n, choices, names="[n, k]")
    if readable(index) and index.numel():
        low, high = bounds(index)
        if low < (-1 if padded else 0) or high >= rows.shape[0] * (rows.shape[1] if padded else 1):
            raise bad(
                op,
                "expanded_src_to_dst_row",
                f"in {low}..{high}",
                "positions among the rows"
                + (", or -1" if padded else "; -1 needs drop_pad_mode 1 or 3"),
            )


def npu_grouped_matmul(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    *,
    group_list: Tensor | None = None,
    split_item: int | None = 0,
    group_type: int | None = None,
    group_list_type: int | None = 0,
    act_type: int | None = 0,
    **other: Any,
) -> None:
    op = "npu_grouped_matmul"
    for name, tensors in (("x", x), ("weight", weight)):
        if isinstance(tensors, Tensor) or not tensors:
            raise bad(
                op,
                name,
                tensors if isinstance(tensors, Tensor) else "empty",
                "a list of tensors",
                TypeError,
            )
    one_of(op, "group_type", group_type, -1, 0, 2)
    one_of(op, "group_list_type", group_list_type, 0, 1, 2)
    one_of(op, "split_item", split_item, 0, 1, 2, 3)
    one_of(op, "act_type", act_type, None, 0, 1, 2, 4, 5)
    if act_type and x[0].device.type == "npu" and x[0].dtype != torch.int8:
        raise bad(
            op,
            "act_type",
            act_type,
            f"0 with {x[0].dtype}: activations belong to the int8 per-token form",
        )
    if group_type != 0 or group_list is None or len(x) != 1:
        return
    groups(
        op, x[0], weight[0] if weight[0].dim() == 3 else weight, group_list, group_list_type or 0
    )


def groups(
    op: str, x: Tensor, weight: Tensor | Sequence[Tensor], group_list: Tensor, group_list_type: int
) -> None:
    """One x [M, K], E weights [K, N], split along M."""
    if not isinstance(group_list, Tensor):
        raise bad(op, "group_list", f"a {type(group_list).__name__}", "an int64 tensor", TypeError)
    count, first = len(weight), weight[0]
    if x.dim() != 2 or first.dim() != 2 or x.shape[1] != first.shape[0]:
        raise bad(
            op,
            "weight",
            f"{[count, *first.shape]}",
            f"[E, K, N] with x [M, K]; x is {list(x.shape)} (weights "
            "stored [E, N, K] are passed as w.transpose(1, 2))",
        )
    if not x.is_contiguous():
        raise bad(
            op, "x", f"a view with strides {x.stride()}", "contiguous: x cannot be transposed"
        )
    same_dtype(op, "weight", first, "x", x)
    dtype_of(op, "group_list", group_list, torch.int64)
    shape_of(
        op,
        "group_list",
        group_list,
        *((count, 2) if group_list_type == 2 else (count,)),
        names="one entry for each of the E experts",
    )
    if readable(group_list):
        _boundaries(op, group_list.tolist(), group_list_type, x.shape[0])


def _boundaries(op: str, values: list[Any], kind: int, rows: int) -> None:
    if kind == 0:
        if values != sorted(values) or values[0] < 0 or values[-1] != rows:
            raise bad(
                op,
                "group_list",
                f"{values} with group_list_type 0",
                f"cumulative: non-decreasing and ending at "
                f"{rows}, the rows of x (counts are group_list_type 1)",
            )
        return
    sizes = values
    if kind == 2:
        sizes = [size for _, size in values]
        sizes = sizes[: sizes.index(0)] if 0 in sizes else sizes  # [0, 0] ends the list
        ids = [group for group, _ in values[: len(sizes)]]
        if any(b <= a for a, b in pairwise(ids)) or any(not 0 <= i < len(values) for i in ids):
            raise bad(op, "group_list", values, "[group, count] pairs with ascending groups")
    if min(sizes, default=0) < 0 or sum(sizes) != rows:
        raise bad(
            op,
            "group_list",
            f"{values} with group_list_type {kind}",
            f"counts that add up to {rows}, the rows "
            "of x (cumulative numbers are group_list_type 0)",
        )


def npu_gmm(
    x: Tensor,
    weight: Tensor,
    *,
    group_list: Tensor | Sequence[int] | None = None,
    group_type: int = 0,
    **other: Any,
) -> None:
    op = "npu_gmm"
    if isinstance(group_list, (list, tuple)):
        if len(group_list) == 1:
            raise bad(op, "group_list", list(group_list), "longer than 1 when given as a list")
        group_list = torch.tensor(group_list)
    _mindspeed(op, x, weight, group_list, group_type, 0)


def npu_gmm_v2(
    x: Tensor,
    weight: Tensor,
    *,
    group_list: Tensor | None = None,
    group_type: int = 0,
    **other: Any,
) -> None:
    _mindspeed("npu_gmm_v2", x, weight, group_list, group_type, 1)


def _mindspeed(
    op: str, x: Tensor, weight: Tensor, group_list: Any, group_type: int, kind: int
) -> None:
    one_of(op, "group_type", group_type, 0, 2)
    if not isinstance(group_list, Tensor):
        wanted = "an int64 tensor or a list of int" if kind == 0 else "an int64 tensor"
        raise bad(op, "group_list", group_list, wanted, TypeError)
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor):
        raise bad(op, "x or weight", type(x).__name__, "a single tensor, not a list", TypeError)
    if group_type == 0:
        groups(op, x, weight, group_list, kind)

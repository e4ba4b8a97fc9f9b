"""The grouped matmul: rows sorted by expert, each group times its expert's weight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import grouped_forms, plain, products
from .checks import bad, dtype_of, for_device, one_of, readable, same_dtype, shape_of
from .table import operator
from .wide import unsupported, wide


def check_grouped_matmul(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    *,
    bias: Sequence[Tensor] | None = None,
    scale: Sequence[Tensor] | None = None,
    antiquant_scale: Sequence[Tensor] | None = None,
    per_token_scale: Sequence[Tensor] | None = None,
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
                op, name, tensors if isinstance(tensors, Tensor) else "empty", "a list of tensors"
            )
    grouped_forms.require_group_type(group_type)
    one_of(op, "group_list_type", group_list_type, None, 0, 1, 2)
    one_of(op, "split_item", split_item, None, 0, 1, 2, 3)
    one_of(op, "act_type", act_type, None, 0, 1, 2, 4, 5)
    if act_type and for_device(x[0]) and x[0].dtype != torch.int8:
        raise bad(
            op,
            "act_type",
            act_type,
            f"0 with {x[0].dtype}: activations belong to the int8 per-token form",
        )
    kind, form = group_list_type or 0, group_type if group_type is not None else -1
    grouped_forms.check(x, weight, group_list, split_item or 0, form, kind)
    grouped_forms.check_operands(x, weight, bias, scale, antiquant_scale, per_token_scale)
    if group_list is None or len(x) > 1:
        return
    if form == grouped_forms.SPLIT_K:
        _check_cuts(op, x[0], weight[0], group_list, kind)
        return
    matrices = weight[0] if weight[0].dim() == 3 else weight
    check_groups(op, x[0], matrices, group_list, kind, same=antiquant_scale is None)


def check_groups(
    op: str,
    x: Tensor,
    weight: Tensor | Sequence[Tensor],
    group_list: Tensor,
    group_list_type: int,
    same: bool = True,
) -> None:
    """One x [M, K], E weights [K, N], split along M. same: the weight must have x's dtype."""
    if not isinstance(group_list, Tensor):
        raise bad(op, "group_list", f"a {type(group_list).__name__}", "an int64 tensor")
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
    if same:
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


def _check_cuts(op: str, x: Tensor, weight: Tensor, group_list: Tensor, kind: int) -> None:
    """x [M, K] (the transposed view of what is stored), weight [K, N], split along K."""
    if x.shape[1] != weight.shape[0]:
        raise bad(op, "weight", weight.shape, f"[{x.shape[1]}, N], as x is {list(x.shape)}")
    dtype_of(op, "group_list", group_list, torch.int64)
    if group_list.dim() != 1:
        raise bad(op, "group_list", group_list.shape, "1-D with group_type 2")
    if readable(group_list):
        _boundaries(op, group_list.tolist(), kind, x.shape[1])


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


@operator(check_grouped_matmul)
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
    here NaN. bias [[E, N]]. Other forms (one result a group, no split, split along K, int8):
    grouped_forms.
    """
    unsupported(
        "npu_grouped_matmul",
        offset=offset,
        activation_input=activation_input,
        activation_quant_scale=activation_quant_scale,
        activation_quant_offset=activation_quant_offset,
        x_dtype=x_dtype,
        weight_dtype=weight_dtype,
        scale_dtype=scale_dtype,
        per_token_scale_dtype=per_token_scale_dtype,
    )
    usual = len(x) == 1 and group_type == 0 and split_item in (2, 3)
    quantised = x[0].dtype != weight[0].dtype or not x[0].is_floating_point()
    if group_list is None or not usual or quantised or output_dtype:
        kind = group_list_type or 0
        return grouped_forms.run(
            x,
            weight,
            group_list
            if group_list is None
            else cumulative_groups(group_list, kind, group_list.shape[0]),
            split_item or 0,
            -1 if group_type is None else group_type,
            bias=bias,
            scale=scale,
            antiquant_scale=antiquant_scale,
            antiquant_offset=antiquant_offset,
            per_token_scale=per_token_scale,
            act_type=act_type or 0,
            output_dtype=output_dtype,
        )
    rows, weights = x[0], weight[0] if len(weight) == 1 and weight[0].dim() == 3 else list(weight)
    cumulative = cumulative_groups(group_list, group_list_type or 0, len(weights))
    if bias is None:
        return [products.grouped_matmul(rows, weights, cumulative)]
    offsets = wide(bias[0] if len(bias) == 1 and bias[0].dim() == 2 else torch.stack(list(bias)))
    group = plain.group_of_rows(cumulative, len(rows)).clamp(max=len(weights) - 1)
    exact = weights if isinstance(weights, list) else weights.unbind(0)
    product = products.grouped_matmul(wide(rows), [wide(w) for w in exact], cumulative)
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

"""Experts to tokens: the weighted sum of each token's rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import bad, bounds, dtype_of, floating, one_of, readable, same_dtype, shape_of
from .table import operator
from .wide import wide


def check_moe_finalize_routing(
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


@operator(check_moe_finalize_routing)
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

"""MindSpeed's and Megatron's routing: rows sorted by expert, and back; the gating of models without
groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import INDICES, bad, dtype_of, floating, shape_of
from .table import operator
from .wide import unsupported, wide


def check_moe_token_permute(
    tokens: Tensor,
    indices: Tensor,
    num_out_tokens: int | None = None,
    padded_mode: bool = False,
) -> None:
    op = "npu_moe_token_permute"
    floating(op, "tokens", tokens)
    dtype_of(op, "indices", indices, *INDICES)
    if tokens.dim() != 2 or indices.dim() not in (1, 2):
        raise bad(op, "tokens", tokens.shape, "[T, H] with indices [T] or [T, K]")
    if not padded_mode and indices.shape[0] != tokens.shape[0]:
        raise bad(op, "indices", indices.shape, f"[{tokens.shape[0]}, K]")


@operator(check_moe_token_permute)
def npu_moe_token_permute(
    tokens: Tensor,
    indices: Tensor,
    num_out_tokens: int | None = None,
    padded_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """(rows [T*K, H] sorted by expert, int32 [T*K]: where row j of the unsorted T*K rows went).

    tokens [T, H], indices [T, K] the experts of each; num_out_tokens keeps the first rows (below 0:
    all but so many). The sort is stable. Source: test of Ascend/op-plugin, MindSpeed's document.
    """
    unsupported("npu_moe_token_permute", padded_mode=padded_mode or None)
    order = indices.reshape(-1).argsort(stable=True)
    where = order.argsort(stable=True).to(torch.int32)
    order = order[:num_out_tokens] if num_out_tokens else order
    return tokens[order // (indices.numel() // max(indices.shape[0], 1))], where


def check_moe_token_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> None:
    op = "npu_moe_token_unpermute"
    floating(op, "permuted_tokens", permuted_tokens)
    dtype_of(op, "sorted_indices", sorted_indices, *INDICES)
    if permuted_tokens.dim() != 2 or sorted_indices.dim() != 1:
        raise bad(
            op, "sorted_indices", sorted_indices.shape, "[T*K] beside permuted_tokens [T*K, H]"
        )
    if probs is not None:
        floating(op, "probs", probs)
        if probs.dim() != 2 or probs.numel() != sorted_indices.shape[0]:
            raise bad(op, "probs", probs.shape, f"[T, K] of {sorted_indices.shape[0]} numbers")


@operator(check_moe_token_unpermute)
def npu_moe_token_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> Tensor:
    """sum over k of probs[t, k] * row sorted_indices[t*K + k]: [T, H], in float32, one cast. Rows that
    were dropped count as 0; without probs K is 1."""
    unsupported("npu_moe_token_unpermute", padded_mode=padded_mode or None)
    at, rows = sorted_indices.long(), permuted_tokens.shape[0]
    back = wide(permuted_tokens)[at.clamp(max=max(rows - 1, 0))]
    back = back.masked_fill((at >= rows)[:, None], 0)
    if probs is not None:
        back = (back.view(*probs.shape, -1) * wide(probs)[..., None]).sum(1)
    return back.to(permuted_tokens.dtype)


def check_moe_gating_top_k_softmax(x: Tensor, finished: Tensor | None = None, k: int = 1) -> None:
    op = "npu_moe_gating_top_k_softmax"
    floating(op, "x", x)
    if x.dim() not in (2, 3):
        raise bad(op, "x", x.shape, "[.., E] of 2 or 3 dimensions")
    if not 0 < k <= min(x.shape[-1], 1024):
        raise bad(op, "k", k, f"in 1..{min(x.shape[-1], 1024)}")
    if finished is not None:
        dtype_of(op, "finished", finished, torch.bool)
        shape_of(op, "finished", finished, *x.shape[:-1])


@operator(check_moe_gating_top_k_softmax)
def npu_moe_gating_top_k_softmax(
    x: Tensor, finished: Tensor | None = None, k: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """(the k largest of softmax(x), their experts int32, row_idx int32), each [.., k].

    x [.., E]; equal values in the order of the experts; rows that are finished get expert E. row_idx of
    row t, choice j is j * rows + t. Source: operator document and test of Ascend/op-plugin.
    """
    scores = wide(x).softmax(-1)
    values, chosen = scores.sort(dim=-1, descending=True, stable=True)
    values, chosen = values[..., :k].to(x.dtype), chosen[..., :k].to(torch.int32)
    if finished is not None:
        chosen = chosen.masked_fill(finished[..., None], x.shape[-1])
    rows = x.numel() // x.shape[-1]
    row_idx = torch.arange(rows * k, dtype=torch.int32, device=x.device).view(k, rows).t()
    return values, chosen, row_idx.reshape(chosen.shape).contiguous()

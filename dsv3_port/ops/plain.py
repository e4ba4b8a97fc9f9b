"""Products as PyTorch itself has them: what a device computes by that has no form of its own
(products.py), and the pieces that several forms share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .wide import wide

# since torch 2.10; torch 2.9 has it on cuda under another name
grouped_mm = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in], weight [out, in] -> [..., out]."""
    return F.linear(x, weight)


def heads_first(x: Tensor) -> Tensor:
    """x [B, N, S, D] -> [N, B * S, D]: not x @ weight of each head, which copies weight B times."""
    batch, heads, length, width = x.shape
    return x.transpose(0, 1).reshape(heads, batch * length, width)


def head_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Each head's own matrix: x [B, N, S, D], weight [N, D, R] -> [B, N, S, R]."""
    batch, heads, length, _ = x.shape
    return torch.bmm(heads_first(x), weight).view(heads, batch, length, -1).transpose(0, 1)


def shared_scores(q: Tensor, rows: Tensor) -> Tensor:
    """One key row for all heads: q [B, M, D], rows [B, L, D] -> [B, M, L]."""
    return q @ rows.transpose(1, 2)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Operator by operator, the softmax in float32. Shapes as `attention`."""
    scores = (q @ k.transpose(-1, -2)).float() * scale
    return (scores if mask is None else scores + mask).softmax(-1).to(q.dtype) @ v


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + mask) v. q [B, N, S, D], k [B, N, L, D], v [B, N, L, Dv], mask added to
    the scores."""
    if mask is not None and mask.dtype != q.dtype:
        mask = mask.clamp(min=torch.finfo(q.dtype).min).to(
            q.dtype
        )  # float32's lowest number would become -inf
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def group_of_rows(cumulative: Tensor, rows: int) -> Tensor:
    """int64 [rows]: the group each row belongs to, E for rows past the last group."""
    row = torch.arange(rows, device=cumulative.device)
    return (row[:, None] >= cumulative).sum(-1)


def grouped_gather(x: Tensor, weight: Tensor, cumulative: Tensor) -> Tensor:
    """Grouped matmul in which every row reads its own expert's weight, x [M, K], weight [E, K, N]:
    for inductor, which fuses the gather into the product; eagerly weight[group] is a copy."""
    group = group_of_rows(cumulative, x.shape[0])
    # [M, N, K] as a view of weights stored [E, N, K]: the sum runs along contiguous memory
    chosen = weight.transpose(1, 2)[group.clamp(max=weight.shape[0] - 1)]
    y = (wide(chosen) * wide(x)[:, None, :]).sum(-1)
    return torch.where((group < weight.shape[0])[:, None], y, torch.nan).to(x.dtype)

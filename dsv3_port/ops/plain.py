"""Products as PyTorch itself has them: what a device computes by that has no form of its own
(products.py), and the pieces that several forms share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def decode_attention(
    q: Tensor,
    rows: Tensor,
    pad: Tensor,
    slot: Tensor,
    scale: float,
    latent: int,
    scores: Callable[[Tensor, Tensor], Tensor] = shared_scores,
) -> Tensor:
    """Products over the whole buffer under a mask, the softmax in float32; shapes as
    products.decode_attention. A query that sees nothing gets the mean of all rows: finite, if they are."""
    batch, heads, positions, width = q.shape
    length = rows.shape[1]
    key = torch.arange(length, device=q.device)
    query = torch.arange(positions, device=q.device).expand(batch, positions) + slot.unsqueeze(1)
    visible = (key <= query.unsqueeze(-1)) & (key >= pad.view(-1, 1, 1))
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min).unsqueeze(1)  # [B, 1, S, L]
    found = scores(q.reshape(batch, heads * positions, width), rows)
    weights = (found.view(batch, heads, positions, length).float() * scale + mask).softmax(-1)
    joined = weights.to(q.dtype).view(batch, heads * positions, length) @ rows[..., :latent]
    return joined.view(batch, heads, positions, latent)


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
    return _fused_attention(q, k, v, mask, False, scale)


def causal_attention(
    q: Sequence[Tensor], k: Sequence[Tensor], v: Tensor, pad: Tensor, scale: float
) -> Tensor:
    """Shapes as products.causal_attention; largest tensor [B, N, S, D + 1]."""
    batch, heads, length, _ = v.shape
    # one more number in each key, multiplied by 1 in each query: 0, or so low that softmax gives 0
    hidden = torch.arange(length, device=v.device) < pad.unsqueeze(1)
    low = hidden.to(v.dtype) * (torch.finfo(v.dtype).min / 4)
    query = torch.cat((*q, v.new_ones(1, 1, 1, 1).expand(batch, heads, length, 1)), -1)
    key = torch.cat((*k, low.view(batch, 1, length, 1).expand(batch, heads, length, 1)), -1)
    return _fused_attention(query, key, v, None, True, scale)


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """torch's fused kernels take one width for all three; where they differ (here always) torch
    computes the scores [B, N, S, L] in memory, several times over. Zeros behind change nothing."""
    width = max(q.shape[-1], v.shape[-1])
    q, k, wide_v = (
        F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v)
    )
    out = F.scaled_dot_product_attention(q, k, wide_v, mask, is_causal=causal, scale=scale)
    return out[..., : v.shape[-1]]


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

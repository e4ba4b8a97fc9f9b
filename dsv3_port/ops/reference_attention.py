"""What the NPU's fused attention and its batched matmul with permutations mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .wide import unsupported, wide

INT_MAX = 2147483647
COMPRESSED_MASK = 2048  # sparse_mode 2 and 3 take one 2048 x 2048 mask, whatever the lengths
# input_layout -> (layout of query, key and value; layout of the output)
LAYOUTS = {
    "BNSD": ("BNSD", "BNSD"),
    "BSND": ("BSND", "BSND"),
    "BSH": ("BSH", "BSH"),
    "BNSD_NBSD": ("BNSD", "NBSD"),
    "BSND_NBSD": ("BSND", "NBSD"),
    "BSH_NBSD": ("BSH", "NBSD"),
    "BNSD_BSND": ("BNSD", "BSND"),
    "BSH_BNSD": ("BSH", "BNSD"),
    "BSND_BNSD": ("BSND", "BNSD"),
}


def to_bnsd(x: Tensor, layout: str, heads: int) -> Tensor:
    if layout == "BSH":
        x = x.unflatten(-1, (heads, -1))
    return x if layout == "BNSD" else x.transpose(1, 2)


def from_bnsd(x: Tensor, layout: str) -> Tensor:
    if layout == "NBSD":
        return x.transpose(0, 1).contiguous()
    if layout == "BNSD":
        return x
    x = x.transpose(1, 2).contiguous()
    return x.flatten(2) if layout == "BSH" else x


def npu_fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Sequence[int] | None = None,
    actual_seq_lengths_kv: Sequence[int] | None = None,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    key_antiquant_scale: Tensor | None = None,
    key_antiquant_offset: Tensor | None = None,
    value_antiquant_scale: Tensor | None = None,
    value_antiquant_offset: Tensor | None = None,
    block_table: Tensor | None = None,
    query_padding_size: Tensor | None = None,
    kv_padding_size: Tensor | None = None,
    key_shared_prefix: Tensor | None = None,
    value_shared_prefix: Tensor | None = None,
    actual_shared_prefix_len: Sequence[int] | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    key_rope_antiquant_scale: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    pre_tokens: int = INT_MAX,
    next_tokens: int = INT_MAX,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    block_size: int = 0,
    antiquant_mode: int = 0,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
    softmax_lse_flag: bool = False,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * (Q K^T + Q_rope K_rope^T), masked) V for dense layouts. Returns (out, lse).

    query [B, N, S, D], key [B, KV, L, D], value [B, KV, L, Dv] in the order that input_layout
    names; out has query's dtype and value's D. num_key_value_heads 0 means num_heads. atten_mask:
    non-zero = masked out; sparse_mode 0 and 1 use it as given, 2 and 3 are causal, aligned top-left
    and bottom-right, and take the compressed 2048 x 2048 mask, as does 4. With a mask, pre_tokens
    and next_tokens bound a band around the diagonal, from the top left in mode 0 and from the bottom
    right in 4; nowhere else. With one query and no rope inputs they and sparse_mode mean nothing,
    and the mask may be [B, L]. Lengths count the valid positions of
    each batch row: keys behind are not seen, query rows behind are 0 here. No key at all gives 0; a
    row whose keys are all masked is undefined (NaN here) unless inner_precise 2 or 3 makes it 0.
    lse [B, N, S, 1] float32 with softmax_lse_flag, else empty. Inner precision of the device: not
    documented.
    """
    unsupported(
        "npu_fused_infer_attention_score",
        pse_shift=pse_shift,
        dequant_scale1=dequant_scale1,
        quant_scale1=quant_scale1,
        dequant_scale2=dequant_scale2,
        quant_scale2=quant_scale2,
        quant_offset2=quant_offset2,
        antiquant_scale=antiquant_scale,
        antiquant_offset=antiquant_offset,
        key_antiquant_scale=key_antiquant_scale,
        key_antiquant_offset=key_antiquant_offset,
        value_antiquant_scale=value_antiquant_scale,
        value_antiquant_offset=value_antiquant_offset,
        block_table=block_table,
        query_padding_size=query_padding_size,
        kv_padding_size=kv_padding_size,
        key_shared_prefix=key_shared_prefix,
        value_shared_prefix=value_shared_prefix,
        actual_shared_prefix_len=actual_shared_prefix_len,
        block_size=block_size or None,
        antiquant_mode=antiquant_mode or None,
        key_antiquant_mode=key_antiquant_mode or None,
        value_antiquant_mode=value_antiquant_mode or None,
    )
    if input_layout not in LAYOUTS or sparse_mode not in (0, 1, 2, 3, 4):
        raise NotImplementedError(
            f"npu_fused_infer_attention_score: input_layout {input_layout!r} with sparse_mode "
            f"{sparse_mode} has no reference; layouts {', '.join(LAYOUTS)}, modes 0 to 4 have"
        )
    source, target = LAYOUTS[input_layout]
    kv_heads = num_key_value_heads or num_heads
    q, k, v = (
        to_bnsd(query, source, num_heads),
        to_bnsd(key, source, kv_heads),
        to_bnsd(value, source, kv_heads),
    )
    if query_rope is not None and key_rope is not None:
        q = torch.cat((q, to_bnsd(query_rope, source, num_heads)), -1)
        k = torch.cat((k, to_bnsd(key_rope, source, kv_heads)), -1)
    k, v = (wide(t).repeat_interleave(num_heads // kv_heads, 1) for t in (k, v))
    score = wide(q) @ k.transpose(-1, -2) * scale
    batch, queries, keys = q.shape[0], q.shape[2], k.shape[2]
    q_len = _lengths(actual_seq_lengths, batch, queries, q.device)
    kv_len = _lengths(actual_seq_lengths_kv, batch, keys, q.device)
    row, column = (
        torch.arange(queries, device=q.device)[:, None],
        torch.arange(keys, device=q.device),
    )
    absent = (column >= kv_len) | (row >= q_len)  # [B, 1, S, L]
    one_query = queries == 1 and query_rope is None
    hidden = _masked(atten_mask, sparse_mode, row, column, kv_len - q_len, one_query)
    if sparse_mode in (0, 4) and atten_mask is not None and not one_query:
        corner = row + (kv_len - q_len if sparse_mode == 4 else 0)
        hidden = hidden | (column > corner + next_tokens) | (column < corner - pre_tokens)
    score = score.masked_fill(absent | hidden, -torch.inf)
    out = score.softmax(-1) @ v
    out = out.masked_fill(absent.all(-1, keepdim=True), 0)
    if inner_precise in (2, 3):
        out = out.masked_fill((absent | hidden).all(-1, keepdim=True), 0)
    lse = (
        torch.logsumexp(score, -1, keepdim=True).float()
        if softmax_lse_flag
        else score.new_empty(0).float()
    )
    return from_bnsd(out.to(query.dtype), target), lse


def _lengths(given: Sequence[int] | None, batch: int, full: int, device: torch.device) -> Tensor:
    """[B, 1, 1, 1]: the valid length of each batch row; one number stands for all."""
    values = [full] if given is None else [int(n) for n in given]
    values = values[:batch]  # more than there are sequences: the first ones count
    return torch.tensor(values, device=device).expand(batch)[:, None, None, None]


def _masked(
    mask: Tensor | None, mode: int, row: Tensor, column: Tensor, shift: Tensor, one_query: bool
) -> Tensor:
    """True where a key is masked out, broadcastable to [B, N, S, L]; `shift` = valid keys minus
    valid queries."""
    if mode in (2, 3, 4):
        if (
            one_query or mode == 4
        ):  # the document: sparse_mode is ignored with one query and no rope inputs
            return torch.zeros_like(column, dtype=torch.bool)
        return column > row + (shift if mode == 3 else 0)
    if mask is None:
        return torch.zeros_like(column, dtype=torch.bool)
    mask = mask.bool()
    if mask.dim() == 2 and one_query:  # [B, L]: a row of keys for each sequence
        return mask[:, None, None]
    return mask[:, None] if mask.dim() == 3 else mask


def npu_transpose_batchmatmul(
    input: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    perm_x1: Sequence[int] | None = None,
    perm_x2: Sequence[int] | None = None,
    perm_y: Sequence[int] | None = None,
    batch_split_factor: int | None = 1,
) -> Tensor:
    """Batched matmul with the permutations folded in: input.permute(perm_x1) @
    weight.permute(perm_x2), then perm_y.

    input [B, M, K] (or [M, B, K] with perm_x1 (1, 0, 2)), weight [B, K, N] -> [M, B, N]: perm_y is
    (1, 0, 2), also when None. batch_split_factor f > 1 -> [f, M, B*N/f]. Source: operator document
    and test of Ascend/op-plugin.
    """
    unsupported("npu_transpose_batchmatmul", bias=bias, scale=scale)
    y = wide(input).permute(tuple(perm_x1 or (0, 1, 2))) @ wide(weight).permute(
        tuple(perm_x2 or (0, 1, 2))
    )
    y = y.permute(tuple(perm_y or (1, 0, 2))).to(input.dtype).contiguous()
    if batch_split_factor in (None, 1):
        return y
    return y.view(y.shape[0], batch_split_factor, -1).transpose(0, 1).contiguous()

"""The NPU's fused attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .attention_layouts import (
    LAYOUTS,
    OTHER_LAYOUTS,
    TWO_DIM_MASKS,
    check_dense,
    from_bnsd,
    to_bnsd,
)
from .checks import bad, dtype_of, floating, one_of, same_dtype
from .table import operator
from .wide import unsupported, wide

INT_MAX = 2147483647
COMPRESSED_MASK = 2048  # sparse_mode 2 and 3 take one 2048 x 2048 mask, whatever the lengths


def check_fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Sequence[int] | None = None,
    actual_seq_lengths_kv: Sequence[int] | None = None,
    block_table: Tensor | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    num_heads: int = 1,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    **other: Any,
) -> None:
    op = "npu_fused_infer_attention_score"
    one_of(op, "input_layout", input_layout, *LAYOUTS, *OTHER_LAYOUTS)
    one_of(op, "sparse_mode", sparse_mode, 0, 1, 2, 3, 4, 9)
    one_of(op, "inner_precise", inner_precise, 0, 1, 2, 3)
    floating(op, "query", query)
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != torch.int8:  # a quantised cache
            same_dtype(op, name, tensor, "query", query)
    kv_heads = num_key_value_heads or num_heads
    if kv_heads < 1 or num_heads % kv_heads:
        raise bad(
            op,
            "num_key_value_heads",
            num_key_value_heads,
            f"a divisor of num_heads, {num_heads} (0: the same)",
        )
    if query_rope is None and num_heads // kv_heads > 64:
        raise bad(
            op, "num_heads", num_heads, f"at most 64 times the {kv_heads} key and value heads"
        )
    if (query_rope is None) != (key_rope is None):
        raise bad(op, "key_rope", key_rope, "given together with query_rope")
    if block_table is not None and actual_seq_lengths_kv is None:
        raise bad(op, "actual_seq_lengths_kv", None, "given with a block_table")
    dense = input_layout in LAYOUTS and block_table is None
    source = LAYOUTS[input_layout][0] if dense else input_layout
    axis = 2 if source == "BNSD" else 1
    one_query = dense and query.dim() > axis and query.shape[axis] == 1
    if one_query:
        one_of(op, "inner_precise (one query)", inner_precise, 0, 1)
    _check_mask(op, atten_mask, 0 if one_query and query_rope is None else sparse_mode)
    if dense:
        check_dense(op, source, query, key, value, query_rope, key_rope, num_heads, kv_heads)
        two_dims = query_rope is None and input_layout in TWO_DIM_MASKS
        batch, queries, keys = query.shape[0], query.shape[axis], key.shape[axis]
        if atten_mask is not None and sparse_mode in (0, 1):
            _check_mask_shape(op, atten_mask, batch, queries, keys, two_dims)
        _check_lengths(op, "actual_seq_lengths", actual_seq_lengths, batch, queries)
        _check_lengths(op, "actual_seq_lengths_kv", actual_seq_lengths_kv, batch, keys)


def _check_mask(op: str, mask: Tensor | None, sparse_mode: int) -> None:
    if mask is None:
        if sparse_mode in (1, 2, 3, 4):
            raise bad(op, "atten_mask", None, f"given with sparse_mode {sparse_mode}")
        return
    dtype_of(op, "atten_mask", mask, torch.bool, torch.int8, torch.uint8)
    if sparse_mode in (2, 3, 4) and mask.shape[-2:] != torch.Size(
        (COMPRESSED_MASK, COMPRESSED_MASK)
    ):
        raise bad(
            op,
            "atten_mask",
            mask.shape,
            f"[2048, 2048], True strictly above the diagonal, with sparse_mode {sparse_mode}",
        )


def _check_mask_shape(
    op: str, mask: Tensor, batch: int, queries: int, keys: int, two_dims: bool
) -> None:
    lead = ((1,), (batch,), (batch, 1), (1, 1))
    wanted = [(*dims, queries, keys) for dims in lead]
    if two_dims:
        wanted.append((batch, keys) if queries == 1 else (queries, keys))
    if tuple(mask.shape) not in wanted:
        raise bad(op, "atten_mask", mask.shape, " or ".join(str(list(w)) for w in wanted))


def _check_lengths(
    op: str, name: str, lengths: Sequence[int] | None, batch: int, limit: int
) -> None:
    if lengths is None:
        return
    if isinstance(lengths, Tensor):
        raise bad(op, name, lengths, "a list of int (host numbers)")
    if 1 < len(lengths) < batch or not all(0 <= n <= limit for n in lengths[:batch]) or not lengths:
        raise bad(
            op,
            name,
            list(lengths),
            f"{batch} lengths in 0..{limit}, one for each batch row, or one for all",
        )


@operator(check_fused_infer_attention_score)
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

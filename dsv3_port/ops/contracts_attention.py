"""Argument checks of the attention operators; see contracts.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import bad, dtype_of, floating, one_of, same_dtype
from .reference_attention import COMPRESSED_MASK, LAYOUTS

OTHER_LAYOUTS = ("TND", "NTD", "TND_NTD", "NTD_TND", "NSD")
TWO_DIM_MASKS = ("BSH", "BSND", "BNSD", "BNSD_BSND")  # without rope inputs
MLA_HEADS = (1, 2, 4, 8, 16, 32, 64, 128)


def npu_fused_infer_attention_score(
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
    _mask(op, atten_mask, 0 if one_query and query_rope is None else sparse_mode)
    if dense:
        _dense(
            op,
            source,
            query,
            key,
            value,
            query_rope,
            key_rope,
            num_heads,
            kv_heads,
        )
        two_dims = query_rope is None and input_layout in TWO_DIM_MASKS
        if atten_mask is not None and sparse_mode in (0, 1):
            _mask_shape(
                op, atten_mask, query.shape[0], query.shape[axis], key.shape[axis], two_dims
            )
        _lengths(op, "actual_seq_lengths", actual_seq_lengths, query.shape[0], query.shape[axis])
        _lengths(
            op, "actual_seq_lengths_kv", actual_seq_lengths_kv, query.shape[0], key.shape[axis]
        )


def _mask(op: str, mask: Tensor | None, sparse_mode: int) -> None:
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


def _mask_shape(op: str, mask: Tensor, batch: int, queries: int, keys: int, two_dims: bool) -> None:
    lead = ((1,), (batch,), (batch, 1), (1, 1))
    wanted = [(*dims, queries, keys) for dims in lead]
    if two_dims:
        wanted.append((batch, keys) if queries == 1 else (queries, keys))
    if tuple(mask.shape) not in wanted:
        raise bad(op, "atten_mask", mask.shape, " or ".join(str(list(w)) for w in wanted))


def _dense(
    op: str,
    layout: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_rope: Tensor | None,
    key_rope: Tensor | None,
    heads: int,
    kv_heads: int,
) -> None:
    """Heads, head sizes and, with rope inputs, the two forms of MLA."""

    def head_size(name: str, tensor: Tensor, count: int) -> int:
        rank, axis = (3, 2) if layout == "BSH" else (4, layout.index("N"))
        if (
            tensor.dim() != rank
            or tensor.shape[axis] % count
            or (rank == 4 and tensor.shape[axis] != count)
        ):
            raise bad(op, name, tensor.shape, f"{layout} with N = {count} heads")
        return tensor.shape[-1] // count if layout == "BSH" else tensor.shape[-1]

    width = head_size("query", query, heads)
    head_size("value", value, kv_heads)
    if head_size("key", key, kv_heads) != width:
        raise bad(op, "key", key.shape, f"of query's head size, {width}")
    if query_rope is None or key_rope is None:
        return
    if width not in (128, 512):
        raise bad(
            op,
            "query",
            query.shape,
            "of head size 512 (decode, absorbed) or 128 (prefill) beside rope inputs",
        )
    if width == 512 and (kv_heads != 1 or heads not in MLA_HEADS):
        raise bad(
            op,
            "num_heads",
            f"{heads} over {kv_heads}",
            "a power of two up to 128 over one key head, absorbed",
        )
    for name, rope, count in (("query_rope", query_rope, heads), ("key_rope", key_rope, kv_heads)):
        same_dtype(op, name, rope, "query", query)
        if head_size(name, rope, count) != 64:
            raise bad(op, name, rope.shape, "of head size 64")


def _lengths(op: str, name: str, lengths: Sequence[int] | None, batch: int, limit: int) -> None:
    if lengths is None:
        return
    if isinstance(lengths, Tensor):
        raise bad(op, name, lengths, "a list of int (host numbers)", TypeError)
    if 1 < len(lengths) < batch or not all(0 <= n <= limit for n in lengths[:batch]) or not lengths:
        raise bad(
            op,
            name,
            list(lengths),
            f"{batch} lengths in 0..{limit}, one for each batch row, or one for all",
        )


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
) -> None:
    op = "npu_transpose_batchmatmul"
    floating(op, "input", input)
    same_dtype(op, "weight", weight, "input", input)
    for name, perm, wanted in (
        ("perm_x1", perm_x1, ((0, 1, 2), (1, 0, 2))),
        ("perm_x2", perm_x2, ((0, 1, 2),)),
        ("perm_y", perm_y, ((1, 0, 2),)),
    ):
        if perm is not None:
            one_of(op, name, tuple(perm), *wanted)
    batch = 1 if tuple(perm_x1 or ()) == (1, 0, 2) else 0  # dimension
    if (
        input.dim() != 3
        or weight.dim() != 3
        or weight.shape[0] != input.shape[batch]
        or weight.shape[1] != input.shape[2]
    ):
        raise bad(
            op,
            "weight",
            weight.shape,
            "[B, K, N] with input [B, M, K] (perm_x1 (1, 0, 2): [M, B, K]); the "
            f"input is {list(input.shape)}",
        )
    if weight.shape[2] % (batch_split_factor or 1):
        raise bad(
            op, "batch_split_factor", batch_split_factor, f"a divisor of N, {weight.shape[2]}"
        )

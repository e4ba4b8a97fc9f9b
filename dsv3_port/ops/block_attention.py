"""Absorbed attention over blocks: one operator, whose lengths come as numbers of the host or as a
tensor; and rows written into blocks as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import fused_attention_v2
from .attention_core import check, run
from .paged_cache import npu_scatter_pa_kv_cache
from .table import on_npu


def lengths_may_be_a_tensor(like: Tensor) -> bool:
    """Whether `paged_attention` on that tensor's device takes them so now: an NPU only compiled."""
    return torch.compiler.is_compiling() or not on_npu(like)


def paged_attention(
    query: Tensor,
    query_rope: Tensor,
    key: Tensor,
    key_rope: Tensor,
    table: Tensor,
    lengths: Sequence[int] | Tensor,
    causal: Tensor | None,
    scale: float,
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """npu_fused_infer_attention_score_v2 as absorbed MLA calls it: query [B, S, N, 512], query_rope
    [B, S, N, 64], blocks key [blocks, block, 512] (the values too) and key_rope [blocks, block, 64],
    table [B, M] int32 -> [N, B, S, 512].

    lengths: valid keys of each sequence, among them those of the new positions. A list is the
    operator's own actual_seq_kvlen. A tensor [B] int64 is for graphs without host numbers: GE's
    (torchair.ops.npu_fused_infer_attention_score_v2, which exists only while torchair compiles) and
    inductor's. causal: None for one query; else the compressed mask of sparse_mode 3, and queries
    before the first key give 0.

    scales: of an int8 query [B, S, N] and of int8 blocks [1], float32; query_rope then comes divided by
    both, as npu_mla_prolog_v3 hands it out, and the rotary blocks stay 16-bit.
    """
    given: dict[str, Any] = {
        "query_rope": query_rope,
        "key_rope": key_rope,
        "atten_mask": causal,
        "block_table": table,
        "block_size": key.shape[1],
        "num_query_heads": query.shape[2],
        "num_key_value_heads": 1,
        "softmax_scale": scale,
        "input_layout": "BSND_NBSD",
        "sparse_mode": 0 if causal is None else 3,
        "inner_precise": 0 if causal is None else 2,  # 2: rows that see nothing are 0
    }
    if scales is not None:
        given["dequant_scale_query"], of_blocks = scales
        given |= {"dequant_scale_key": of_blocks, "dequant_scale_value": of_blocks}
        given["query_quant_mode"] = 3  # a scale a row and head
    if not isinstance(lengths, Tensor):
        op = fused_attention_v2.npu_fused_infer_attention_score_v2
        return op(query, key, key, actual_seq_kvlen=lengths, **given)[0]
    if on_npu(query):
        by_tensor = torch.ops.air.npu_fused_infer_attention_score_v2
        out: Tensor = by_tensor(query, key, key, actual_seq_kvlen=lengths, **given)[0]
        return out
    room = [table.shape[1] * key.shape[1]] * table.shape[0]
    call = fused_attention_v2.call_of(query, key, key, actual_seq_kvlen=room, **given)
    check(call)
    return run(call, lengths)[0]


def write_slots(rows: Sequence[Tensor], blocks: Sequence[Tensor], index: Tensor) -> None:
    """rows, two of [T, heads, width], into blocks, two of [blocks, block, heads, width], at slots
    index [T]; a slot below 0 writes nothing. In place."""
    (key, value), (key_cache, value_cache) = rows, blocks
    if value.dtype != key.dtype:  # the operator takes one dtype, and moves bytes
        value, value_cache = value.view(key.dtype), value_cache.view(key.dtype)
    npu_scatter_pa_kv_cache(key, value, key_cache, value_cache, index, cache_mode="Norm")

"""The NPU's fused attention, in its second form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .attention_call import INT_MAX, SAME, CacheScales, Call, ProductScales
from .attention_core import check, run
from .checks import bad, dtype_of, floating, for_device, one_of, same_dtype
from .table import operator
from .wide import unsupported

OP = "npu_fused_infer_attention_score_v2"
WORDS = {
    "q_lengths": "actual_seq_qlen",
    "kv_lengths": "actual_seq_kvlen",
    "heads": "num_query_heads",
    "key_scale": "dequant_scale_key",
    "key_offset": "dequant_offset_key",
    "key_mode": "key_quant_mode",
    "value_scale": "dequant_scale_value",
    "value_offset": "dequant_offset_value",
    "product_scales": "dequant_scale_query, dequant_scale_key, dequant_scale_value",
    "out_scale": "quant_scale_out",
    "out_offset": "quant_offset_out",
}


def call_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    quant_scale_out: Tensor | None = None,
    quant_offset_out: Tensor | None = None,
    learnable_sink: Tensor | None = None,
    num_query_heads: int = 1,
    num_key_value_heads: int = 0,
    softmax_scale: float = 1.0,
    input_layout: str = "BSH",
    return_softmax_lse: bool = False,
    **given: Any,
) -> Call:
    """The arguments in the words of both forms."""
    whole = query.dtype == torch.int8
    return Call(
        OP,
        query,
        key,
        value,
        num_query_heads,
        num_key_value_heads or num_query_heads,
        softmax_scale,
        input_layout,
        WORDS,
        q_lengths=actual_seq_qlen,
        kv_lengths=actual_seq_kvlen,
        lse=return_softmax_lse,
        cache_scales=None if whole else _cache_scales(**given),
        product_scales=_product_scales(query, **given) if whole else None,
        out_scale=quant_scale_out,
        out_offset=quant_offset_out,
        sink=learnable_sink,
        **{name: given[name] for name in SAME if name in given},
    )


def _cache_scales(
    dequant_scale_query: Tensor | None = None,
    dequant_scale_key: Tensor | None = None,
    dequant_offset_key: Tensor | None = None,
    dequant_scale_value: Tensor | None = None,
    dequant_offset_value: Tensor | None = None,
    key_quant_mode: int = 0,
    value_quant_mode: int = 0,
    **_: Any,
) -> CacheScales | None:
    if dequant_scale_query is not None:
        raise bad(OP, "dequant_scale_query", dequant_scale_query, "None unless query is int8")
    if (dequant_scale_key is None) != (dequant_scale_value is None):
        raise bad(OP, "dequant_scale_value", dequant_scale_value, "given as key's is")
    if dequant_scale_key is None or dequant_scale_value is None:
        return None
    offsets = dequant_offset_key, dequant_offset_value
    return CacheScales(
        dequant_scale_key, dequant_scale_value, *offsets, key_quant_mode, value_quant_mode
    )


def _product_scales(
    query: Tensor,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    dequant_scale_query: Tensor | None = None,
    dequant_scale_key: Tensor | None = None,
    dequant_offset_key: Tensor | None = None,
    dequant_scale_value: Tensor | None = None,
    dequant_offset_value: Tensor | None = None,
    query_quant_mode: int = 0,
    key_quant_mode: int = 0,
    value_quant_mode: int = 0,
    **_: Any,
) -> ProductScales:
    """An int8 query: absorbed MLA, one scale for each query row and head, one each for the caches."""
    if query_rope is None:
        raise bad(OP, "query", query.dtype, "float16 or bfloat16 without rope inputs")
    if for_device(query_rope):
        dtype_of(OP, "query_rope", query_rope, torch.bfloat16)
    floating(OP, "query_rope", query_rope)
    if key_rope is not None:
        same_dtype(OP, "key_rope", key_rope, "query_rope", query_rope)
    scales = (dequant_scale_query, dequant_scale_key, dequant_scale_value)
    of_query, of_key, of_value = scales
    if of_query is None or of_key is None or of_value is None:
        raise bad(OP, WORDS["product_scales"], "given in part", "all given with an int8 query")
    for name, offset in (("key", dequant_offset_key), ("value", dequant_offset_value)):
        if offset is not None:
            raise bad(OP, f"dequant_offset_{name}", offset, "None with an int8 query")
    one_of(OP, "query_quant_mode", query_quant_mode, 3)
    one_of(OP, "key_quant_mode", key_quant_mode, 0)
    one_of(OP, "value_quant_mode", value_quant_mode, 0)
    rows = query_rope.numel() // 64  # its head size, whatever the layout
    for name, scale, count in (
        ("query", of_query, rows),
        ("key", of_key, 1),
        ("value", of_value, 1),
    ):
        dtype_of(OP, f"dequant_scale_{name}", scale, torch.float32)
        if scale.numel() != count:
            raise bad(OP, f"dequant_scale_{name}", scale.shape, f"{count} numbers")
    return ProductScales(of_query, of_key, None, of_value)


def check_fused_infer_attention_score_v2(
    query: Tensor, key: Tensor, value: Tensor, **given: Any
) -> None:
    check(call_of(query, key, value, **given))


@operator(check_fused_infer_attention_score_v2)
def npu_fused_infer_attention_score_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    block_table: Tensor | None = None,
    dequant_scale_query: Tensor | None = None,
    dequant_scale_key: Tensor | None = None,
    dequant_offset_key: Tensor | None = None,
    dequant_scale_value: Tensor | None = None,
    dequant_offset_value: Tensor | None = None,
    dequant_scale_key_rope: Tensor | None = None,
    quant_scale_out: Tensor | None = None,
    quant_offset_out: Tensor | None = None,
    quant_scale_p: Tensor | None = None,
    learnable_sink: Tensor | None = None,
    num_query_heads: int = 1,
    num_key_value_heads: int = 0,
    softmax_scale: float = 1.0,
    pre_tokens: int = INT_MAX,
    next_tokens: int = INT_MAX,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
    block_size: int = 0,
    query_quant_mode: int = 0,
    key_quant_mode: int = 0,
    value_quant_mode: int = 0,
    inner_precise: int = 0,
    return_softmax_lse: bool = False,
    query_dtype: int | None = None,
    key_dtype: int | None = None,
    value_dtype: int | None = None,
    query_rope_dtype: int | None = None,
    key_rope_dtype: int | None = None,
    key_shared_prefix_dtype: int | None = None,
    value_shared_prefix_dtype: int | None = None,
    dequant_scale_query_dtype: int | None = None,
    dequant_scale_key_dtype: int | None = None,
    dequant_scale_value_dtype: int | None = None,
    dequant_scale_key_rope_dtype: int | None = None,
    out_dtype: int | None = None,
) -> tuple[Tensor, Tensor]:
    """npu_fused_infer_attention_score in its newer words: the same values, and besides them:

    learnable_sink [N] bfloat16: one more key of that score for each head, with value 0; lse counts it.
    int8 query, key and value with rope inputs (absorbed MLA): scores = ((Q K^T) + Q_rope K_rope^T) *
    dequant_scale_query[row, head] * dequant_scale_key * softmax_scale, so query_rope comes divided by
    both scales; the softmax is not rounded before V, which no document states. Source: operator
    document of Ascend/op-plugin, golden of its test_mla_prolog_v3.
    """
    given = locals()
    unsupported(OP, out_dtype=given.pop("out_dtype"))
    return run(call_of(**given))

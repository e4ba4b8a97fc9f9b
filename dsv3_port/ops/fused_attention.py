"""The NPU's fused attention, in its first form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .attention_call import INT_MAX, SAME, CacheScales, Call, ProductScales
from .attention_core import check, run
from .checks import bad
from .table import operator
from .wide import unsupported

OP = "npu_fused_infer_attention_score"
WORDS = {
    "q_lengths": "actual_seq_lengths",
    "kv_lengths": "actual_seq_lengths_kv",
    "heads": "num_heads",
    "key_scale": "key_antiquant_scale",
    "key_offset": "key_antiquant_offset",
    "key_mode": "key_antiquant_mode",
    "value_scale": "value_antiquant_scale",
    "value_offset": "value_antiquant_offset",
    "product_scales": "dequant_scale1, quant_scale1, dequant_scale2",
    "out_scale": "quant_scale2",
    "out_offset": "quant_offset2",
}

WITHOUT_MEANING = (
    *("query_padding_size", "kv_padding_size"),
    *("key_shared_prefix", "value_shared_prefix", "actual_shared_prefix_len"),
)


def call_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    actual_seq_lengths: Sequence[int] | None = None,
    actual_seq_lengths_kv: Sequence[int] | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    softmax_lse_flag: bool = False,
    **given: Any,
) -> Call:
    """The arguments in the words of both forms."""
    return Call(
        OP,
        query,
        key,
        value,
        num_heads,
        num_key_value_heads or num_heads,
        scale,
        input_layout,
        WORDS,
        q_lengths=actual_seq_lengths,
        kv_lengths=actual_seq_lengths_kv,
        lse=softmax_lse_flag,
        cache_scales=_cache_scales(**given),
        product_scales=_product_scales(query, **given),
        out_scale=quant_scale2,
        out_offset=quant_offset2,
        **{name: given[name] for name in SAME if name in given},
    )


def _cache_scales(
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    antiquant_mode: int = 0,
    key_antiquant_scale: Tensor | None = None,
    key_antiquant_offset: Tensor | None = None,
    key_antiquant_mode: int = 0,
    value_antiquant_scale: Tensor | None = None,
    value_antiquant_offset: Tensor | None = None,
    value_antiquant_mode: int = 0,
    **_: Any,
) -> CacheScales | None:
    """Those of key and value apart come before those of both in one tensor [2, ..]."""
    if (key_antiquant_scale is None) != (value_antiquant_scale is None):
        raise bad(OP, "value_antiquant_scale", value_antiquant_scale, "given as key's is")
    if key_antiquant_scale is not None and value_antiquant_scale is not None:
        return CacheScales(
            key_antiquant_scale,
            value_antiquant_scale,
            key_antiquant_offset,
            value_antiquant_offset,
            key_antiquant_mode,
            value_antiquant_mode,
        )
    if antiquant_scale is None:
        return None
    if antiquant_scale.dim() < 1 or antiquant_scale.shape[0] != 2:
        raise bad(OP, "antiquant_scale", antiquant_scale.shape, "[2, ..]: key's and value's")

    def half(x: Tensor | None, which: int) -> Tensor | None:
        return None if x is None else x[which].reshape(x.shape[1:] or (1,))

    key, value = half(antiquant_scale, 0), half(antiquant_scale, 1)
    assert key is not None and value is not None
    offsets = half(antiquant_offset, 0), half(antiquant_offset, 1)
    return CacheScales(key, value, *offsets, antiquant_mode, antiquant_mode, joined=True)


def _product_scales(
    query: Tensor,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    **_: Any,
) -> ProductScales | None:
    """All three with an int8 query, none with another."""
    if dequant_scale1 is None and quant_scale1 is None and dequant_scale2 is None:
        return None
    if dequant_scale1 is None or quant_scale1 is None or dequant_scale2 is None:
        raise bad(OP, WORDS["product_scales"], "given in part", "all three or none")
    if query.dtype != torch.int8:
        raise bad(OP, "query", query.dtype, f"int8 with {WORDS['product_scales']}")
    return ProductScales(None, dequant_scale1, quant_scale1, dequant_scale2)


def check_fused_infer_attention_score(
    query: Tensor, key: Tensor, value: Tensor, **given: Any
) -> None:
    check(call_of(query, key, value, **given))


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
    """softmax(scale * (Q K^T + Q_rope K_rope^T) + pse_shift, masked) V. Returns (out, lse).

    query [B, N, S, D], key [B, KV, L, D], value [B, KV, L, Dv] in the order that input_layout
    names; out has query's dtype and value's D. num_key_value_heads 0 means num_heads. atten_mask:
    non-zero = masked out; sparse_mode 0 and 1 use it as given, 2 and 3 are causal, aligned top-left
    and bottom-right, and take the compressed 2048 x 2048 mask, as does 4. With a mask, pre_tokens
    and next_tokens bound a band around the diagonal, from the top left in mode 0 and from the bottom
    right in 4; nowhere else. With one query and no rope inputs they and sparse_mode mean nothing,
    and the mask may be [B, L]. Lengths count the valid positions of
    each batch row: keys behind are not seen, query rows behind are 0 here. No key at all gives 0; a
    row whose keys are all masked is undefined (NaN here) unless inner_precise 2 or 3 makes it 0.
    lse [B, N, S, 1] float32 with softmax_lse_flag, else empty.

    TND, NTD: [T, N, D] of all sequences; lengths are their cumulative ends; lse [T, N, 1].
    block_table [B, blocks]: attention_paged; the lengths of the keys are then those of each
    sequence in every layout. int8 and int4 caches: attention_call.CacheScales. int8 query, key and
    value: the exponentials, of which the largest is 1, times quant_scale1 are rounded to int8
    before the second product, and their sum divides it; quant_scale2 rounds the result to int8.
    Inner precision of the device: not documented. Source: operator document of Ascend/op-plugin.
    """
    given = locals()
    unsupported(OP, **{name: given.pop(name) for name in WITHOUT_MEANING})
    given.pop("key_rope_antiquant_scale")  # reserved: it changes nothing
    return run(call_of(**given))

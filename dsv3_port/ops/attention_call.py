"""One call of the fused attention, in words that both forms of the operator share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

INT_MAX = 2147483647
SAME = (  # arguments that have one name in both forms
    *("query_rope", "key_rope", "pse_shift", "atten_mask", "block_table", "block_size"),
    *("pre_tokens", "next_tokens", "sparse_mode", "inner_precise"),
)


class CacheScales(NamedTuple):
    """Of an int8 (or int4) key and value beside a 16-bit query: x = (stored + offset) * scale.

    mode 0: a scale a channel ([1, KV, 1, D], [1, KV, D], [KV, 1, D], [KV, D], [1, H], [H]) or one
    in all ([1]); 1: a position ([1, B, L], [B, L]); 2: a head ([KV]); 3: a head and position
    [B, KV, L]; 4 and 5 as 1 and 3, through the block table: [blocks, block], [blocks, KV, block]."""

    key: Tensor
    value: Tensor
    key_offset: Tensor | None
    value_offset: Tensor | None
    key_mode: int
    value_mode: int
    joined: bool = False  # both came in one tensor, the older words


class ProductScales(NamedTuple):
    """Of an int8 query, key and value. scores = (Q K^T) * query * key, where query may be [.., N] a
    row (MLA) or None; with probability, the exponentials are quantised by it before the second
    product, whose sums `value` takes back."""

    query: Tensor | None
    key: Tensor
    probability: Tensor | None
    value: Tensor


class Call(NamedTuple):
    op: str
    query: Tensor
    key: Tensor
    value: Tensor
    heads: int
    kv_heads: int
    scale: float
    layout: str  # an input_layout
    words: Mapping[str, str]  # the operator's own names of: q_lengths, kv_lengths, heads, scales …
    query_rope: Tensor | None = None
    key_rope: Tensor | None = None
    pse_shift: Tensor | None = None
    atten_mask: Tensor | None = None
    q_lengths: Sequence[int] | None = None
    kv_lengths: Sequence[int] | None = None
    block_table: Tensor | None = None
    block_size: int = 0
    pre_tokens: int = INT_MAX
    next_tokens: int = INT_MAX
    sparse_mode: int = 0
    inner_precise: int = 0
    lse: bool = False
    cache_scales: CacheScales | None = None
    product_scales: ProductScales | None = None
    out_scale: Tensor | None = None
    out_offset: Tensor | None = None
    sink: Tensor | None = None

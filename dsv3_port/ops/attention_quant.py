"""int8 in the fused attention: caches that are stored so, products of int8, results of int8."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_call import CacheScales, Call
from .attention_paged import gather_scales
from .checks import bad, dtype_of
from .numbers import word_to_scale

PER_POSITION = (1, 3, 4, 5)  # modes whose scales are float32
PAGED = (4, 5)


def _wanted(call: Call, mode: int, keys: int, width: int) -> list[tuple[int, ...]]:
    """The shapes that a scale may have, by its mode."""
    batch = call.query.shape[0]
    kv = call.kv_heads
    if mode == 0:
        channel = [(kv, 1, width), (kv, width), (kv * width,)]
        return [*channel, *((1, *shape) for shape in channel), (1,)]
    blocks = (call.key.shape[0], call.block_size)
    shapes: dict[int, list[tuple[int, ...]]] = {
        1: [(1, batch, keys), (batch, keys)],
        2: [(kv,)],
        3: [(batch, kv, keys)],
        4: [blocks],
        5: [(blocks[0], kv, blocks[1])],
    }
    return shapes[mode]


def check_cache_scales(call: Call, queries: int, keys: int, width: int) -> None:
    """Scales of an int8 or int4 cache beside a 16-bit query. keys: the positions that the cache
    holds (paged: what the table's blocks hold)."""
    scales, stored = call.cache_scales, (torch.int8, torch.int32)
    if scales is None:
        if call.product_scales is None and call.key.dtype in stored:
            wanted = f"given with a key of {call.key.dtype}"
            raise bad(call.op, call.words["key_scale"], None, wanted)
        return
    dtype_of(call.op, "key", call.key, *stored)
    modes = (scales.key_mode, scales.value_mode)
    allowed = range(6) if queries == 1 else (0, 1)
    if any(m not in allowed for m in modes) or (modes[0] != modes[1] and modes != (0, 1)):
        wanted = f"equal and in 0..{max(allowed)} with {queries} queries (or key 0 beside value 1)"
        raise bad(call.op, call.words["key_mode"], modes, wanted)
    if any(m in PAGED for m in modes) and call.block_table is None:
        raise bad(call.op, call.words["key_mode"], modes, "4 or 5 with a block_table only")
    if call.query_rope is not None:
        raise bad(call.op, call.words["key_scale"], scales.key, "None with rope inputs")
    if call.key.dtype == torch.int32 and (
        call.block_table is not None or queries > 1 or width % 64
    ):
        wanted = "int8; int4 needs one query, no block_table and a head size divisible by 64"
        raise bad(call.op, "key", call.key, wanted)
    if queries > 1:
        dtype_of(call.op, "query", call.query, torch.float16 if scales.joined else torch.bfloat16)
        nz = call.key.dim() == 5  # the one paged form that more than one query may have
        if not scales.joined and (queries > 16 or (call.block_table is not None and not nz)):
            wanted = "at most 16 queries without a block_table (or an NZ cache) beside stored int8"
            raise bad(call.op, "query", call.query, wanted)
    if (scales.key_offset is None) != (scales.value_offset is None):
        raise bad(
            call.op, call.words["value_offset"], scales.value_offset, "given with key's offset"
        )
    _check_each(call, scales, keys, width)


def _check_each(call: Call, scales: CacheScales, keys: int, width: int) -> None:
    for name, scale, offset, mode in (
        ("key_scale", scales.key, scales.key_offset, scales.key_mode),
        ("value_scale", scales.value, scales.value_offset, scales.value_mode),
    ):
        word = call.words[name]
        shapes = _wanted(call, mode, keys, width)
        at_least = mode in (1, 3) and call.block_table is not None  # a row may be longer
        fits = tuple(scale.shape) in shapes or (
            at_least
            and scale.shape[-1] >= keys
            and (*scale.shape[:-1], keys) in [tuple(s) for s in shapes]
        )
        if not fits:
            wanted = f"{' or '.join(str(list(s)) for s in shapes)} in mode {mode}"
            raise bad(call.op, word, scale.shape, wanted)
        dtype = torch.float32 if mode in PER_POSITION else call.query.dtype
        dtype_of(call.op, word, scale, dtype)
        if offset is not None and (offset.shape != scale.shape or offset.dtype != scale.dtype):
            raise bad(call.op, call.words[name.replace("scale", "offset")], offset, f"as {word} is")


def dequantised(call: Call, x: Tensor, which: str, used: Tensor | None) -> Tensor:
    """A cache [B, KV, L, D] with its scales, in float32; an int4 one is unpacked already."""
    scales = call.cache_scales
    if scales is None:
        return x
    key = which == "key"
    mode = scales.key_mode if key else scales.value_mode
    offset = scales.key_offset if key else scales.value_offset

    def spread(t: Tensor) -> Tensor:
        t = t.float()
        if mode == 0:
            return t if t.numel() == 1 else t.reshape(1, call.kv_heads, 1, -1)
        if mode == 2:
            return t[None, :, None, None]
        if mode in PAGED:
            assert used is not None
            return gather_scales(t, used)[..., None]
        t = t.reshape(t.shape[-2], 1, -1) if mode == 1 else t
        return t[..., : x.shape[2], None]

    y = x.float() if offset is None else x.float() + spread(offset)
    return y * spread(scales.key if key else scales.value)


def number(scale: Tensor) -> Tensor:
    """A scale as float32: it may be npu_trans_quant_param's word."""
    if scale.dtype in (torch.uint64, torch.int64):
        return word_to_scale(scale.view(torch.int64))
    return scale.float()


def check_products(call: Call) -> None:
    """int8 query, key and value: which of the scales belong together."""
    if call.product_scales is None:  # then the query is no int8: its dtype was looked at before
        return
    for name, x in (("key", call.key), ("value", call.value)):
        dtype_of(call.op, name, x, torch.int8)
    if call.query_rope is not None and call.product_scales.probability is not None:
        raise bad(call.op, "query", call.query, "float16 or bfloat16 with rope inputs")
    if call.query_rope is None:  # that of the prefill: one number each
        for scale in (call.product_scales.key, call.product_scales.value):
            dtype_of(call.op, call.words["product_scales"], scale, torch.float32, torch.uint64)
        if call.layout not in ("BSH", "BNSD", "BSND", "BNSD_BSND"):
            raise bad(
                call.op, "input_layout", call.layout, "BSH, BNSD, BSND or BNSD_BSND with int8"
            )
        if call.block_table is not None:
            raise bad(call.op, "block_table", call.block_table, "None with an int8 query")


def check_out_scale(call: Call, value_width: int) -> None:
    """The scale of an int8 result: one number, or one for each channel of each head."""
    scale, offset = call.out_scale, call.out_offset
    word = call.words["out_scale"]
    if scale is None:
        if offset is not None:
            raise bad(call.op, word, None, f"given with {call.words['out_offset']}")
        return
    dtypes = [torch.float32, torch.bfloat16]
    dtype_of(call.op, word, scale, *dtypes[: 2 if call.query.dtype == torch.bfloat16 else 1])
    if scale.numel() not in (1, call.heads * value_width):
        raise bad(call.op, word, scale.shape, f"1 or {call.heads * value_width} = N*D numbers")
    if call.query_rope is not None:
        raise bad(call.op, word, scale, "None with rope inputs")
    if offset is not None and (offset.shape != scale.shape or offset.dtype != scale.dtype):
        raise bad(call.op, call.words["out_offset"], offset, f"as {word} is")


def quantised_out(call: Call, out: Tensor) -> Tensor:
    """[B, N, S, D] float32 -> int8, rounded to even and clipped."""
    if call.out_scale is None:
        return out

    def spread(t: Tensor) -> Tensor:
        return t.float() if t.numel() == 1 else t.float().reshape(call.heads, 1, -1)

    y = out * spread(call.out_scale)
    y = y if call.out_offset is None else y + spread(call.out_offset)
    return y.round().clamp(-128, 127).to(torch.int8)

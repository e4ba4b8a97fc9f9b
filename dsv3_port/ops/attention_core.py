"""What the fused attention checks and computes, whichever of its two forms is called."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import attention_packed as packed
from . import attention_paged as paged
from .attention_call import Call
from .attention_layouts import (
    LAYOUTS,
    OTHER_LAYOUTS,
    PACKED,
    TWO_DIM_MASKS,
    check_mla,
    check_rope,
    from_bnsd,
    head_size,
    to_bnsd,
)
from .attention_masks import check_lengths, check_mask, check_mask_shape, hidden
from .attention_quant import (
    check_cache_scales,
    check_out_scale,
    check_products,
    dequantised,
    number,
    quantised_out,
)
from .checks import bad, dtype_of, floating, one_of, same_dtype, shape_of
from .numbers import unpack_int4
from .wide import exact_product, wide


def check(call: Call) -> None:
    op = call.op
    one_of(op, "input_layout", call.layout, *LAYOUTS, *OTHER_LAYOUTS)
    one_of(op, "sparse_mode", call.sparse_mode, 0, 1, 2, 3, 4, 9)
    one_of(op, "inner_precise", call.inner_precise, 0, 1, 2, 3)
    if call.product_scales is None:
        floating(op, "query", call.query)
    for name, tensor in (("key", call.key), ("value", call.value)):
        if call.cache_scales is None and call.product_scales is None:
            if tensor.dtype not in (torch.int8, torch.int32):
                same_dtype(op, name, tensor, "query", call.query)
        else:
            same_dtype(op, name, tensor, "key", call.key)
    if call.kv_heads < 1 or call.heads % call.kv_heads:
        raise bad(
            op,
            "num_key_value_heads",
            call.kv_heads,
            f"a divisor of {call.words['heads']}, {call.heads} (0: the same)",
        )
    if call.query_rope is None and call.heads // call.kv_heads > 64:
        raise bad(
            op,
            call.words["heads"],
            call.heads,
            f"at most 64 times the {call.kv_heads} key and value heads",
        )
    if (call.query_rope is None) != (call.key_rope is None):
        raise bad(op, "key_rope", call.key_rope, "given together with query_rope")
    if call.layout in LAYOUTS:
        _check_operands(call, LAYOUTS[call.layout][0])


def _check_operands(call: Call, source: str) -> None:
    op, query, table = call.op, call.query, call.block_table
    is_packed = source in PACKED
    width = head_size(op, "query", query, source, call.heads)
    axis = 2 if source == "BNSD" else 1
    queries = 2 if is_packed else query.shape[axis]  # packed: no rule of one query
    given = 0 if call.q_lengths is None else len(call.q_lengths)
    batch = given if is_packed else query.shape[0]
    one_query = queries == 1 and call.query_rope is None
    if queries == 1:
        one_of(op, "inner_precise (one query)", call.inner_precise, 0, 1)
    check_mask(op, call.atten_mask, 0 if one_query else call.sparse_mode)
    paged.check_table(call, batch, queries, width, is_packed)
    times = 8 if call.key.dtype == torch.int32 else 1  # int4, packed
    if table is None:
        sizes = [head_size(op, n, t, source, call.kv_heads) * times for n, t in _stored(call)]
    else:
        sizes = [paged.check_cache(call, n, t, source) * times for n, t in _stored(call)]
    if sizes[0] != width:
        raise bad(op, "key", call.key.shape, f"of query's head size, {width}")
    if call.query_rope is not None and call.key_rope is not None:
        check_mla(call, width)
        check_rope(call, "query_rope", call.query_rope, source, call.heads)
        if table is None:
            check_rope(call, "key_rope", call.key_rope, source, call.kv_heads)
        elif paged.check_cache(call, "key_rope", call.key_rope, source) != 64:
            raise bad(op, "key_rope", call.key_rope.shape, "of head size 64")
    if is_packed:
        packed.check_packed(call, source, width, sizes[1])
    _check_sink(call, sizes[1])
    check_products(call)
    check_out_scale(call, sizes[1])
    if is_packed:
        _refuse_packed(call)
        return
    keys = call.key.shape[axis] if table is None else table.shape[1] * call.block_size
    check_cache_scales(call, queries, keys, width)
    two_dims = call.query_rope is None and call.layout in TWO_DIM_MASKS
    if call.atten_mask is not None and call.sparse_mode in (0, 1):
        last = call.atten_mask.shape[-1]  # beside a table it may be longer
        room = keys if table is None else max(keys, last)
        check_mask_shape(op, call.atten_mask, batch, queries, room, two_dims)
    check_lengths(op, call.words["q_lengths"], call.q_lengths, batch, queries)
    if table is None:
        check_lengths(op, call.words["kv_lengths"], call.kv_lengths, batch, keys)


def _stored(call: Call) -> tuple[tuple[str, Tensor], ...]:
    return ("key", call.key), ("value", call.value)


def _check_sink(call: Call, value_width: int) -> None:
    sink = call.sink
    if sink is None:
        return
    if call.layout not in ("TND", "NTD_TND") or value_width > 128:
        wanted = "None unless layout is TND or NTD_TND and value's head size at most 128"
        raise bad(call.op, "learnable_sink", sink, wanted)
    dtype_of(call.op, "learnable_sink", sink, torch.bfloat16)
    shape_of(call.op, "learnable_sink", sink, call.heads, names="[N]")


def _refuse_packed(call: Call) -> None:
    """What layouts TND and NTD do not take."""
    for name, value in (("pse_shift", call.pse_shift), (call.words["out_scale"], call.out_scale)):
        if value is not None:
            raise bad(call.op, name, value, f"None with layout {call.layout}")
    if call.cache_scales is not None or (call.key.dtype == torch.int8 and not call.product_scales):
        wanted = f"of query's dtype with layout {call.layout}, without scales"
        raise bad(call.op, "key", call.key, wanted)


def run(call: Call, kv_tensor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """softmax(scale * (Q K^T + Q_rope K_rope^T) + pse_shift, masked) V, and its lse.

    kv_tensor [B]: valid keys in place of the call's own numbers, which only bound them then.
    """
    if call.layout not in LAYOUTS or call.sparse_mode not in (0, 1, 2, 3, 4):
        raise NotImplementedError(
            f"{call.op}: input_layout {call.layout!r} with sparse_mode {call.sparse_mode} has no "
            f"reference; layouts {', '.join(LAYOUTS)}, modes 0 to 4 have"
        )
    source, target = LAYOUTS[call.layout]
    q_lengths: Sequence[int] | None = call.q_lengths
    kv_lengths: Sequence[int] | None = call.kv_lengths
    if source in PACKED:
        assert call.q_lengths is not None and call.kv_lengths is not None
        q_lengths = packed.lengths(call.q_lengths)
        kv_lengths = kv_lengths if call.block_table is not None else packed.lengths(call.kv_lengths)

    def rows(x: Tensor, heads: int, ends: Sequence[int] | None) -> Tensor:
        return packed.pad(x, source, ends or ()) if source in PACKED else to_bnsd(x, source, heads)

    q = rows(call.query, call.heads, call.q_lengths)
    q_len = _lengths(q_lengths, q.shape[0], q.shape[2], q.device)
    kv_len = _lengths(kv_lengths, q.shape[0], None, q.device)
    if kv_tensor is not None:
        kv_len = kv_tensor[:, None, None, None]
    used = None
    if call.block_table is None:

        def cache(x: Tensor) -> Tensor:
            x = unpack_int4(x) if x.dtype == torch.int32 and source != "BSH" else x
            if x.dtype == torch.int32:
                x = unpack_int4(x.unflatten(-1, (call.kv_heads, -1))).flatten(-2)
            return rows(x, call.kv_heads, call.kv_lengths)

    else:
        used = paged.used_blocks(call, kv_len.flatten())

        def cache(x: Tensor) -> Tensor:
            assert used is not None
            return paged.gather(x, used, call.kv_heads)

    k, v = cache(call.key), cache(call.value)
    if kv_lengths is None:
        kv_len = _lengths(None, q.shape[0], k.shape[2], q.device)
    k, v = dequantised(call, k, "key", used), dequantised(call, v, "value", used)
    if used is not None:  # what lies behind a sequence in its last block counts for nothing
        v = v.masked_fill(torch.arange(v.shape[2], device=v.device)[:, None] >= kv_len, 0)
    q_rope = None if call.query_rope is None else rows(call.query_rope, call.heads, call.q_lengths)
    k_rope = None if call.key_rope is None else cache(call.key_rope)
    out, lse = _attend(call, (q, k, v), (q_rope, k_rope), q_len, kv_len)
    out = quantised_out(call, out).to(result_dtype(call))
    if source not in PACKED:
        return from_bnsd(out, target), lse
    total, ends = call.query.shape[source.index("T")], call.q_lengths or ()
    return packed.unpad(out, target, ends, total), (
        packed.unpad(lse, "TND", ends, total) if call.lse else lse
    )


def result_dtype(call: Call) -> torch.dtype:
    """int8 with a scale of the result; float16, or query_rope's, for an int8 query; else query's."""
    if call.out_scale is not None:
        return torch.int8
    if call.query.dtype == torch.int8:
        return torch.float16 if call.query_rope is None else call.query_rope.dtype
    return call.query.dtype


def _attend(
    call: Call,
    qkv: tuple[Tensor, Tensor, Tensor],
    rope: tuple[Tensor | None, Tensor | None],
    q_len: Tensor,
    kv_len: Tensor,
) -> tuple[Tensor, Tensor]:
    """On [B, N, S, D] and [B, KV, L, D]: (out, lse), both in the arithmetic's dtype."""
    q, k, v = qkv
    times = call.heads // call.kv_heads
    score = _scores(call, q, k, rope, times)
    if call.pse_shift is not None:
        score = score + call.pse_shift[..., : score.shape[2], : score.shape[3]]
    queries, keys = q.shape[2], k.shape[2]
    row = torch.arange(queries, device=q.device)[:, None]
    column = torch.arange(keys, device=q.device)
    absent = (column >= kv_len) | (row >= q_len)  # [B, 1, S, L]
    one_query = queries == 1 and call.query_rope is None and LAYOUTS[call.layout][0] not in PACKED
    masked = hidden(call, row, column, q_len, kv_len, one_query)
    score = score.masked_fill(absent | masked, -torch.inf)
    values = wide(v).repeat_interleave(times, 1)
    if call.sink is not None:  # one more key for each head, whose value is 0
        column = wide(call.sink)[:, None, None].expand(*score.shape[:3], 1)
        score = torch.cat((score, column.to(score.dtype)), -1)
        values = torch.nn.functional.pad(values, (0, 0, 0, 1))
    out = _weighted(call, score, values)
    out = out.masked_fill(absent.all(-1, keepdim=True), 0)
    if call.inner_precise in (2, 3):
        out = out.masked_fill((absent | masked).all(-1, keepdim=True), 0)
    lse = (
        torch.logsumexp(score, -1, keepdim=True).float() if call.lse else score.new_empty(0).float()
    )
    return out, lse


def _scores(
    call: Call, q: Tensor, k: Tensor, rope: tuple[Tensor | None, Tensor | None], times: int
) -> Tensor:
    """[B, N, S, L], scaled."""
    q_rope, k_rope = rope
    scales = call.product_scales
    if q_rope is not None and k_rope is not None and scales is None:
        q, k = torch.cat((q, q_rope), -1), torch.cat((k, k_rope), -1)
    k = wide(k).repeat_interleave(times, 1)
    score = wide(q) @ k.transpose(-1, -2)  # of int8: exact, 127 * 127 * 512 < 2^24
    if scales is None:
        return score * call.scale
    if q_rope is not None and k_rope is not None:
        k_rope = wide(k_rope).repeat_interleave(times, 1)
        score = score + wide(q_rope) @ k_rope.transpose(-1, -2)
    if scales.query is not None:
        score = score * _per_row(call, scales.query)
    return score * number(scales.key) * call.scale


def _per_row(call: Call, scale: Tensor) -> Tensor:
    """A scale for each query row and head, in the query's own order, to [B, N, S, 1]."""
    source = LAYOUTS[call.layout][0]
    if source == "BNSD":
        return scale.reshape(*call.query.shape[:3], 1)
    if source in ("BSND", "BSH"):
        return scale.reshape(*call.query.shape[:2], call.heads, 1).transpose(1, 2)
    return packed.pad(scale.reshape(-1, call.heads, 1), "TND", call.q_lengths or ())


def _weighted(call: Call, score: Tensor, values: Tensor) -> Tensor:
    """softmax(score) @ values. With int8 products the exponentials, of which the largest is 1, are
    quantised before the sum divides them, and the second product is exact too."""
    scales = call.product_scales
    if scales is None:
        return score.softmax(-1) @ values
    if scales.probability is None:
        # int8 values are float32 here; what is measured in float64 stays so
        return score.softmax(-1) @ values.to(score.dtype) * number(scales.value)
    weights = (score - score.amax(-1, keepdim=True)).exp()
    stored = (weights * scales.probability).round().clamp(-128, 127)
    total = exact_product(stored, values).float()
    return total * number(scales.value) / weights.sum(-1, keepdim=True)


def _lengths(
    given: Sequence[int] | None, batch: int, full: int | None, device: torch.device
) -> Tensor:
    """[B, 1, 1, 1]: the valid length of each batch row; one number stands for all."""
    values = [full or 0] if given is None else [int(n) for n in given]
    values = values[:batch]  # more than there are sequences: the first ones count
    return torch.tensor(values, device=device).expand(batch)[:, None, None, None]

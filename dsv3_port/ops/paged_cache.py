"""Writing keys and values into the blocks of a paged cache."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import bad, bounds, dtype_of, one_of, readable, same_dtype
from .table import operator
from .wide import unsupported


def check_scatter_pa_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    cache_mode: str | None = "PA_NZ",
    **other: object,
) -> None:
    op = "npu_scatter_pa_kv_cache"
    one_of(op, "cache_mode", cache_mode, None, "Norm", "PA_NZ")
    dtype_of(op, "slot_mapping", slot_mapping, torch.int32, torch.int64)
    for name, rows, cache in (("key", key, key_cache), ("value", value, value_cache)):
        same_dtype(op, name, rows, "key", key)
        same_dtype(op, f"{name}_cache", cache, "key", key)
        if rows.dim() == 4:
            continue  # the compressed form, which has no meaning here
        if rows.dim() != 3 or rows.shape[:2] != key.shape[:2]:
            raise bad(op, name, rows.shape, "[T, N, D], T and N as key's")
        for what, x in ((name, rows), (f"{name}_cache", cache)):
            if not x.is_contiguous():
                raise bad(op, what, f"a view with strides {x.stride()}", "contiguous")
        heads, width = rows.shape[1:]
        nz = cache_mode == "PA_NZ"
        if cache.dim() != 4 or (
            cache.shape[1] * cache.shape[3] != heads * width
            if nz
            else cache.shape[2:] != rows.shape[1:]
        ):
            wanted = (
                f"[blocks, {heads * width}/c, block, c]"
                if nz
                else f"[blocks, block, {heads}, {width}]"
            )
            raise bad(op, f"{name}_cache", cache.shape, f"{wanted} with cache_mode {cache_mode!r}")
    if key.dim() == 4:
        return
    if slot_mapping.dim() != 1 or slot_mapping.shape[0] != key.shape[0]:
        raise bad(op, "slot_mapping", slot_mapping.shape, f"[{key.shape[0]}]")
    slots = key_cache.shape[0] * key_cache.shape[2 if cache_mode == "PA_NZ" else 1]
    if readable(slot_mapping) and slot_mapping.numel() and bounds(slot_mapping)[1] >= slots:
        raise bad(op, "slot_mapping", slot_mapping.tolist(), f"in 0..{slots - 1} (below 0: none)")


def _write(cache: Tensor, rows: Tensor, slots: Tensor, nz: bool) -> None:
    keep = slots >= 0
    at, rows = slots[keep].long(), rows[keep].flatten(1)
    block = cache.shape[2 if nz else 1]
    if nz:  # [blocks, parts, block, c]
        cache[at // block, :, at % block] = rows.unflatten(1, (cache.shape[1], cache.shape[3]))
    else:
        cache[at // block, at % block] = rows.unflatten(1, tuple(cache.shape[2:]))


@operator(check_scatter_pa_kv_cache)
def npu_scatter_pa_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    compress_lens: Tensor | None = None,
    compress_seq_offsets: Tensor | None = None,
    seq_lens: Tensor | None = None,
    cache_mode: str | None = "PA_NZ",
) -> None:
    """Row t of key [T, N, D] goes to position slot_mapping[t] % block of block slot_mapping[t] // block;
    a slot below 0 writes nothing; likewise value. In place.

    key_cache [blocks, N*D/c, block, c] ("PA_NZ", c any divisor) or [blocks, block, N, D] (None, "Norm").
    Source: operator document and test of Ascend/op-plugin.
    """
    given = {"compress_lens": compress_lens, "compress_seq_offsets": compress_seq_offsets}
    unsupported("npu_scatter_pa_kv_cache", **given, seq_lens=seq_lens)
    for rows, cache in ((key, key_cache), (value, value_cache)):
        _write(cache, rows, slot_mapping, cache_mode == "PA_NZ")


@operator(check_scatter_pa_kv_cache)
def npu_scatter_pa_kv_cache_functional(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    compress_lens: Tensor | None = None,
    compress_seq_offsets: Tensor | None = None,
    seq_lens: Tensor | None = None,
    cache_mode: str | None = "PA_NZ",
) -> tuple[Tensor, Tensor]:
    """The same on copies of the caches, which it returns."""
    caches = key_cache.clone(), value_cache.clone()
    given = {"compress_lens": compress_lens, "compress_seq_offsets": compress_seq_offsets}
    unsupported("npu_scatter_pa_kv_cache_functional", **given, seq_lens=seq_lens)
    for rows, cache in zip((key, value), caches, strict=True):
        _write(cache, rows, slot_mapping, cache_mode == "PA_NZ")
    return caches

"""Caches whose positions a table of blocks finds: position p of sequence b is row p % block_size of
block table[b, p // block_size]."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_call import Call
from .checks import bad, dtype_of, readable

MOST_ROWS = 65535  # of KV * D, in the form [blocks, block, KV*D]


def form(cache: Tensor) -> str:
    """How a cache lies, by its dimensions."""
    return {3: "[blocks, block, KV*D]", 4: "[blocks, KV, block, D]"}.get(
        cache.dim(), "[blocks, KV, D/c, block, c]"
    )


def _sizes(cache: Tensor, kv_heads: int) -> tuple[int, int, int]:
    """(heads, block, head size) of a cache."""
    if cache.dim() == 3:
        return kv_heads, cache.shape[1], cache.shape[2] // kv_heads
    if cache.dim() == 4:
        return cache.shape[1], cache.shape[2], cache.shape[3]
    return cache.shape[1], cache.shape[3], cache.shape[2] * cache.shape[4]


def check_cache(call: Call, name: str, cache: Tensor, source: str) -> int:
    """One paged cache; returns its head size."""
    if cache.dim() not in (3, 4, 5):
        wanted = "[blocks, block, KV*D], [blocks, KV, block, D] or [blocks, KV, D/c, block, c]"
        raise bad(call.op, name, cache.shape, wanted)
    if source in ("BSH", "BSND") and cache.dim() == 4:
        wanted = f"[blocks, block, KV*D] (or the NZ form) with layout {call.layout}"
        raise bad(call.op, name, cache.shape, wanted)
    heads, block, width = _sizes(cache, call.kv_heads)
    if heads != call.kv_heads or block != call.block_size:
        wanted = f"{form(cache)} with KV = {call.kv_heads} and block = {call.block_size}"
        raise bad(call.op, name, cache.shape, wanted)
    if cache.dim() == 5:
        c = 32 if cache.dtype == torch.int8 else 16
        if cache.shape[4] != c:
            raise bad(call.op, name, cache.shape, f"[blocks, KV, D/{c}, block, {c}]")
    elif cache.dim() == 3 and cache.shape[2] > MOST_ROWS:
        raise bad(call.op, name, cache.shape, f"of at most {MOST_ROWS} values a position")
    return width


def check_table(call: Call, batch: int, queries: int, width: int, packed: bool) -> None:
    """The table, the block's size and the lengths that both need."""
    table, size = call.block_table, call.block_size
    if table is None:
        return
    dtype_of(call.op, "block_table", table, torch.int32)
    lengths = call.kv_lengths
    if lengths is None or isinstance(lengths, Tensor):
        raise bad(
            call.op, call.words["kv_lengths"], lengths, "given with a block_table, a list of int"
        )
    if width == 512 or packed:
        step, least, most = 16, 16, 1024
    elif queries > 1:
        step, least, most = 128, 128, 512
    else:
        step = 32 if call.key.dtype == torch.int8 else 16
        least, most = step, 512
    if size % step or not least <= size <= most:
        raise bad(call.op, "block_size", size, f"a multiple of {step} in {least}..{most}")
    if table.dim() != 2 or table.shape[0] != batch:
        raise bad(call.op, "block_table", table.shape, f"[{batch}, most blocks of a sequence]")
    if len(lengths) not in (1, batch) and len(lengths) < batch:
        raise bad(
            call.op, call.words["kv_lengths"], list(lengths), f"{batch} lengths, or one for all"
        )
    room = table.shape[1] * size
    if not all(0 <= n <= room for n in lengths[:batch]):
        wanted = f"lengths in 0..{room}, what {table.shape[1]} blocks of {size} hold"
        raise bad(call.op, call.words["kv_lengths"], list(lengths), wanted)


def used_blocks(call: Call, lengths: Tensor) -> Tensor:
    """The table's used part [B, blocks]; entries behind a sequence's last block are 0, whatever they
    were. lengths [B]."""
    assert call.block_table is not None
    longest = max([0, *(call.kv_lengths or ())])
    table = call.block_table[:, : -(-longest // call.block_size)]
    first = torch.arange(table.shape[1], device=table.device) * call.block_size
    used = torch.where(first < lengths[:, None], table, 0).long()
    blocks = call.key.shape[0]
    if readable(used) and used.numel() and not 0 <= int(used.min()) <= int(used.max()) < blocks:
        raise bad(call.op, "block_table", used.tolist(), f"blocks in 0..{blocks - 1}")
    return used


def gather(cache: Tensor, used: Tensor, kv_heads: int) -> Tensor:
    """A cache's blocks in the order of the sequences: [B, KV, L, D]."""
    x = cache[used]  # [B, blocks, ...]
    if cache.dim() == 3:  # block, KV*D
        y: Tensor = x.flatten(1, 2).unflatten(-1, (kv_heads, -1))
        return y.transpose(1, 2)
    if cache.dim() == 4:  # KV, block, D
        return x.transpose(1, 2).flatten(2, 3)
    return x.permute(0, 2, 1, 4, 3, 5).flatten(4, 5).flatten(2, 3)  # KV, D/c, block, c


def gather_scales(scales: Tensor, used: Tensor) -> Tensor:
    """[blocks, block] or [blocks, KV, block] -> [B, 1 or KV, L]."""
    x = scales[used]
    return x.flatten(1, 2)[:, None] if scales.dim() == 2 else x.transpose(1, 2).flatten(2)

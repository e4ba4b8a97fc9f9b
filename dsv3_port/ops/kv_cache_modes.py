"""How npu_kv_rmsnorm_rope_cache lays its rows into a cache: the cache modes, and both methods of
what is written."""

from __future__ import annotations

import torch
from torch import Tensor

from .wide import wide

PAGED = ("PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ")
ROPE_DIM = 64
# method -> (width of kv, of gamma, of v): DeepSeek's latent form, and the one with a `v` argument
METHODS = {"latent": (576, 512, 0), "v": (192, 192, 128)}


def normalised(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    """RMSNorm in float32, not rounded."""
    x = wide(x)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * wide(gamma)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs to halves, then rotate-half, in float32: npu_interleave_rope without its cast."""
    halves = torch.cat((wide(x)[..., ::2], wide(x)[..., 1::2]), -1)
    first, second = halves.chunk(2, -1)
    return halves * wide(cos) + torch.cat((-second, first), -1) * wide(sin)


def rows(
    kv: Tensor, gamma: Tensor, cos: Tensor, sin: Tensor, v: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """What goes to k_cache and to ckv_cache, in float32. kv [B, 1, S, 576]: its rotary 64 channels,
    and the normalised latent 512. With v: all 192 channels normalised, the first 64 of them rotated;
    and v itself."""
    if v is None:
        latent, rotary = kv.split((gamma.shape[0], kv.shape[-1] - gamma.shape[0]), -1)
        return rotated(rotary, cos, sin), normalised(latent, gamma, epsilon)
    whole = normalised(kv, gamma, epsilon)
    turned = rotated(whole[..., :ROPE_DIM], cos, sin)
    return torch.cat((turned, whole[..., ROPE_DIM:]), -1), wide(v)


def slots(cache_mode: str, index: Tensor, batch: int, length: int, block: int) -> Tensor:
    """The slot over all blocks of each of the B*S rows, negative where none is written. In the BLK
    modes index holds the first slot of each page of consecutive rows."""
    index = index.flatten().long()
    if "BLK" not in cache_mode:
        return index
    position = torch.arange(length, device=index.device)
    pages = index.view(batch, -1)[:, position // block]
    found = pages // block * block + position % block
    return torch.where(pages < 0, -1, found).flatten()


def write(
    cache: Tensor, value: Tensor, scale: Tensor | None, cache_mode: str, index: Tensor
) -> None:
    """value [B, 1, S, C] float32 into the cache, cast once or quantised, in place."""
    batch, _, length, width = value.shape
    stored = value if scale is None else (value * wide(scale)).round().clamp(-128, 127)
    stored = stored.to(cache.dtype)
    if cache_mode not in PAGED:
        where = torch.arange(batch, device=value.device)[:, None]
        cache[where, 0, index.long()] = stored[:, 0]
        return
    blocks, block = cache.shape[:2]
    where, flat = slots(cache_mode, index, batch, length, block), stored.flatten(0, 2)
    if "NZ" not in cache_mode:
        rows = cache.view(-1, width)
        where, flat = _written(where, flat, rows[0])
        rows[where] = flat
        return
    part = 32 if cache.dtype == torch.int8 else 16  # channels that lie side by side
    tiles = cache.view(blocks, width // part, block, part)
    where, flat = _written(where, flat, tiles[0, :, 0].flatten())
    tiles[where // block, :, where % block] = flat.unflatten(-1, (-1, part))


def _written(where: Tensor, rows: Tensor, slot_0: Tensor) -> tuple[Tensor, Tensor]:
    """The slots and rows that are written, without the negative slots.

    Compiled or on a device no shape may depend on values: a negative slot then repeats the first
    row that is written, and where there is none, what lies in slot 0.
    """
    kept = where >= 0
    if where.device.type == "cpu" and not torch.compiler.is_compiling():
        return where[kept], rows[kept]
    first = kept.int().argmax(0, keepdim=True)
    there = kept.any()
    spare = torch.where(there, rows.index_select(0, first), slot_0)
    where = torch.where(kept, where, torch.where(there, where.index_select(0, first), 0))
    return where, torch.where(kept.unsqueeze(-1), rows, spare)


def pages(batch: int, length: int, block: int) -> int:
    """Entries of index in the BLK modes."""
    return batch * -(-length // block)

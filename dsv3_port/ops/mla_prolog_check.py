"""What npu_mla_prolog_v3 takes: the operator document of Ascend/op-plugin, for Atlas A2 and A3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import (
    bad,
    bounds,
    dtype_of,
    floating,
    for_device,
    limit,
    one_of,
    readable,
    shape_of,
)

OP = "npu_mla_prolog_v3"
# (weight, kv_cache, query)_quant_mode; 3 to 5, formats of 8-bit floats, are another card's
MODES = ((0, 0, 0), (1, 0, 0), (1, 2, 0), (1, 3, 0), (2, 0, 0), (2, 1, 1), (2, 3, 0))
CACHE_MODES = ("PA_BSND", "PA_NZ", "PA_BLK_BSND", "PA_BLK_NZ", "BSND", "TND")
TILED = 656  # a row of a cache in tiles: 512 int8, 64 bfloat16, 4 scales
# sizes that the document lists; others are computed here, and refused by a card
HIDDEN = (1024, 2048, 3072, 4096, 5120, 6144, 7168, 7680, 8192)
Q_RANKS, KV_RANK, NOPES, ROTARY = (1536, 2048), 512, (128, 192), 64
HEADS = (1, 2, 4, 8, 16, 32, 64, 128)
BLOCKS = range(16, 1025, 16)


def check_mla_prolog_v3(
    token_x: Tensor,
    weight_dq: Tensor,
    weight_uq_qr: Tensor,
    weight_uk: Tensor,
    weight_dkv_kr: Tensor,
    rmsnorm_gamma_cq: Tensor,
    rmsnorm_gamma_ckv: Tensor,
    rope_sin: Tensor,
    rope_cos: Tensor,
    kv_cache: Tensor,
    kr_cache: Tensor,
    *,
    cache_index: Tensor | None = None,
    cache_mode: str = "PA_BSND",
    weight_quant_mode: int = 0,
    kv_cache_quant_mode: int = 0,
    query_quant_mode: int = 0,
    **other: Any,
) -> None:
    modes = weight_quant_mode, kv_cache_quant_mode, query_quant_mode
    if modes not in MODES:
        words = "weight_quant_mode, kv_cache_quant_mode, query_quant_mode"
        raise bad(OP, words, modes, " or ".join(map(str, MODES)))
    one_of(OP, "cache_mode", cache_mode, *CACHE_MODES)
    floating(OP, "weight_uk", weight_uk)
    if for_device(weight_uk):
        dtype_of(OP, "weight_uk", weight_uk, torch.bfloat16)
    tensors = {
        "token_x": token_x,
        "weight_dq": weight_dq,
        "weight_uq_qr": weight_uq_qr,
        "weight_uk": weight_uk,
        "weight_dkv_kr": weight_dkv_kr,
        "rmsnorm_gamma_cq": rmsnorm_gamma_cq,
        "rmsnorm_gamma_ckv": rmsnorm_gamma_ckv,
        "rope_sin": rope_sin,
        "rope_cos": rope_cos,
        "kv_cache": kv_cache,
        "kr_cache": kr_cache,
    }
    _check_dtypes(tensors, modes)
    _check_shapes(tensors)
    _check_caches(kv_cache, kr_cache, weight_uk, rope_cos, kv_cache_quant_mode, cache_mode)
    if "PA" in cache_mode:
        _check_index(cache_index, token_x, kv_cache, cache_mode)
    _check_scales(weight_dq, weight_uq_qr, weight_dkv_kr, token_x, modes, other)
    if for_device(weight_uk):
        _check_sizes(token_x, weight_dq, weight_uk, rope_cos, kv_cache)


def _check_dtypes(tensors: dict[str, Tensor], modes: tuple[int, int, int]) -> None:
    weights, cache, _ = modes
    int8 = {"weight_uq_qr"} if weights else set()
    int8 |= {"token_x", "weight_dq", "weight_dkv_kr"} if weights == 2 else set()
    int8 |= {"kv_cache"} if cache else set()
    int8 |= {"kr_cache"} if cache == 2 else set()
    kind = tensors["weight_uk"].dtype
    for name, x in tensors.items():
        dtype_of(OP, name, x, torch.int8 if name in int8 else kind)
        if not x.is_contiguous():
            raise bad(OP, name, f"a view with strides {x.stride()}", "contiguous")


def _check_shapes(t: dict[str, Tensor]) -> None:
    x, down, up_k, cos = (t[n] for n in ("token_x", "weight_dq", "weight_uk", "rope_cos"))
    if x.dim() not in (2, 3):
        raise bad(OP, "token_x", x.shape, "[T, He] or [B, S, He]")
    if up_k.dim() != 3:
        raise bad(OP, "weight_uk", up_k.shape, "[N, D, Hckv]")
    if down.dim() != 2 or down.shape[0] != x.shape[-1]:
        raise bad(OP, "weight_dq", down.shape, f"[{x.shape[-1]}, Hcq]")
    heads, nope, rank = up_k.shape
    rotary = cos.shape[-1]
    for name, wanted in (
        ("rope_cos", (*x.shape[:-1], rotary)),
        ("rope_sin", (*x.shape[:-1], rotary)),
        ("weight_uq_qr", (down.shape[1], heads * (nope + rotary))),
        ("weight_dkv_kr", (x.shape[-1], rank + rotary)),
        ("rmsnorm_gamma_cq", (down.shape[1],)),
        ("rmsnorm_gamma_ckv", (rank,)),
    ):
        shape_of(OP, name, t[name], *wanted)


def _check_caches(
    kv_cache: Tensor, kr_cache: Tensor, up_k: Tensor, cos: Tensor, quantised: int, mode: str
) -> None:
    lead = {"BSND": "[B, S, 1, ", "TND": "[T, 1, "}.get(mode, "[blocks, block, 1, ")
    for name, cache, width in (
        ("kv_cache", kv_cache, TILED if quantised == 3 else up_k.shape[2]),
        ("kr_cache", kr_cache, cos.shape[-1]),
    ):
        if cache.dim() != lead.count(",") + 1 or tuple(cache.shape[-2:]) != (1, width):
            raise bad(OP, name, cache.shape, f"{lead}{width}] in cache_mode {mode!r}")


def _check_index(index: Tensor | None, x: Tensor, cache: Tensor, mode: str) -> None:
    if index is None:
        raise bad(OP, "cache_index", None, f"given in cache_mode {mode!r}")
    dtype_of(OP, "cache_index", index, torch.int64)
    if "BLK" in mode:
        return
    shape_of(OP, "cache_index", index, *x.shape[:-1])
    slots = cache.shape[0] * cache.shape[1]
    if readable(index) and index.numel() and bounds(index.flatten())[1] >= slots:
        wants = f"in 0..{slots - 1} (below 0: none); the device does not check"
        raise bad(OP, "cache_index", index.tolist(), wants)


def _check_scales(
    down: Tensor,
    up: Tensor,
    down_kv: Tensor,
    x: Tensor,
    modes: tuple[int, int, int],
    given: dict[str, Any],
) -> None:
    weights, cache, _ = modes
    wanted: dict[str, tuple[int, ...]] = {}
    if weights:
        wanted["dequant_scale_w_uq_qr"] = (1, up.shape[1])
    if weights == 2:
        wanted["dequant_scale_x"] = (x.numel() // x.shape[-1], 1)
        wanted["dequant_scale_w_dq"] = (1, down.shape[1])
        wanted["dequant_scale_w_dkv_kr"] = (1, down_kv.shape[1])
    if cache == 1:
        wanted["quant_scale_ckv"] = (1,)
    optional = {"smooth_scales_cq": (1, down.shape[1])} if weights else {}
    for name, scale in given.items():
        if "scale" not in name or not (scale is None or isinstance(scale, Tensor)):
            continue
        shape = wanted.get(name) or optional.get(name)
        if scale is None or shape is None or cache > 1:
            continue
        dtype_of(OP, name, scale, torch.float32)
        shape_of(OP, name, scale, *shape)
    for name in wanted:
        if given.get(name) is None:
            raise bad(OP, name, None, f"given with the quantisation modes {modes}")


def _check_sizes(x: Tensor, down: Tensor, up_k: Tensor, cos: Tensor, cache: Tensor) -> None:
    """Each a warning: the model is computed, and a card refuses it."""
    heads, nope, rank = up_k.shape
    limit(OP, "token_x", f"{x.shape[-1]} wide", x.shape[-1] in HIDDEN, f"one of {HIDDEN}")
    limit(OP, "weight_dq", f"of {down.shape[1]} columns", down.shape[1] in Q_RANKS, f"{Q_RANKS}")
    limit(OP, "weight_uk", f"of {heads} heads", heads in HEADS, "a power of two up to 128")
    limit(OP, "weight_uk", f"of {nope} channels a head", nope in NOPES, f"{NOPES}")
    limit(OP, "weight_uk", f"for a latent of {rank}", rank == KV_RANK, f"{KV_RANK}")
    limit(OP, "rope_cos", f"{cos.shape[-1]} wide", cos.shape[-1] == ROTARY, f"{ROTARY}")
    if cache.dim() == 4:
        size = cache.shape[1]
        limit(OP, "kv_cache", f"in blocks of {size}", size in BLOCKS, "×16 in 16..1024")

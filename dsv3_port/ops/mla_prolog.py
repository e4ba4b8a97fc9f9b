"""All that absorbed MLA does before its attention, in one operator: both down-projections, their norms,
the queries with W_UK in them, both rotations, and the new rows written into the paged cache.

Where it rounds is what CANN's kernel does (ops-transformer, attention/mla_prolog: mla_prolog_comm.h,
service_rms_norm.h, service_rotary_position_embedding.h): each product to the dtype once, norms and
rotations in float32 with one cast. With int8 weights a product is its exact int32 sum times its scales
in float32, and the norm of the queries' latent is quantised before any cast. An int8
query (modes 2, 1, 1) comes with its rotary part multiplied by quant_scale_ckv and divided by its scale.
On a card three matrices lie in FRACTAL_NZ. Measured against float64 the dtype is float64 throughout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import kv_cache_modes
from .kv_cache_modes import normalised, rotated
from .mla_prolog_check import OP, check_mla_prolog_v3
from .quantise import symmetric
from .table import operator
from .wide import exact_product, unsupported, wide

MEANT = ((0, 0, 0), (1, 0, 0), (2, 0, 0), (2, 1, 1))  # quantisation of weights, cache, query


def _product(x: Tensor, weight: Tensor, of_x: Tensor | None, of_weight: Tensor | None) -> Tensor:
    """[T, K] x [K, N]: rounded to x's dtype; of int8 the exact sums times both scales, float32."""
    if x.dtype != torch.int8:
        return x @ weight
    assert of_x is not None and of_weight is not None
    return exact_product(x, weight).float() * of_x * of_weight


def _run(
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
    cache_index: Tensor,
    dequant_scale_x: Tensor | None,
    dequant_scale_w_dq: Tensor | None,
    dequant_scale_w_uq_qr: Tensor | None,
    dequant_scale_w_dkv_kr: Tensor | None,
    quant_scale_ckv: Tensor | None,
    smooth_scales_cq: Tensor | None,
    rmsnorm_epsilon_cq: float,
    rmsnorm_epsilon_ckv: float,
    cache_mode: str,
    query_norm_flag: bool,
    qc_qr_scale: float,
    kc_scale: float,
    **modes: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator in the combinations of MEANT; both caches in place."""
    _refuse(cache_mode, **modes)
    kind, lead = weight_uk.dtype, token_x.shape[:-1]
    x, sin, cos = (t.flatten(0, -2) for t in (token_x, rope_sin, rope_cos))
    normed = _product(x, weight_dq, dequant_scale_x, dequant_scale_w_dq)
    normed = normalised(normed, rmsnorm_gamma_cq, rmsnorm_epsilon_cq) * qc_qr_scale
    of_normed: Tensor | None = None
    if weight_uq_qr.dtype == torch.int8:
        smooth = 1.0 if smooth_scales_cq is None else wide(smooth_scales_cq)
        normed, scale = symmetric(normed * smooth)
        of_normed = scale[:, None]
    else:
        normed = normed.to(kind)
    q = _product(normed, weight_uq_qr, of_normed, dequant_scale_w_uq_qr)
    query, query_rope = _queries(q, weight_uk, sin, cos)
    row = _product(x, weight_dkv_kr, dequant_scale_x, dequant_scale_w_dkv_kr)
    ckv, kr = row.split((rmsnorm_gamma_ckv.shape[0], rope_cos.shape[-1]), -1)
    ckv = normalised(ckv, rmsnorm_gamma_ckv, rmsnorm_epsilon_ckv) * kc_scale
    mode, factor = cache_mode.replace("PA_BSND", "PA"), quant_scale_ckv
    factor = factor if kv_cache.dtype == torch.int8 else None
    kv_cache_modes.write(kv_cache, ckv[:, None, None], factor, mode, cache_index)
    kv_cache_modes.write(kr_cache, rotated(kr, cos, sin)[:, None, None], None, mode, cache_index)
    nothing = x.new_zeros(1, dtype=torch.float32)
    of_query = nothing.clone()
    if factor is not None:
        query, scale = symmetric(query)
        of_query = scale[..., None]
        query_rope = (wide(query_rope) * factor / of_query).to(kind)
    queries = query.unflatten(0, lead), query_rope.unflatten(0, lead)
    if not query_norm_flag:
        return *queries, of_query, x.new_zeros(1, dtype=weight_uq_qr.dtype), nothing
    return *queries, of_query, normed.view(*lead, -1), nothing if of_normed is None else of_normed


def _queries(q: Tensor, weight_uk: Tensor, sin: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
    """q [T, N (D + Dr)] -> [T, N, Hckv], [T, N, Dr], each rounded to the dtype."""
    heads, nope, _ = weight_uk.shape
    kind, q = weight_uk.dtype, q.unflatten(-1, (heads, -1))
    query = (q[..., :nope].to(kind).transpose(0, 1) @ weight_uk).transpose(0, 1)
    rope = rotated(q[..., nope:], cos[:, None], sin[:, None]).to(kind)
    return query.contiguous(), rope


def _refuse(cache_mode: str, **modes: Any) -> None:
    """NotImplementedError for what the operator takes and this has no meaning of."""
    chosen = tuple(modes[f"{what}_quant_mode"] for what in ("weight", "kv_cache", "query"))
    unsupported(
        OP,
        weight_quant_mode=None if chosen in MEANT else chosen,
        cache_mode=None if cache_mode in ("PA_BSND", "PA_NZ") else cache_mode,
        ckvkr_repo_mode=modes["ckvkr_repo_mode"] or None,
        quant_scale_repo_mode=modes["quant_scale_repo_mode"] or None,
        quant_scale_ckr=modes["quant_scale_ckr"],
        k_nope_clip_alpha=modes["k_nope_clip_alpha"],
    )


@operator(check_mla_prolog_v3)
def npu_mla_prolog_v3(
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
    dequant_scale_x: Tensor | None = None,
    dequant_scale_w_dq: Tensor | None = None,
    dequant_scale_w_uq_qr: Tensor | None = None,
    dequant_scale_w_dkv_kr: Tensor | None = None,
    quant_scale_ckv: Tensor | None = None,
    quant_scale_ckr: Tensor | None = None,
    smooth_scales_cq: Tensor | None = None,
    actual_seq_len: Tensor | None = None,
    k_nope_clip_alpha: Tensor | None = None,
    rmsnorm_epsilon_cq: float = 1e-05,
    rmsnorm_epsilon_ckv: float = 1e-05,
    cache_mode: str = "PA_BSND",
    query_norm_flag: bool = False,
    weight_quant_mode: int = 0,
    kv_cache_quant_mode: int = 0,
    query_quant_mode: int = 0,
    ckvkr_repo_mode: int = 0,
    quant_scale_repo_mode: int = 0,
    tile_size: int = 128,
    qc_qr_scale: float = 1.0,
    kc_scale: float = 1.0,
    token_x_dtype: int | None = None,
    weight_dq_dtype: int | None = None,
    weight_uq_qr_dtype: int | None = None,
    weight_dkv_kr_dtype: int | None = None,
    kv_cache_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(query [.., N, Hckv], query_rope [.., N, Dr], dequant_scale_q_nope, query_norm [.., Hcq],
    dequant_scale_q_norm) of token_x [T, He] or [B, S, He]; both caches are written in place.

        c = rmsnorm(x W_dq);  q = c W_uq_qr, each head [D | Dr];  query = q[:D] W_uk
        query_rope = rope(q[D:]);  kv_cache = rmsnorm(x W_dkv);  kr_cache = rope(x W_kr)

    weight_dq [He, Hcq], weight_uq_qr [Hcq, N (D + Dr)], weight_uk [N, D, Hckv], weight_dkv_kr [He, Hckv +
    Dr]; sin comes before cos, each [T, Dr] or [B, S, Dr]; rope takes pairs and leaves halves; kv_cache
    [blocks, block, 1, Hckv], kr_cache [blocks, block, 1, Dr]; cache_index: each token's slot over all
    blocks, below 0 none. The third result is an int8 query's scale [T, N, 1] (of v2 it is kv_cache), the
    fourth needs query_norm_flag. DeepSeek-V3's epsilons are 1e-6. Source: operator document of
    Ascend/op-plugin, golden of its test_mla_prolog_v3; a slot below 0: CANN's service_scatter_cache.h.
    """
    return _run(**_taken(locals()))


def _taken(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments without those that name a dtype or say nothing here."""
    for name in [n for n in given if n.endswith("_dtype")]:
        unsupported(OP, **{name: given.pop(name)})
    return given


@operator(check_mla_prolog_v3)
def npu_mla_prolog_v3_functional(
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
    dequant_scale_x: Tensor | None = None,
    dequant_scale_w_dq: Tensor | None = None,
    dequant_scale_w_uq_qr: Tensor | None = None,
    dequant_scale_w_dkv_kr: Tensor | None = None,
    quant_scale_ckv: Tensor | None = None,
    quant_scale_ckr: Tensor | None = None,
    smooth_scales_cq: Tensor | None = None,
    actual_seq_len: Tensor | None = None,
    k_nope_clip_alpha: Tensor | None = None,
    rmsnorm_epsilon_cq: float = 1e-05,
    rmsnorm_epsilon_ckv: float = 1e-05,
    cache_mode: str = "PA_BSND",
    query_norm_flag: bool = False,
    weight_quant_mode: int = 0,
    kv_cache_quant_mode: int = 0,
    query_quant_mode: int = 0,
    ckvkr_repo_mode: int = 0,
    quant_scale_repo_mode: int = 0,
    tile_size: int = 128,
    qc_qr_scale: float = 1.0,
    kc_scale: float = 1.0,
    token_x_dtype: int | None = None,
    weight_dq_dtype: int | None = None,
    weight_uq_qr_dtype: int | None = None,
    weight_dkv_kr_dtype: int | None = None,
    kv_cache_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same on copies of the caches, which follow the five results."""
    caches = {"kv_cache": kv_cache.clone(), "kr_cache": kr_cache.clone()}
    given = {n: v for n, v in locals().items() if n != "caches"} | caches
    return *_run(**_taken(given)), caches["kv_cache"], caches["kr_cache"]

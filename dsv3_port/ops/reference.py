"""What each NPU operator means, in plain PyTorch: norms, SwiGLU, rotary embeddings and cache
updates.

Names, argument order, defaults and results are torch_npu 2.13's; so is every rounding its documents
state (operator documents of Ascend/op-plugin, CPU goldens of CANN's ops-nn and ops-transformer).
"One cast" below means: all arithmetic in float32, rounded to the operator's dtype once, at the end.
float64 tensors, which no NPU takes, stay float64 so that tests can measure against them. Contents
the documents leave undefined are NaN here, so that nobody relies on them.

`reference_moe` and `reference_attention` hold the rest; all of it can be reached as
`reference.<operator>`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference_attention import npu_fused_infer_attention_score, npu_transpose_batchmatmul
from .reference_moe import (
    cumulative_groups,
    npu_gmm,
    npu_gmm_v2,
    npu_grouped_matmul,
    npu_moe_compute_expert_tokens,
    npu_moe_finalize_routing,
    npu_moe_gating_top_k,
    npu_moe_init_routing,
    npu_moe_init_routing_v2,
)
from .wide import unsupported, wide

__all__ = [
    "cumulative_groups",
    "npu_add_rms_norm",
    "npu_add_rms_norm_cast",
    "npu_format_cast",
    "npu_fused_infer_attention_score",
    "npu_gmm",
    "npu_gmm_v2",
    "npu_grouped_matmul",
    "npu_interleave_rope",
    "npu_kv_rmsnorm_rope_cache",
    "npu_moe_compute_expert_tokens",
    "npu_moe_finalize_routing",
    "npu_moe_gating_top_k",
    "npu_moe_init_routing",
    "npu_moe_init_routing_v2",
    "npu_prefetch",
    "npu_rms_norm",
    "npu_rotary_mul",
    "npu_scatter_nd_update",
    "npu_scatter_nd_update_",
    "npu_swiglu",
    "npu_transpose_batchmatmul",
    "scatter_update",
    "scatter_update_",
]


# ---- norms ---------------------------------------------------------------------------------------


def _normalise(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x * rstd in float32, and rstd, over the trailing dims that gamma spans."""
    x = wide(x)
    dims = tuple(range(-gamma.dim(), 0))
    rstd = torch.rsqrt(x.pow(2).mean(dims, keepdim=True) + epsilon)
    return x * rstd, rstd


def npu_rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-06) -> tuple[Tensor, Tensor]:
    """input / sqrt(mean(input^2) + epsilon) * gamma over gamma's trailing dims; one cast, gamma
    product included.

    gamma: the trailing dims of input; input's dtype, or float32 beside 16-bit input.
    Returns (y like input, rstd float32 with the normalised dims 1).
    """
    normalised, rstd = _normalise(input, gamma, epsilon)
    return (normalised * wide(gamma)).to(input.dtype), rstd


def npu_add_rms_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-06
) -> tuple[Tensor, Tensor, Tensor]:
    """RMSNorm of the residual sum x1 + x2. Returns (y, rstd float32, x = x1 + x2): the new residual
    comes last.

    On A2 and A3, 16-bit types are rounded three times: the sum, the normalised value before gamma,
    and the product; the statistics come from the rounded sum. So y is not bit-equal to
    npu_rms_norm(x1 + x2, gamma).
    """
    x = x1 + x2  # one rounding: PyTorch adds 16-bit types in float32
    normalised, rstd = _normalise(x, gamma, epsilon)
    return normalised.to(x.dtype) * gamma, rstd, x


def npu_add_rms_norm_cast(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-06
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RMSNorm of x1 + x2, returned in float32 and in x1's dtype: (y1 float32, y2 = y1 cast once,
    rstd, x).

    torchair's pattern pass puts it where npu_add_rms_norm is followed by a cast to float32 (the
    gate). Unlike npu_add_rms_norm it keeps float32 up to y2. Source: operator document and test of
    Ascend/op-plugin.
    """
    x = x1 + x2
    normalised, rstd = _normalise(x, gamma, epsilon)
    y1 = normalised * wide(gamma)
    return y1, y1.to(x.dtype), rstd, x


# ---- SwiGLU --------------------------------------------------------------------------------------


def npu_swiglu(input: Tensor, dim: int = -1) -> Tensor:
    """silu(first half) * second half along dim; one cast. A merged projection is therefore laid out
    [gate | up]."""
    gate, up = wide(input).chunk(2, dim)
    return (F.silu(gate) * up).to(input.dtype)


# ---- rotary embeddings ---------------------------------------------------------------------------


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def npu_rotary_mul(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    """input * cos + rot(input) * sin with r1 = cos, r2 = sin, both cast to input's dtype first; one
    cast at the end.

    rot is cat(-second half, first half) in mode "half", (-x[2i+1], x[2i]) in mode "interleave"
    (whose result stays interleaved), and input @ rotate where a [D, D] matrix is given.
    """
    x, cos, sin = wide(input), wide(r1.to(input.dtype)), wide(r2.to(input.dtype))
    if rotate is not None:
        turned = x @ wide(rotate)
    elif rotary_mode == "half":
        turned = _rotate_half(x)
    elif rotary_mode == "interleave":
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    else:
        raise ValueError(
            f"npu_rotary_mul: rotary_mode is {rotary_mode!r}; it is 'half' or 'interleave'"
        )
    return (x * cos + turned * sin).to(input.dtype)


def npu_interleave_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs: evens first, odds last, then rotate-half; one cast.

    x [B, N, S, 64]; cos, sin [B, 1, S or 1, 64], both cat(freqs, freqs). The result is in half
    layout, not interleaved: q and k must both go through it.
    """
    halves = torch.cat((wide(x)[..., ::2], wide(x)[..., 1::2]), -1)
    return (halves * wide(cos) + _rotate_half(halves) * wide(sin)).to(x.dtype)


# ---- cache updates -------------------------------------------------------------------------------


def scatter_update_(input: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """Write each row of updates as one run of positions along axis, in place; returns input.

    indices [d0]: row i goes to input[i], from position indices[i] on.
    indices [m, 2]: row i goes to input[indices[i, 0]], from position indices[i, 1] on (A2/A3:
    likely, not proven). start + updates.size(axis) must not pass input.size(axis); the device does
    not check.
    """
    length = updates.shape[axis]
    if indices.dim() == 2:
        rows, start = indices.long().unbind(1)
    else:
        rows, start = torch.arange(updates.shape[0], device=input.device), indices.long()
    positions = start[:, None] + torch.arange(length, device=input.device)
    # Indexed as it lies, not through a view with the axis in front: inductor writes this one in
    # place.
    axis %= input.dim()
    where: tuple[Any, ...] = (rows[:, None], *[slice(None)] * (axis - 1), positions)
    input[where] = updates.movedim(axis, 1)
    return input


def scatter_update(input: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """scatter_update_ on a copy of input."""
    return scatter_update_(input.clone(), indices, updates, axis)


def npu_scatter_nd_update_(input: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """input[tuple(indices[p])] = updates[p] for every leading position p, in place; returns input.

    indices [..., a] with a <= input.dim(); updates [*indices.shape[:-1], *input.shape[a:]].
    Duplicates: undefined.
    """
    return input.index_put_(tuple(indices.long().unbind(-1)), updates)


def npu_scatter_nd_update(input: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """npu_scatter_nd_update_ on a copy of input."""
    return npu_scatter_nd_update_(input.clone(), indices, updates)


def npu_kv_rmsnorm_rope_cache(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    *,
    k_rope_scale: Tensor | None = None,
    c_kv_scale: Tensor | None = None,
    k_rope_offset: Tensor | None = None,
    c_kv_offset: Tensor | None = None,
    v: Tensor | None = None,
    epsilon: float = 1e-5,
    cache_mode: str = "Norm",
    is_output_kv: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RMSNorm of the latent part, rotary embedding of the rest, and both written to their caches,
    in place.

    kv [B, 1, S, R + Dr], R = gamma's length; k_cache holds the rotary part, ckv_cache the latent
    one. cache_mode "Norm": caches [B, 1, L, *], index [B, S] = position in the batch row's own
    cache. "PA", "PA_BNSD": caches [blocks, block, 1, *], index [B*S] = slot over all blocks,
    negative = not written.
    Scales store int8: clip(round(value * scale)). Returns (k_cache, ckv_cache, k_embed, y); the
    last two mean something only with is_output_kv in the PA modes and are NaN otherwise.
    DeepSeek-V3's epsilon is 1e-6, not the default.
    """
    unsupported(
        "npu_kv_rmsnorm_rope_cache", k_rope_offset=k_rope_offset, c_kv_offset=c_kv_offset, v=v
    )
    paged = cache_mode in ("PA", "PA_BNSD")
    if not paged and cache_mode != "Norm":
        raise NotImplementedError(
            f"npu_kv_rmsnorm_rope_cache: cache_mode {cache_mode!r} has no reference; 'Norm', "
            "'PA' and 'PA_BNSD' have"
        )
    latent, rotary = kv.split((gamma.shape[0], kv.shape[-1] - gamma.shape[0]), -1)
    y = npu_rms_norm(latent, gamma, epsilon)[0]
    k_embed = npu_interleave_rope(rotary, cos, sin)
    for cache, value, scale in ((k_cache, k_embed, k_rope_scale), (ckv_cache, y, c_kv_scale)):
        stored = value if scale is None else (wide(value) * wide(scale)).round().clamp(-128, 127)
        stored = stored.to(cache.dtype)
        if paged:
            slots = index.flatten().long()
            kept = slots >= 0
            cache.view(-1, cache.shape[-1])[slots[kept]] = stored.flatten(0, 2)[kept]
        else:
            batch = torch.arange(kv.shape[0], device=kv.device)[:, None]
            cache[batch, 0, index.long()] = stored[:, 0]
    if not (is_output_kv and paged):
        k_embed, y = torch.full_like(k_embed, torch.nan), torch.full_like(y, torch.nan)
    return k_cache, ckv_cache, k_embed, y


# ---- hints: no numeric effect --------------------------------------------------------------------


def npu_prefetch(input: Tensor, dependency: Tensor | None, max_size: int, offset: int = 0) -> None:
    """Load up to max_size bytes of a weight from byte offset into L2 once `dependency` exists.
    Nothing to do here."""


def npu_format_cast(
    input: Tensor,
    acl_format: int,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """Another storage order (29 = FRACTAL_NZ, 2 = ND) of the same logical tensor: here the tensor
    itself."""
    unsupported("npu_format_cast", customize_dtype=customize_dtype, input_dtype=input_dtype)
    return input

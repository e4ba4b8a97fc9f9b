"""Argument checks that torch_npu's shape functions do not make: norms, SwiGLU, rotary embeddings,
cache updates.

One function per operator, with the operator's arguments; ValueError or TypeError says which
argument is wrong, what it is and what the operator's document wants. Only shapes and dtypes are
read, never a tensor on an accelerator and never anything while compiling; contents are looked at
where that is cheap (`checks.readable`). `contracts_moe` and `contracts_attention` hold the rest;
all of it can be reached as `contracts.<operator>`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import FLOATS, INDICES, bad, dtype_of, floating, one_of, readable, same_dtype, shape_of
from .contracts_attention import npu_fused_infer_attention_score, npu_transpose_batchmatmul
from .contracts_moe import (
    npu_gmm,
    npu_gmm_v2,
    npu_grouped_matmul,
    npu_moe_compute_expert_tokens,
    npu_moe_finalize_routing,
    npu_moe_gating_top_k,
    npu_moe_init_routing,
    npu_moe_init_routing_v2,
)

__all__ = [
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

ROPE_DIM = 64  # the only head size of npu_interleave_rope
LATENT_DIM = 512
SCATTER_DTYPES = (torch.int8, torch.float16, torch.float32, torch.bfloat16, torch.int32)
SCATTER_ND_DTYPES = (*FLOATS, torch.bool, torch.int64, torch.int8)


def _trailing(operator: str, x: Tensor, gamma: Tensor) -> None:
    if not 1 <= gamma.dim() <= x.dim() or gamma.shape != x.shape[x.dim() - gamma.dim() :]:
        raise bad(operator, "gamma", gamma.shape, f"the trailing dims of x {list(x.shape)}")


def npu_rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-06) -> None:
    floating("npu_rms_norm", "x", input)
    _trailing("npu_rms_norm", input, gamma)
    if gamma.dtype != input.dtype and (gamma.dtype != torch.float32 or input.dtype.itemsize != 2):
        raise bad(
            "npu_rms_norm",
            "gamma",
            gamma.dtype,
            f"{input.dtype}, the dtype of x, or float32 with a 16-bit x",
            TypeError,
        )


def npu_add_rms_norm(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    epsilon: float = 1e-06,
    operator: str = "npu_add_rms_norm",
) -> None:
    floating(operator, "x1", x1)
    if x2.shape != x1.shape:
        raise bad(operator, "x2", x2.shape, f"{list(x1.shape)}, the shape of x1")
    same_dtype(operator, "x2", x2, "x1", x1)
    _trailing(operator, x1, gamma)
    same_dtype(operator, "gamma", gamma, "x1", x1)


def npu_add_rms_norm_cast(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-06) -> None:
    npu_add_rms_norm(x1, x2, gamma, epsilon, "npu_add_rms_norm_cast")


def npu_swiglu(input: Tensor, dim: int = -1) -> None:
    floating("npu_swiglu", "input", input)
    if not -input.dim() <= dim < input.dim():
        raise bad("npu_swiglu", "dim", dim, f"a dimension of the input {list(input.shape)}")
    if input.shape[dim] % 2 or input.numel() == 0:
        raise bad(
            "npu_swiglu",
            "input",
            input.shape,
            f"non-empty with an even size along dim {dim}: [gate | up]",
        )
    if not input.is_contiguous():
        raise bad(
            "npu_swiglu",
            "input",
            f"a non-contiguous view with strides {input.stride()}",
            "contiguous",
        )


def npu_rotary_mul(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> None:
    op, shape = "npu_rotary_mul", input.shape
    floating(op, "input", input)
    one_of(op, "rotary_mode", rotary_mode, "half", "interleave")
    if input.dim() not in (3, 4) or shape[-1] % 2 or shape[-1] >= 896:
        raise bad(op, "input", shape, "4-D (or [T, N, D]) with an even last dim below 896")
    for name, table in (("r1 (cos)", r1), ("r2 (sin)", r2)):
        if table.dim() != input.dim() or any(
            a not in (1, b) for a, b in zip(table.shape, shape, strict=True)
        ):
            raise bad(
                op,
                name,
                table.shape,
                f"broadcastable to the input {list(shape)}, with as many dims",
            )
        if table.shape[-1] != shape[-1]:
            raise bad(op, name, table.shape, f"as wide as the input's last dim, {shape[-1]}")
        if rotary_mode == "interleave" and sum(size != 1 for size in table.shape[:-1]) > 1:
            raise bad(
                op,
                name,
                table.shape,
                "[1, 1, S, D], [1, S, 1, D], [S, 1, 1, D] or [T, 1, D] in mode 'interleave'",
            )
    if rotate is not None:
        shape_of(op, "rotate", rotate, shape[-1], shape[-1], names="[D, D]")


def _cos_sin(
    operator: str, cos: Tensor, sin: Tensor, batch: int, length: int, like: str, x: Tensor
) -> None:
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape not in (
            torch.Size((batch, 1, length, ROPE_DIM)),
            torch.Size((batch, 1, 1, ROPE_DIM)),
        ):
            raise bad(
                operator,
                name,
                table.shape,
                f"[B, 1, S, 64] or [B, 1, 1, 64] with B = {batch}, S = {length}: its head dim is 1",
            )
        same_dtype(operator, name, table, like, x)


def npu_interleave_rope(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    op = "npu_interleave_rope"
    if x.dim() != 4 or x.shape[-1] != ROPE_DIM:
        raise bad(op, "x", x.shape, "[B, N, S, 64]; other head sizes need npu_rotary_mul on halves")
    floating(op, "x", x)
    if x.device.type == "npu":
        dtype_of(op, "x", x, torch.float16, torch.bfloat16)
    if not x.is_contiguous():
        raise bad(op, "x", f"a non-contiguous view with strides {x.stride()}", "contiguous")
    _cos_sin(op, cos, sin, x.shape[0], x.shape[2], "x", x)


# ---- cache updates -------------------------------------------------------------------------------


def scatter_update_(
    input: Tensor, indices: Tensor, updates: Tensor, axis: int, operator: str = "scatter_update_"
) -> None:
    rank = input.dim()
    if input.dtype not in SCATTER_DTYPES and (
        input.dtype != torch.float64 or input.device.type == "npu"
    ):
        dtype_of(operator, "input", input, *SCATTER_DTYPES)
    same_dtype(operator, "updates", updates, "input", input)
    dtype_of(operator, "indices", indices, *INDICES)
    if not 2 <= rank <= 8 or updates.dim() != rank:
        raise bad(
            operator,
            "updates",
            updates.shape,
            f"of the input's rank, 2 to 8; the input is {list(input.shape)}",
        )
    if not -rank < axis < rank or axis == 0:
        raise bad(
            operator,
            "axis",
            axis,
            f"a dimension of the input {list(input.shape)} other than the first",
        )
    axis %= rank
    rows = updates.shape[0]
    if indices.shape not in (torch.Size((rows,)), torch.Size((rows, 2))):
        raise bad(
            operator,
            "indices",
            indices.shape,
            f"[{rows}] (starts) or [{rows}, 2] (row, start): one for each row of updates",
        )
    if indices.dim() == 1 and rows != input.shape[0]:
        raise bad(
            operator,
            "updates",
            updates.shape,
            f"{input.shape[0]} rows, as the input, with 1-D indices",
        )
    if any(
        a != b
        for i, (a, b) in enumerate(zip(updates.shape, input.shape, strict=True))
        if i not in (0, axis)
    ):
        raise bad(
            operator,
            "updates",
            updates.shape,
            f"as the input {list(input.shape)} but for dims 0 and {axis}",
        )
    if readable(indices):
        last = input.shape[axis] - updates.shape[axis]
        for entry in indices.tolist():
            row, start = entry if indices.dim() == 2 else (0, entry)
            if not (0 <= start <= last and 0 <= row < input.shape[0]):
                raise bad(
                    operator,
                    "indices",
                    entry,
                    f"within the input: start 0..{last} for {updates.shape[axis]} "
                    f"positions, row 0..{input.shape[0] - 1}; the device does not check",
                )


def scatter_update(input: Tensor, indices: Tensor, updates: Tensor, axis: int) -> None:
    scatter_update_(input, indices, updates, axis, "scatter_update")


def npu_scatter_nd_update_(
    input: Tensor, indices: Tensor, updates: Tensor, operator: str = "npu_scatter_nd_update_"
) -> None:
    if input.dtype not in SCATTER_ND_DTYPES and (
        input.dtype != torch.float64 or input.device.type == "npu"
    ):
        dtype_of(operator, "input", input, *SCATTER_ND_DTYPES)
    same_dtype(operator, "updates", updates, "input", input)
    dtype_of(operator, "indices", indices, *INDICES)
    if indices.dim() < 2 or not 1 <= indices.shape[-1] <= input.dim():
        raise bad(
            operator,
            "indices",
            indices.shape,
            f"of rank 2 or more with a last dim of 1..{input.dim()}",
        )
    depth = indices.shape[-1]
    shape_of(
        operator,
        "updates",
        updates,
        *indices.shape[:-1],
        *input.shape[depth:],
        names="indices.shape[:-1] + input.shape[indices.shape[-1]:]",
    )
    if readable(indices):
        limit = torch.tensor(input.shape[:depth])
        if bool(((indices < 0) | (indices >= limit)).any()):
            raise bad(
                operator,
                "indices",
                "outside the input",
                f"in 0..{[s - 1 for s in input.shape[:depth]]}; the device does not check",
            )


def npu_scatter_nd_update(input: Tensor, indices: Tensor, updates: Tensor) -> None:
    npu_scatter_nd_update_(input, indices, updates, "npu_scatter_nd_update")


def npu_kv_rmsnorm_rope_cache(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    *,
    cache_mode: str = "Norm",
    **other: Any,
) -> None:
    op = "npu_kv_rmsnorm_rope_cache"
    floating(op, "kv", kv)
    if kv.dim() != 4 or kv.shape[1] != 1 or kv.shape[3] != LATENT_DIM + ROPE_DIM:
        raise bad(op, "kv", kv.shape, "[B, 1, S, 576]: 512 latent channels, then 64 rotary ones")
    batch, length = kv.shape[0], kv.shape[2]
    shape_of(op, "gamma", gamma, LATENT_DIM)
    _cos_sin(op, cos, sin, batch, length, "kv", kv)
    dtype_of(op, "index", index, torch.int64)
    one_of(
        op, "cache_mode", cache_mode, "Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ"
    )
    wanted = torch.Size((batch, length)) if cache_mode == "Norm" else torch.Size((batch * length,))
    if "BLK" not in cache_mode and index.shape != wanted:
        raise bad(op, "index", index.shape, f"{list(wanted)} in cache_mode {cache_mode!r}")
    for name, cache, width in (
        ("k_cache", k_cache, ROPE_DIM),
        ("ckv_cache", ckv_cache, LATENT_DIM),
    ):
        lead = "[B, 1, L, " if cache_mode == "Norm" else "[blocks, block, 1, "
        one = 1 if cache_mode == "Norm" else 2
        if cache.dim() != 4 or cache.shape[3] != width or cache.shape[one] != 1:
            raise bad(op, name, cache.shape, f"{lead}{width}] in cache_mode {cache_mode!r}")
    if (
        cache_mode == "Norm"
        and readable(index)
        and not 0 <= int(index.min()) <= int(index.max()) < k_cache.shape[2]
    ):
        raise bad(op, "index", index.tolist(), f"in 0..{k_cache.shape[2] - 1}")


# ---- hints ---------------------------------------------------------------------------------------


def npu_prefetch(input: Tensor, dependency: Tensor | None, max_size: int, offset: int = 0) -> None:
    if max_size <= 0:
        raise bad("npu_prefetch", "max_size", max_size, "a positive number of bytes")
    if offset < 0:
        raise bad("npu_prefetch", "offset", offset, "0 or more bytes")


def npu_format_cast(input: Tensor, acl_format: int, **other: Any) -> None:
    if not isinstance(acl_format, int) or isinstance(acl_format, bool):
        raise bad(
            "npu_format_cast",
            "acl_format",
            repr(acl_format),
            "an integer: 2 ND, 29 FRACTAL_NZ",
            TypeError,
        )

"""Cache updates: rows written at positions, and the MLA cache's norm, rotation and write in one
operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import kv_cache_modes
from .checks import (
    FLOATS,
    INDICES,
    bad,
    dtype_of,
    floating,
    for_device,
    one_of,
    readable,
    same_dtype,
    shape_of,
)
from .rope import ROPE_DIM, check_cos_sin
from .table import operator
from .wide import unsupported

SCATTER_DTYPES = (torch.int8, torch.float16, torch.float32, torch.bfloat16, torch.int32)
SCATTER_ND_DTYPES = (*FLOATS, torch.bool, torch.int64, torch.int8)


def _write_runs(input: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
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


def _write_rows(input: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return input.index_put_(tuple(indices.long().unbind(-1)), updates)


def check_scatter_update_(
    input: Tensor, indices: Tensor, updates: Tensor, axis: int, operator: str = "scatter_update_"
) -> None:
    rank = input.dim()
    if input.dtype not in SCATTER_DTYPES and (input.dtype != torch.float64 or for_device(input)):
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


@operator(check_scatter_update_)
def scatter_update_(input: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """Write each row of updates as one run of positions along axis, in place; returns input.

    indices [d0]: row i goes to input[i], from position indices[i] on.
    indices [m, 2]: row i goes to input[indices[i, 0]], from position indices[i, 1] on (A2/A3:
    likely, not proven). start + updates.size(axis) must not pass input.size(axis); the device does
    not check.
    """
    return _write_runs(input, indices, updates, axis)


def check_scatter_update(input: Tensor, indices: Tensor, updates: Tensor, axis: int) -> None:
    check_scatter_update_(input, indices, updates, axis, "scatter_update")


@operator(check_scatter_update)
def scatter_update(input: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """scatter_update_ on a copy of input."""
    return _write_runs(input.clone(), indices, updates, axis)


def check_scatter_nd_update_(
    input: Tensor, indices: Tensor, updates: Tensor, operator: str = "npu_scatter_nd_update_"
) -> None:
    if input.dtype not in SCATTER_ND_DTYPES and (input.dtype != torch.float64 or for_device(input)):
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


@operator(check_scatter_nd_update_)
def npu_scatter_nd_update_(input: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """input[tuple(indices[p])] = updates[p] for every leading position p, in place; returns input.

    indices [..., a] with a <= input.dim(); updates [*indices.shape[:-1], *input.shape[a:]].
    Duplicates: undefined.
    """
    return _write_rows(input, indices, updates)


def check_scatter_nd_update(input: Tensor, indices: Tensor, updates: Tensor) -> None:
    check_scatter_nd_update_(input, indices, updates, "npu_scatter_nd_update")


@operator(check_scatter_nd_update)
def npu_scatter_nd_update(input: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """npu_scatter_nd_update_ on a copy of input."""
    return _write_rows(input.clone(), indices, updates)


def check_kv_rmsnorm_rope_cache(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    *,
    v: Tensor | None = None,
    cache_mode: str = "Norm",
    **other: Any,
) -> None:
    op = "npu_kv_rmsnorm_rope_cache"
    floating(op, "kv", kv)
    whole, normed, second = kv_cache_modes.METHODS["latent" if v is None else "v"]
    if kv.dim() != 4 or kv.shape[1] != 1 or kv.shape[3] != whole:
        form = "512 latent channels, then 64 rotary ones" if v is None else "with v"
        raise bad(op, "kv", kv.shape, f"[B, 1, S, {whole}]: {form}")
    batch, length = kv.shape[0], kv.shape[2]
    shape_of(op, "gamma", gamma, normed)
    if v is not None:
        shape_of(op, "v", v, batch, 1, length, second)
        same_dtype(op, "v", v, "kv", kv)
    check_cos_sin(op, cos, sin, batch, length, "kv", kv)
    dtype_of(op, "index", index, torch.int64)
    one_of(
        op, "cache_mode", cache_mode, "Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ"
    )
    wanted = torch.Size((batch, length)) if cache_mode == "Norm" else torch.Size((batch * length,))
    if "BLK" in cache_mode and k_cache.dim() > 1:
        wanted = torch.Size((kv_cache_modes.pages(batch, length, max(k_cache.shape[1], 1)),))
    if index.shape != wanted:
        raise bad(op, "index", index.shape, f"{list(wanted)} in cache_mode {cache_mode!r}")
    for name, cache, width in (
        ("k_cache", k_cache, ROPE_DIM if v is None else whole),
        ("ckv_cache", ckv_cache, normed if v is None else second),
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


@operator(check_kv_rmsnorm_rope_cache)
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
    negative = not written; "PA_NZ" the same with 16 (int8: 32) channels side by side; "PA_BLK_BNSD",
    "PA_BLK_NZ": index holds the first slot of each page of rows. With v [B, 1, S, 128]: kv and gamma
    192 wide, all of it normalised, the first 64 channels rotated and the result kept in k_cache; v
    goes to ckv_cache.
    Scales store int8: clip(round(value * scale)). Returns (k_cache, ckv_cache, k_embed, y); the
    last two mean something only with is_output_kv in the PA modes and are NaN otherwise.
    DeepSeek-V3's epsilon is 1e-6, not the default.
    """
    unsupported("npu_kv_rmsnorm_rope_cache", k_rope_offset=k_rope_offset, c_kv_offset=c_kv_offset)
    rotary, latent = kv_cache_modes.rows(kv, gamma, cos, sin, v, epsilon)
    kv_cache_modes.write(k_cache, rotary, k_rope_scale, cache_mode, index)
    kv_cache_modes.write(ckv_cache, latent, c_kv_scale, cache_mode, index)
    k_embed, y = rotary.to(kv.dtype), latent.to(kv.dtype)
    if not is_output_kv or cache_mode not in kv_cache_modes.PAGED:
        k_embed, y = torch.full_like(k_embed, torch.nan), torch.full_like(y, torch.nan)
    return k_cache, ckv_cache, k_embed, y

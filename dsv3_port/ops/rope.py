"""Rotary embeddings on halves and on interleaved pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import ContractError, bad, dtype_of, floating, for_device, one_of, same_dtype, shape_of
from .table import operator
from .wide import wide

ROPE_DIM = 64  # the only head size of npu_interleave_rope


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def check_rotary_mul(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> None:
    op, shape = "npu_rotary_mul", input.shape
    floating(op, "input", input)
    if rotary_mode not in ("half", "interleave"):  # in torch_npu's words
        raise ContractError(
            f"{op}: The rotary_mode of npu_rotary_mul should be half or interleave, but got {rotary_mode}"
        )
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


@operator(check_rotary_mul)
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
        raise ContractError(
            f"npu_rotary_mul: rotary_mode is {rotary_mode!r}; it is 'half' or 'interleave'"
        )
    return (x * cos + turned * sin).to(input.dtype)


def turned_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved pairs to halves, turned; one cast."""
    halves = torch.cat((wide(x)[..., ::2], wide(x)[..., 1::2]), -1)
    return (halves * wide(cos) + _rotate_half(halves) * wide(sin)).to(x.dtype)


def check_cos_sin(
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


def check_interleave_rope(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    op = "npu_interleave_rope"
    if x.dim() != 4 or x.shape[-1] != ROPE_DIM:
        raise bad(op, "x", x.shape, "[B, N, S, 64]; other head sizes need npu_rotary_mul on halves")
    floating(op, "x", x)
    if for_device(x):
        dtype_of(op, "x", x, torch.float16, torch.bfloat16)
    if not x.is_contiguous():
        raise bad(op, "x", f"a non-contiguous view with strides {x.stride()}", "contiguous")
    check_cos_sin(op, cos, sin, x.shape[0], x.shape[2], "x", x)


@operator(check_interleave_rope)
def npu_interleave_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs: evens first, odds last, then rotate-half; one cast.

    x [B, N, S, 64]; cos, sin [B, 1, S or 1, 64], both cat(freqs, freqs). The result is in half
    layout, not interleaved: q and k must both go through it.
    """
    return turned_pairs(x, cos, sin)


def check_apply_rotary_pos_emb(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: str = "BSND",
    rotary_mode: str = "half",
) -> None:
    op = "npu_apply_rotary_pos_emb"
    if rotary_mode not in ("half", "quarter", "interleave"):  # in torch_npu's words
        raise ContractError(
            f"{op}: The layout should be half/quarter/interleave, but got {rotary_mode}"
        )
    one_of(op, "layout", layout, "BSND", "TND")
    one_of(op, "rotary_mode", rotary_mode, "half")
    floating(op, "query", query)
    rank, width = len(layout), query.shape[-1]
    if query.dim() != rank or width not in (64, 128):
        raise bad(op, "query", query.shape, f"{layout} with D of 64 or 128")
    lead = query.shape[:-2]
    if key.dim() != rank or key.shape[:-2] != lead or key.shape[-1] != width:
        raise bad(op, "key", key.shape, f"{[*lead, 'N', width]}, as query but for its heads")
    for name, x in (("key", key), ("cos", cos), ("sin", sin)):
        same_dtype(op, name, x, "query", query)
    for name, x in (("cos", cos), ("sin", sin)):
        shape_of(op, name, x, *lead, 1, width)


@operator(check_apply_rotary_pos_emb)
def npu_apply_rotary_pos_emb(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: str = "BSND",
    rotary_mode: str = "half",
) -> tuple[Tensor, Tensor]:
    """x * cos + rot(x) * sin of query and key, in place (no schema says so), one cast; returns both.

    query [B, S, N, D] or [T, N, D], key the same with its own N, cos and sin with N = 1; D 64 or 128;
    rot is cat(-second half, first half). Source: operator document and host code of Ascend/op-plugin.
    """
    for x in (query, key):
        x.copy_((wide(x) * wide(cos) + _rotate_half(wide(x)) * wide(sin)).to(x.dtype))
    return query.clone(), key.clone()

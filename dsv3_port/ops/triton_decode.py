"""Attention of a decode step over latent rows in two Triton kernels: Flash-Decoding (Dao, Haziza, Massa
and Sizov, 2023) with one key row for all heads, whose first R numbers are the value too (DeepSeek-V2
report, arXiv 2405.04434, appendix C). split_attention.py imports this where it is launched: Triton is
no package of a CPU's torch.

Of sequence b, queries see the keys in [pad[b], slot[b] + S). Both are read on the device: every split
takes its equal share of these keys, however long the buffer is, and reads each row once for its score
and its value. A graph that was captured stays right when the cache fills.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .split_attention import Blocks, Grid

LOG2_E = 1.4426950408889634  # exp2 is an instruction, exp is not
JOINED_SPLITS, JOINED_WIDTH = 32, 64  # of one step of the second kernel: 8 KiB


@triton.jit
def own_share(
    pad,
    at,  # the position of the first query
    length,
    split,
    S: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
    KEYS: tl.constexpr,
):
    """The keys of this split: from the first number to the second, int32; none where they are equal."""
    first = tl.minimum(pad, length).to(tl.int32)
    end = tl.minimum(at + S, length).to(tl.int32)
    share = tl.cdiv(tl.maximum(end - first, 0), SPLITS)
    share = tl.cdiv(tl.maximum(share, LEAST), KEYS) * KEYS
    begin = tl.minimum(first + split * share, tl.maximum(end, first))
    return begin, tl.minimum(begin + share, tl.maximum(end, first))


@triton.jit
def add_keys(score, seen, latent, largest, total, result, PRECISION: tl.constexpr):
    """The online softmax: scores [QUERIES, KEYS] and values [KEYS, LATENT] into the largest score, the
    sum of the exponentials and the sum of the values so far."""
    score = tl.where(seen, score, float("-inf"))
    new = tl.maximum(largest, tl.max(score, 1))
    base = tl.where(new == float("-inf"), 0.0, new)  # a query that has seen nothing yet
    weight, kept = tl.exp2(score - base[:, None]), tl.exp2(largest - base)
    total = total * kept + tl.sum(weight, 1)
    result = tl.dot(
        weight.to(latent.dtype), latent, result * kept[:, None], input_precision=PRECISION
    )
    return new, total, result


@triton.jit
def split_kernel(
    queries,  # [B, M, R + DR], row m is head m // S at position m % S
    rows,  # [B, L, R + DR], two strides
    pads,  # [B] int64
    slots,  # [B] int64
    partial,  # [B, M, SPLITS, R]: each split's own result
    weights,  # [B, M, SPLITS]: log2 of the sum of its exponentials; -inf: it saw nothing
    count,  # M
    length,  # L
    rows_b,
    rows_l,
    scale,  # times LOG2_E
    S: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,  # keys that a split takes before the next one gets any
    R: tl.constexpr,
    DR: tl.constexpr,
    LATENT: tl.constexpr,  # R and DR, up to a power of two
    ROPE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    split, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    at = tl.load(slots + b)
    begin, stop = own_share(tl.load(pads + b), at, length, split, S, SPLITS, LEAST, KEYS)
    row = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    low, high = tl.arange(0, LATENT)[None, :], tl.arange(0, ROPE)[None, :]
    used = ((row < count) & (begin < stop))[:, None]
    place = queries + (b * count + row)[:, None] * (R + DR)
    q_low = tl.load(place + low, mask=used & (low < R), other=0.0)
    q_high = tl.load(place + R + high, mask=used & (high < DR), other=0.0)
    last = (at + row % S).to(tl.int32)  # the key that a query sees last

    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    result = tl.zeros([QUERIES, LATENT], tl.float32)
    for here in range(begin, stop, KEYS):
        key = here + tl.arange(0, KEYS)
        there = rows + b * rows_b + key[:, None].to(tl.int64) * rows_l
        filled = (key < stop)[:, None]
        latent = tl.load(there + low, mask=filled & (low < R), other=0.0)
        rope = tl.load(there + R + high, mask=filled & (high < DR), other=0.0)
        score = tl.dot(q_low, tl.trans(latent), input_precision=PRECISION)
        score = tl.dot(q_high, tl.trans(rope), score, input_precision=PRECISION) * scale
        seen = (key < stop)[None, :] & (key[None, :] <= last[:, None])
        largest, total, result = add_keys(score, seen, latent, largest, total, result, PRECISION)

    some = total > 0
    result = result / tl.where(some, total, 1.0)[:, None]
    to, written = (b * count + row) * SPLITS + split, row < count
    if SPLITS > 1:  # a lone split writes zeros for a query that sees nothing
        logarithm = largest + tl.log2(tl.where(some, total, 1.0))
        tl.store(weights + to, tl.where(some, logarithm, float("-inf")), mask=written)
        written = written & some
    result = result.to(partial.dtype.element_ty)
    tl.store(partial + to[:, None] * R + low, result, mask=written[:, None] & (low < R))


@triton.jit
def join_kernel(
    partial,  # [B * M, SPLITS, R] float32
    weights,  # [B * M, SPLITS] float32
    joined,  # [B * M, R]
    SPLITS: tl.constexpr,
    R: tl.constexpr,
    TOGETHER: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    largest = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    result = tl.zeros([WIDTH], tl.float32)
    for first in range(0, SPLITS, TOGETHER):
        split = first + tl.arange(0, TOGETHER)
        to = row * SPLITS + split
        own = tl.load(weights + to, mask=split < SPLITS, other=float("-inf"))
        used = own > float("-inf")  # the others wrote nothing: what lies there may be NaN
        part = tl.load(
            partial + to[:, None] * R + column[None, :],
            mask=used[:, None] & (column < R)[None, :],
            other=0.0,
        )
        new = tl.maximum(largest, tl.max(own, 0))
        base = tl.where(new == float("-inf"), 0.0, new)
        weight, kept = tl.exp2(own - base), tl.exp2(largest - base)
        total = total * kept + tl.sum(weight, 0)
        result = result * kept + tl.sum(part * weight[:, None], 0)
        largest = new
    result = result / tl.where(total > 0, total, 1.0)
    tl.store(joined + row * R + column, result.to(joined.dtype.element_ty), mask=column < R)


def constants(grid: Grid, blocks: Blocks, dtype: torch.dtype) -> dict[str, Any]:
    """The first kernel's arguments that are compiled into it."""
    return {
        "S": grid.positions,
        "SPLITS": grid.splits,
        "LEAST": grid.least,
        "R": grid.latent,
        "DR": grid.rope,
        "LATENT": blocks.latent,
        "ROPE": blocks.rope,
        "QUERIES": blocks.queries,
        "KEYS": blocks.keys,
        # tensor cores would round float32 to 10 bits, which torch's own products do not
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
    }


def join_constants(grid: Grid) -> dict[str, Any]:
    """The same of the second."""
    return {
        "SPLITS": grid.splits,
        "R": grid.latent,
        "TOGETHER": JOINED_SPLITS,
        "WIDTH": JOINED_WIDTH,
    }


def launch(
    q: Tensor, rows: Tensor, pad: Tensor, slot: Tensor, scale: float, grid: Grid, blocks: Blocks
) -> Tensor:
    """q [B, M, R + Dr] contiguous, rows [B, L, R + Dr] with contiguous rows -> [B, M, R]; M is heads
    by positions. Nothing is read on the host."""
    batch, count, _ = q.shape
    shape = (batch, count, grid.splits, grid.latent)
    joins = grid.splits > 1
    partial = q.new_empty(shape, dtype=torch.float32 if joins else q.dtype)
    weights = q.new_empty(shape[:3], dtype=torch.float32)
    split_kernel[(grid.splits, grid.head_blocks, batch)](
        q,
        rows,
        pad,
        slot,
        partial,
        weights,
        count,
        rows.shape[1],
        rows.stride(0),
        rows.stride(1),
        scale * LOG2_E,
        **constants(grid, blocks, q.dtype),
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    if not joins:
        return partial.view(batch, count, grid.latent)
    joined = q.new_empty(batch, count, grid.latent)
    join_kernel[(batch * count, triton.cdiv(grid.latent, JOINED_WIDTH))](
        partial, weights, joined, **join_constants(grid)
    )
    return joined

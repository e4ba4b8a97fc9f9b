"""The forms of a product that are fastest on a CPU. products.py says where each is used; nothing here
runs on another device, but for shapes alone (meta)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import plain
from .wide import wide

# Limits in rows. The ratios beside them are times faster than F.linear, torch.bmm or a loop of
# torch.mm: torch 2.13, two AVX-512 cores, weights that do not stay in the caches, two threads.
# eager float32, weight @ x^T for x @ weight^T: 2 rows 3.2, 4 rows 1.7, 8 rows 1.0 (small weights
# 2.9)
TURNED_ROWS = 8
# Compiled, one product and sum a row, in a block of norm, SwiGLU and two products. float32: 1 row
# 3.3, 2 rows 4.1, 4 rows 2.6, 8 rows 1.3; bfloat16: 1 row 2.1, 2 rows 1.9, 4 rows 1.6, 6 rows 1.5,
# 8 rows 1.2 (small weights 0.9). F.linear reads weights at 8 to 16 GB/s there, this at up to 47
# GB/s with one float32 row.
SUMMED_ROWS = {torch.float32: 8, torch.bfloat16: 6}
# compiled grouped matmul, each row reads its own expert: float32 2.0 to 4.9, bfloat16 1.0 to 7.7
GATHER_ROWS = 256
# float32 by oneDNN, for weights of so many elements at least: 1 row 2.1, 8 rows 1.3 to 2.0, 128
# rows 1.3 to 1.8, 1,024 rows 1.1 to 1.2; with one thread 1.0 to 1.1, for smaller weights 0.7 to
# 1.3. F.linear leaves float32 to MKL.
ONEDNN_ELEMENTS = 1 << 17
ONEDNN_TURNED = 3  # rows up to which turning such a weight is faster still
# F.grouped_mm, for experts of fewer elements than this in float32 (1.1 to 1.6; above oneDNN's loop
# is 1.1 to 2.2 times faster), of any size in bfloat16 (1.0 to 1.4), with a row for every fourth
# expert at least: it visits all of them.
GROUPED_MM_ELEMENTS = 1 << 18
# One torch.bmm over all experts, each group filled with zeros to the same rows, in place of
# F.grouped_mm in bfloat16: experts of 2^14 elements 1.8 to 4.9 with 4 to 32 rows, of 2^17 1.3 to 1.6 with
# 8, larger ones and more rows 0.7 to 1.1. Groups longer than three times the mean are multiplied one
# by one, so that a long group does not fill all others (a step of W1 with 128 tokens: 44 ms
# without, 33, 30, 31 ms at 2, 3, 6 times).
PADDED_ELEMENTS = 1 << 17
PADDED_ROWS = 32
PADDED_MEANS = 3
_onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_plain = False


@contextlib.contextmanager
def plain_products() -> Iterator[None]:
    """Within it eager products are those of the model as it is written, for what counts operators
    or compares bits."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def _summed(x: Tensor, rows: int) -> bool:
    """Whether torch.compile should get products and sums, which inductor turns into one pass over
    the weight."""
    return (
        torch.compiler.is_compiling()
        and 0 < rows <= SUMMED_ROWS.get(x.dtype, 0)
        and x.is_contiguous()
    )


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _onednn
        and not _plain
        and x.dtype == torch.float32
        and weight.numel() >= ONEDNN_ELEMENTS
        and weight.is_contiguous()
    )


def _turned(x: Tensor, weight: Tensor, rows: int) -> bool:
    most = min(TURNED_ROWS, ONEDNN_TURNED) if _by_onednn(x, weight) else TURNED_ROWS
    return 1 < rows <= most and not _plain and x.dtype == torch.float32


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in], weight [out, in] -> [..., out] by the library that is faster at it."""
    if not _by_onednn(x, weight):
        return F.linear(x, weight)
    if (
        torch.compiler.is_compiling()
    ):  # inductor takes oneDNN's own operator for one of packed weights
        packed: Tensor = torch.ops.dsv3.linear(x, weight)
        return packed
    return _onednn_linear(x, weight)


def _onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return y


@torch.library.custom_op("dsv3::linear", _onednn_linear, mutates_args=()).register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _stored(x: Tensor, *shape: int) -> Tensor:
    """A contiguous x in another shape, which inductor must store: otherwise it fuses what x is made
    of (a norm, a gather) into the product and repeats that for every output. as_strided is the
    public operator with this effect."""
    return x.as_strided(shape, [math.prod(shape[i + 1 :]) for i in range(len(shape))])


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in], weight [out, in] -> [..., out], contiguous for contiguous x; 16-bit products add
    up in float32."""
    rows = x.numel() // x.shape[-1]
    if _summed(x, rows):
        flat, wide_weight = _stored(wide(x), rows, x.shape[-1]), wide(weight)
        y = torch.stack([(wide_weight * flat[row]).sum(-1) for row in range(rows)]).to(x.dtype)
        return _stored(y, *x.shape[:-1], weight.shape[0])
    if not torch.compiler.is_compiling() and _turned(x, weight, rows):
        return (weight @ x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)
    return _product(x, weight)


def head_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Each head's own matrix: x [B, N, S, D], weight [N, D, R] -> [B, N, S, R]."""
    batch, heads, length, _ = x.shape
    if batch * length != 1 or not torch.compiler.is_compiling():
        return plain.head_matmul(x, weight)
    rows = plain.heads_first(x)  # one row, compiled: 1.3 to 2.1 times faster
    y = (wide(weight) * wide(rows).transpose(1, 2)).sum(1, keepdim=True).to(x.dtype)
    return y.view(heads, batch, length, -1).transpose(0, 1)


def shared_scores(q: Tensor, rows: Tensor) -> Tensor:
    """One key row for all heads: q [B, M, D], rows [B, L, D] -> [B, M, L]."""
    if torch.compiler.is_compiling() and q.dtype == torch.float32:
        return (rows @ q.transpose(1, 2)).transpose(
            1, 2
        )  # L rows for the library's matmul: up to 1.3 times faster
    return plain.shared_scores(q, rows)


# ---- grouped matmul ------------------------------------------------------------------------------


def grouped_matmul(x: Tensor, weight: Tensor | Sequence[Tensor], cumulative: Tensor) -> Tensor:
    """Rows of group g times weight[g]: x [M, K], weight [E, K, N], cumulative int64 [E] -> [M, N].

    Rows past cumulative[-1] become NaN. ValueError if cumulative[-1] > M (not seen by the gathered
    form).
    """
    if not torch.compiler.is_compiling():
        return _grouped_eager(x, weight, cumulative)
    stacked = weight if isinstance(weight, Tensor) else torch.stack(list(weight))
    if x.shape[0] <= GATHER_ROWS:
        rows = _stored(x, *x.shape) if x.is_contiguous() else x
        return plain.grouped_gather(rows, stacked, cumulative)
    y: Tensor = torch.ops.dsv3.grouped_matmul(x, stacked, cumulative)
    return y


def _grouped_eager(x: Tensor, weight: Tensor | Sequence[Tensor], cumulative: Tensor) -> Tensor:
    """After one read of the boundaries on the host, one matmul for each group with rows, by what is
    fastest at it."""
    ends = cumulative.tolist()
    used = ends[-1]
    if used > x.shape[0]:
        raise ValueError(
            f"npu_grouped_matmul: group_list ends at row {used}, but x has {x.shape[0]} rows"
        )
    if used == x.shape[0] and isinstance(weight, Tensor) and _by_grouped_mm(x, weight):
        offsets = cumulative.int()
        if x.dtype == torch.float32 and used <= TURNED_ROWS * len(ends):
            turned: Tensor = F.grouped_mm(weight.transpose(1, 2), x.t(), offs=offsets)  # [N, M]
            return turned.t().contiguous()
        if _by_bmm(x, weight):
            return _grouped_padded(x, weight, ends)
        return F.grouped_mm(x, weight, offs=offsets)
    return _grouped_loop(x, weight, ends)


def _by_grouped_mm(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's own loop over the groups, in C++, is faster than one in Python over the
    better library."""
    return (
        not _plain
        and hasattr(F, "grouped_mm")  # torch 2.10
        and x.is_contiguous()
        and 4 * x.shape[0] >= weight.shape[0]
        and (
            x.dtype == torch.bfloat16
            or x.dtype == torch.float32
            and weight[0].numel() < GROUPED_MM_ELEMENTS
        )
        and all(size * x.element_size() % 16 == 0 for size in (x.shape[0], *weight.shape[1:]))
    )


def _by_bmm(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == torch.bfloat16
        and weight[0].numel() <= PADDED_ELEMENTS
        and len(x) <= PADDED_ROWS * len(weight)
    )


def _grouped_padded(x: Tensor, weight: Tensor, ends: Sequence[int]) -> Tensor:
    """All groups at once, each filled to the same rows; the few that are longer one by one."""
    groups, width = weight.shape[0], weight.shape[2]
    starts = [0, *ends[:-1]]
    counts = [end - start for start, end in zip(starts, ends, strict=True)]
    rows = min(max(counts), PADDED_MEANS * -(-len(x) // groups))
    short = torch.tensor([n if n <= rows else 0 for n in counts])
    first = torch.tensor(starts)
    here = torch.arange(int(short.sum()))
    group = torch.repeat_interleave(torch.arange(groups), short)
    within = here - (short.cumsum(0) - short)[group]
    taken, put = first[group] + within, group * rows + within
    filled = x.new_zeros(groups * rows, x.shape[1]).index_copy_(0, put, x[taken])
    found = torch.bmm(filled.view(groups, rows, -1), weight).view(-1, width)[put]
    if len(here) == len(x):
        return found
    y = x.new_empty(len(x), width).index_copy_(0, taken, found)
    for expert, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if end - start > rows:
            torch.mm(x[start:end], weight[expert], out=y[start:end])
    return y


def _grouped_loop(x: Tensor, weight: Tensor | Sequence[Tensor], ends: Sequence[int]) -> Tensor:
    y = x.new_empty(x.shape[0], weight[0].shape[-1])
    start = 0
    for group, end in enumerate(ends):
        if end <= start:
            continue
        turned = weight[group].t()  # as experts are stored, [N, K] in memory
        if _turned(x, turned, end - start):  # 1.3 to 1.5 times faster with 2 to 8 rows a group
            y[start:end] = (turned @ x[start:end].t()).t()
        elif _by_onednn(x, turned):
            y[start:end] = _onednn_linear(x[start:end], turned)
        else:
            torch.mm(x[start:end], weight[group], out=y[start:end])
        start = end
    y[start:] = torch.nan
    return y


@torch.library.custom_op("dsv3::grouped_matmul", mutates_args=())
def grouped_matmul_op(x: Tensor, weight: Tensor, cumulative: Tensor) -> Tensor:
    return _grouped_eager(x, weight, cumulative)


@grouped_matmul_op.register_fake
def _(x: Tensor, weight: Tensor, cumulative: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[-1])

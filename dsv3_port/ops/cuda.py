"""Grouped matmul on an NVIDIA GPU: without the host, which would wait for the boundaries and could
not be in a captured graph. Its other products are PyTorch's own (plain.py)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from . import plain
from .cpu import grouped_matmul_op

# Compiled: up to so many rows each reads its own expert. One H100, 2026-11-27, 64 rows (batch 8, 8
# experts of the 671B layer): the whole captured step 437 to 573 us, with grouped_mm 791 to 911.
# More rows were not measured, and share experts.
GATHER_ROWS = 64
# Eagerly a gather copies the weights: still better than a wait where grouped_mm cannot be used
GATHER_BYTES = 256 << 20
# Where torch's grouped_mm does not read the boundaries on the host (aten/src/ATen/native/cuda/
# GroupedBlas.cpp: its fast path); elsewhere it loops as we would
MAJORS = (9, 10)
ALIGNED = 16  # bytes, of addresses and strides


def grouped_matmul(x: Tensor, weight: Tensor | Sequence[Tensor], cumulative: Tensor) -> Tensor:
    """Rows of group g times weight[g]: x [M, K], weight [E, K, N], cumulative int64 [E] -> [M, N].

    Rows past cumulative[-1] are undefined; that it is at most M is not looked at.
    """
    stacked = weight if isinstance(weight, Tensor) else torch.stack(list(weight))
    compiling = torch.compiler.is_compiling()
    if compiling and x.shape[0] <= GATHER_ROWS:
        return plain.grouped_gather(x, stacked, cumulative)
    reason = why_not(x, stacked)
    if not reason and plain.grouped_mm is not None:
        product: Tensor = plain.grouped_mm(x, stacked, offs=cumulative.int())
        return product
    if x.shape[0] * stacked[0].nbytes <= GATHER_BYTES:
        return _gathered(x, stacked, cumulative)
    if compiling:
        looped: Tensor = torch.ops.dsv3.grouped_matmul(x, stacked, cumulative)
        return looped
    return _looped(x, stacked, cumulative, reason)


def why_not(x: Tensor, weight: Tensor) -> str:
    """Why torch's grouped_mm would not do, or would read the boundaries on the host; "" if it does."""
    if reason := device_limit(x.device.index or 0, x.dtype):
        return reason
    # a compiler makes x itself, and has no word for a tensor's place; parameters begin their memory
    compiling = torch.compiler.is_compiling()
    places = () if compiling else (x.storage_offset(), weight.storage_offset())
    strides = (*x.stride()[:-1], *(s for s in weight.stride() if s != 1), weight.shape[-1])
    if x.stride(-1) != 1 or any(n * x.element_size() % ALIGNED for n in (*places, *strides)):
        return f"torch's grouped_mm needs rows that are multiples of {ALIGNED} bytes"
    return ""


def device_limit(index: int, dtype: torch.dtype) -> str:
    """Why many rows cannot be multiplied without the host on this GPU, whatever their shape: a prompt
    is not captured then, a decode step is."""
    if plain.grouped_mm is None:
        return f"torch {torch.__version__} has no grouped_mm"
    if dtype != torch.bfloat16:
        return f"torch's grouped_mm takes bfloat16 only without the host, not {str(dtype)[6:]}"
    if (major := capability(index)) not in MAJORS:
        return f"torch's grouped_mm needs compute capability 9 or 10 to do without the host, not {major}"
    return ""


def capability(index: int) -> int:
    """The GPU's generation: 9 is Hopper, 10 Blackwell. A constant to a compiler."""
    major: int = torch.cuda.get_device_properties(index).major
    return major


def _gathered(x: Tensor, weight: Tensor, cumulative: Tensor) -> Tensor:
    """A copy of each row's own weight; for few rows."""
    group = plain.group_of_rows(cumulative, x.shape[0])
    chosen = weight.transpose(1, 2)[group.clamp(max=weight.shape[0] - 1)]  # [M, N, K]
    y = torch.bmm(chosen, x.unsqueeze(-1)).squeeze(-1)
    return torch.where((group < weight.shape[0])[:, None], y, torch.nan)


def _looped(x: Tensor, weight: Tensor, cumulative: Tensor, reason: str) -> Tensor:
    """One product for each group with rows, after a read of the boundaries on the host."""
    _tell(reason)
    ends = cumulative.tolist()
    y, start = x.new_empty(x.shape[0], weight.shape[-1]), 0
    for group, end in enumerate(ends):
        if end > start:
            torch.mm(x[start:end], weight[group], out=y[start:end])
            start = end
    y[start:] = torch.nan
    return y


@functools.cache
def _tell(reason: str) -> None:
    """Once for each reason."""
    warnings.warn(
        f"grouped matmul: {reason}. So the host reads the experts' boundaries and launches one product "
        "for each: it waits in every layer, and the step cannot be captured",
        stacklevel=3,
    )


@grouped_matmul_op.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, cumulative: Tensor) -> Tensor:
    return grouped_matmul(x, weight, cumulative)

"""What the plain GE operators mean: arithmetic, shapes, constants, reductions, order, index. The
rest: ge_npu.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .ge_table import GE_TYPES, GraphError, Results, all_of, ints, operator, same_type

# ---- arithmetic ----------------------------------------------------------------------------------


def _binary(name: str, function: Callable[..., Tensor]) -> None:
    @operator(name, "x1 x2")
    def call(x1: Tensor, x2: Tensor) -> Tensor:
        same_type(x1, x2)
        return function(x1, x2)


def _unary(name: str, function: Callable[..., Tensor]) -> None:
    operator(name, "x")(function)


_TWO: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "RealDiv": torch.div,
    "Equal": torch.eq,
    "Less": torch.lt,
    "GreaterEqual": torch.ge,
    "LessEqual": torch.le,
    "LogicalAnd": torch.logical_and,
    "FloorDiv": torch.floor_divide,
}
_ONE: dict[str, Callable[..., Tensor]] = {
    "Cos": torch.cos,
    "Sin": torch.sin,
    "Neg": torch.neg,
    "Rsqrt": torch.rsqrt,
    "Sigmoid": torch.sigmoid,
    "ZerosLike": torch.zeros_like,
    "Identity": torch.clone,
    "TensorMove": torch.clone,
}
for _name, _function in _TWO.items():
    _binary(_name, _function)
for _name, _function in _ONE.items():
    _unary(_name, _function)


@operator("Pow", "x1 x2")
def power(x1: Tensor, x2: Tensor) -> Tensor:
    """An exponent of one element is taken as a number: PyTorch squares by a product, as in eager."""
    same_type(x1, x2)
    return x1.pow(x2.item()) if x2.numel() == 1 else x1.pow(x2)


@operator("Cast", "x", dst_type=...)
def cast(x: Tensor, dst_type: int) -> Tensor:
    return x.to(_type(dst_type))


def _type(number: int) -> torch.dtype:
    if number not in GE_TYPES:
        raise GraphError(f"data type {number} is not known to the interpreter")
    return GE_TYPES[number]


@operator("Swish", "x", {"scale": 1.0})
def swish(x: Tensor) -> Tensor:
    return F.silu(x)


@operator("ClipByValueV2", "x clip_value_min clip_value_max")
def clip(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return x.clamp(low, high)


@operator("SelectV2", "condition then else")
def select(condition: Tensor, then: Tensor, other: Tensor) -> Tensor:
    same_type(then, other)
    return torch.where(condition, then, other)


@operator("MaskedFill", "x mask value")
def masked_fill(x: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    return x.masked_fill(mask, value)


# ---- shapes --------------------------------------------------------------------------------------


@operator("Shape", "x", dtype=3)
def shape(x: Tensor, dtype: int) -> Tensor:
    return torch.tensor(x.shape, dtype=_type(dtype))


@operator("Reshape", "x shape", {"axis": 0, "num_axes": -1})
def reshape(x: Tensor, size: Tensor) -> Tensor:
    """0 in `shape` means: as in x, at this place; only where x has elements (then no length can be
    0)."""
    sizes = ints(size)
    if x.numel():
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Transpose", "x perm")
def transpose(x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(ints(perm))


@operator("Squeeze", "x", axis=())
def squeeze(x: Tensor, axis: list[int]) -> Tensor:
    wrong = [a for a in axis if x.shape[a] != 1]
    if wrong:
        raise GraphError(f"axis {wrong[0]} of {list(x.shape)} is not 1 long")
    return x.squeeze(tuple(axis)) if axis else x.squeeze()


@operator("Unsqueeze", "x", axes=...)
def unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    dims = x.dim() + len(axes)
    for axis in sorted(a % dims for a in axes):
        x = x.unsqueeze(axis)
    return x


@operator("BroadcastTo", "x shape")
def broadcast_to(x: Tensor, size: Tensor) -> Tensor:
    return x.broadcast_to(ints(size))


@operator("Pack", "x*", axis=0, N=...)
def pack(x: list[Tensor], axis: int, N: int) -> Tensor:
    return torch.stack(all_of(x, N), axis)


@operator("ConcatV2", "x* concat_dim", N=...)
def concat(x: list[Tensor], dim: Tensor, N: int) -> Tensor:
    return torch.cat(all_of(x, N), int(dim))


@operator("SplitV", "x size_splits split_dim", num_split=...)
def split(x: Tensor, sizes: Tensor, dim: Tensor, num_split: int) -> Results:
    lengths = ints(sizes)
    if len(lengths) != num_split:
        raise GraphError(f"num_split is {num_split}, and size_splits has {len(lengths)} lengths")
    if lengths.count(-1) == 1:  # what the other parts leave
        lengths[lengths.index(-1)] = x.shape[int(dim)] - sum(n for n in lengths if n != -1)
    return list(x.split(lengths, int(dim)))


@operator(
    "StridedSliceV2",
    "x begin end axes? strides?",
    {"begin_mask": 0, "end_mask": 0, "ellipsis_mask": 0, "new_axis_mask": 0, "shrink_axis_mask": 0},
)
def strided_slice(
    x: Tensor, begin: Tensor, end: Tensor, axes: Tensor | None, strides: Tensor | None
) -> Tensor:
    first, stop = ints(begin), ints(end)
    where = range(len(first)) if axes is None else ints(axes)
    every = [1] * len(first) if strides is None else ints(strides)
    index = [slice(None)] * x.dim()
    for axis, *bounds in zip(where, first, stop, every, strict=True):
        index[axis] = slice(*bounds)
    return x[tuple(index)]


# ---- constants -----------------------------------------------------------------------------------


@operator("Fill", "dims value")
def fill(dims: Tensor, value: Tensor) -> Tensor:
    return torch.full(ints(dims), value.item(), dtype=value.dtype)


@operator("Empty", "shape", dtype=0, init=False)
def empty(shape: Tensor, dtype: int, init: bool) -> Tensor:
    """Without init its values are undefined: here NaN, so that whoever reads them shows."""
    made = torch.zeros(ints(shape), dtype=_type(dtype))
    return made if init or not made.is_floating_point() else made.fill_(torch.nan)


@operator("Range", "start limit delta")
def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """torchair leaves constants of several integer types together: the widest is the result's."""
    dtype = torch.promote_types(torch.promote_types(start.dtype, limit.dtype), delta.dtype)
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=dtype)


# ---- reductions and order ------------------------------------------------------------------------


@operator("ReduceMean", "x axes", {"noop_with_empty_axes": True}, keep_dims=False)
def reduce_mean(x: Tensor, axes: Tensor, keep_dims: bool) -> Tensor:
    return x.mean(ints(axes), keep_dims) if axes.numel() else x


@operator("ReduceSum", "x axes", keep_dims=False)
def reduce_sum(x: Tensor, axes: Tensor, keep_dims: bool) -> Tensor:
    return x.sum(ints(axes), keep_dims)


@operator("SoftmaxV2", "x", {"half_to_float": False}, axes=(-1,))
def softmax(x: Tensor, axes: list[int]) -> Tensor:
    if len(axes) != 1:
        raise GraphError(f"softmax over axes {list(axes)}; the interpreter knows one axis")
    return x.softmax(axes[0])


@operator("TopKV2", "x k", {"sort_policy": 1}, sorted=True, dim=-1, largest=True)
def top_k(x: Tensor, k: Tensor, sorted: bool, dim: int, largest: bool) -> Results:
    values, indices = x.topk(int(k), dim, largest, sorted)
    return [values, indices.int()]


@operator("Sort", "x", axis=-1, descending=False, stable=False)
def sort(x: Tensor, axis: int, descending: bool, stable: bool) -> Results:
    """stable=False leaves the order of equal values open: here it is the one of eager PyTorch on
    this processor, by the very same call, as sums that follow depend on it."""
    if stable:
        values, indices = x.sort(dim=axis, descending=descending, stable=True)
    else:
        values, indices = x.sort(dim=axis, descending=descending)
    return [values, indices.int()]


# ---- index ---------------------------------------------------------------------------------------


@operator(
    "GatherV2",
    "x indices axis",
    {"batch_dims": 0, "is_preprocessed": False, "negative_index_support": False},
)
def gather(x: Tensor, indices: Tensor, axis: Tensor) -> Tensor:
    dim = int(axis) % x.dim()
    found = x.index_select(dim, indices.reshape(-1))
    return found.reshape((*x.shape[:dim], *indices.shape, *x.shape[dim + 1 :]))


@operator(
    "Gather",
    "x indices",
    {
        "validate_indices": True,
        "batch_dims": 0,
        "is_preprocessed": False,
        "negative_index_support": False,
    },
)
def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    return gather(x, indices, torch.tensor(0))


@operator("IndexByTensor", "x indices*", indices_mask=...)
def index_by_tensor(x: Tensor, indices: list[Tensor], indices_mask: list[int]) -> Tensor:
    """indices_mask: for each dimension of x from the first on, whether one of `indices` is for it
    (x[:, i] is 0 1)."""
    if sum(indices_mask) != len(indices) or not set(indices_mask) <= {0, 1}:
        raise GraphError(f"indices_mask {indices_mask} with {len(indices)} indices")
    rest = iter(indices)
    return x[tuple(next(rest) if used else slice(None) for used in indices_mask)]


@operator("GatherElements", "x index", dim=0)
def gather_elements(x: Tensor, index: Tensor, dim: int) -> Tensor:
    return x.gather(dim, index.long())


@operator("ScatterElements", "data indices updates", {"reduction": "none"}, axis=0)
def scatter_elements(data: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    same_type(data, updates)
    return data.scatter(axis, indices.long(), updates)

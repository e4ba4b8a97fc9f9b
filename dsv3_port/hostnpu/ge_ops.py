"""What each GE operator means, from its definition (Ascend IR, as quoted in torchair's converters), in PyTorch.

A function takes its inputs by the names of the definition and its attributes by theirs; both are checked: what the
table does not list raises. Attributes with a default may be missing in a graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PortError
from ..ops import reference
from . import launched

Results = list[Tensor]
Operator = Callable[[list[str], list[Tensor | None], dict[str, Any]], Results]
# ge::DataType, as in the attributes dst_type and dtype: numbered as aclDataType
GE_TYPES = launched.DTYPES | {10: torch.uint64}


class GraphError(PortError):
    """A graph that cannot be executed as it stands."""


OPERATORS: dict[str, Operator] = {}


def operator(name: str, inputs: str, only: dict[str, Any] | None = None, **attributes: Any) -> Callable[..., Any]:
    """Register a function as operator `name`.

    inputs: names in order, "?" behind an optional one, "*" behind a list (x0, x1, ...). attributes: name=default, `...`
    where there is none. only: attributes that may have just this value, and do not reach the function.
    """
    wanted, fixed = inputs.split(), only or {}

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(names: list[str], fed: list[Tensor | None], given: dict[str, Any]) -> Results:
            unknown = given.keys() - attributes.keys() - fixed.keys()
            if unknown:
                raise GraphError(f"attribute {min(unknown)} is not known to the interpreter")
            for key, value in fixed.items():
                if given.get(key, value) != value:
                    raise GraphError(f"attribute {key} is {given[key]!r}; the interpreter knows {value!r} only")
            values = attributes | {k: v for k, v in given.items() if k in attributes}
            missing = [k for k, v in values.items() if v is ...]
            if missing:
                raise GraphError(f"attribute {missing[0]} is missing")
            result = function(*_bind(wanted, names, fed), **values)
            return [result] if isinstance(result, Tensor) else list(result)

        OPERATORS[name] = call
        return function

    return register


def _bind(wanted: list[str], names: list[str], fed: list[Tensor | None]) -> list[Any]:
    if len(names) != len(fed):
        raise GraphError(f"{len(fed)} inputs, and {len(names)} descriptions of them")
    rest = dict(zip(names, fed, strict=True))
    bound: list[Any] = []
    for word in wanted:
        name = word.rstrip("?*")
        if word.endswith("*"):
            keys = [k for k in rest if k[: len(name)] == name and k[len(name) :].isdecimal()]
            bound.append([rest.pop(k) for k in keys])
            continue
        value = rest.pop(name, None)
        if value is None and not word.endswith("?"):
            raise GraphError(f"input {name} is not fed")
        bound.append(value)
    if rest:
        raise GraphError(f"input {min(rest)} is not known to the interpreter")
    return bound


def _ints(x: Tensor) -> list[int]:
    return [int(v) for v in x.reshape(-1).tolist()]


def _same_type(x1: Tensor, x2: Tensor) -> None:
    if x1.dtype != x2.dtype:
        raise GraphError(f"inputs of {x1.dtype} and {x2.dtype}; the operator takes two of one type")


def _binary(name: str, function: Callable[..., Tensor]) -> None:
    @operator(name, "x1 x2")
    def call(x1: Tensor, x2: Tensor) -> Tensor:
        _same_type(x1, x2)
        return function(x1, x2)


def _unary(name: str, function: Callable[..., Tensor]) -> None:
    operator(name, "x")(function)


_TWO: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "RealDiv": torch.div, "Equal": torch.eq,
    "GreaterEqual": torch.ge, "LessEqual": torch.le, "LogicalAnd": torch.logical_and}
_ONE: dict[str, Callable[..., Tensor]] = {
    "Cos": torch.cos, "Sin": torch.sin, "Neg": torch.neg, "Rsqrt": torch.rsqrt,
    "Sigmoid": torch.sigmoid, "ZerosLike": torch.zeros_like, "Identity": torch.clone}
for _name, _function in _TWO.items():
    _binary(_name, _function)
for _name, _function in _ONE.items():
    _unary(_name, _function)


@operator("Pow", "x1 x2")
def power(x1: Tensor, x2: Tensor) -> Tensor:
    """An exponent of one element is taken as a number: PyTorch squares by a product, as in eager."""
    _same_type(x1, x2)
    return x1.pow(x2.item()) if x2.numel() == 1 else x1.pow(x2)


@operator("Cast", "x", dst_type=...)
def cast(x: Tensor, dst_type: int) -> Tensor:
    if dst_type not in GE_TYPES:
        raise GraphError(f"dst_type {dst_type} is not known to the interpreter")
    return x.to(GE_TYPES[dst_type])


@operator("Swish", "x", {"scale": 1.0})
def swish(x: Tensor) -> Tensor:
    return F.silu(x)


@operator("ClipByValueV2", "x clip_value_min clip_value_max")
def clip(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return x.clamp(low, high)


@operator("SelectV2", "condition then else")
def select(condition: Tensor, then: Tensor, other: Tensor) -> Tensor:
    _same_type(then, other)
    return torch.where(condition, then, other)


@operator("MaskedFill", "x mask value")
def masked_fill(x: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    return x.masked_fill(mask, value)


# ---- shapes ---------------------------------------------------------------------------------------------------------

@operator("Shape", "x", dtype=3)
def shape(x: Tensor, dtype: int) -> Tensor:
    return torch.tensor(x.shape, dtype=GE_TYPES[dtype])


@operator("Reshape", "x shape", {"axis": 0, "num_axes": -1})
def reshape(x: Tensor, size: Tensor) -> Tensor:
    """0 in `shape` means: as in x, at this place; only where x has elements (then no length can be 0)."""
    sizes = _ints(size)
    if x.numel():
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Transpose", "x perm")
def transpose(x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(_ints(perm))


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
    return x.broadcast_to(_ints(size))


@operator("Pack", "x*", axis=0, N=...)
def pack(x: list[Tensor], axis: int, N: int) -> Tensor:
    return torch.stack(_listed(x, N), axis)


@operator("ConcatV2", "x* concat_dim", N=...)
def concat(x: list[Tensor], dim: Tensor, N: int) -> Tensor:
    return torch.cat(_listed(x, N), int(dim))


def _listed(x: list[Tensor], n: int) -> list[Tensor]:
    if len(x) != n:
        raise GraphError(f"N is {n}, and the operator has {len(x)} inputs in its list")
    return x


@operator("SplitV", "x size_splits split_dim", num_split=...)
def split(x: Tensor, sizes: Tensor, dim: Tensor, num_split: int) -> Results:
    lengths = _ints(sizes)
    if len(lengths) != num_split:
        raise GraphError(f"num_split is {num_split}, and size_splits has {len(lengths)} lengths")
    if lengths.count(-1) == 1:  # what the other parts leave
        lengths[lengths.index(-1)] = x.shape[int(dim)] - sum(n for n in lengths if n != -1)
    return list(x.split(lengths, int(dim)))


@operator("StridedSliceV2", "x begin end axes? strides?", {"begin_mask": 0, "end_mask": 0, "ellipsis_mask": 0,
                                                           "new_axis_mask": 0, "shrink_axis_mask": 0})
def strided_slice(x: Tensor, begin: Tensor, end: Tensor, axes: Tensor | None, strides: Tensor | None) -> Tensor:
    first, stop = _ints(begin), _ints(end)
    where = range(len(first)) if axes is None else _ints(axes)
    every = [1] * len(first) if strides is None else _ints(strides)
    index = [slice(None)] * x.dim()
    for axis, *bounds in zip(where, first, stop, every, strict=True):
        index[axis] = slice(*bounds)
    return x[tuple(index)]


# ---- constants ------------------------------------------------------------------------------------------------------

@operator("Fill", "dims value")
def fill(dims: Tensor, value: Tensor) -> Tensor:
    return torch.full(_ints(dims), value.item(), dtype=value.dtype)


@operator("Range", "start limit delta")
def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """torchair leaves constants of several integer types together: the widest is the result's."""
    dtype = torch.promote_types(torch.promote_types(start.dtype, limit.dtype), delta.dtype)
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=dtype)


# ---- reductions, order, index ---------------------------------------------------------------------------------------

@operator("ReduceMean", "x axes", {"noop_with_empty_axes": True}, keep_dims=False)
def reduce_mean(x: Tensor, axes: Tensor, keep_dims: bool) -> Tensor:
    return x.mean(_ints(axes), keep_dims) if axes.numel() else x


@operator("ReduceSum", "x axes", keep_dims=False)
def reduce_sum(x: Tensor, axes: Tensor, keep_dims: bool) -> Tensor:
    return x.sum(_ints(axes), keep_dims)


@operator("SoftmaxV2", "x", {"half_to_float": False}, axes=(-1,))
def softmax(x: Tensor, axes: list[int]) -> Tensor:
    if len(axes) != 1:
        raise GraphError(f"softmax over axes {list(axes)}; the interpreter knows one axis")
    return x.softmax(axes[0])


@operator("TopKV2", "x k", {"sort_policy": 1}, sorted=True, dim=-1, largest=True)
def top_k(x: Tensor, k: Tensor, sorted: bool, dim: int, largest: bool) -> Results:
    values, indices = x.topk(int(k), dim, largest, sorted)
    return [values, indices.int()]


@operator("GatherV2", "x indices axis", {"batch_dims": 0, "is_preprocessed": False, "negative_index_support": False})
def gather(x: Tensor, indices: Tensor, axis: Tensor) -> Tensor:
    dim = int(axis) % x.dim()
    found = x.index_select(dim, indices.reshape(-1))
    return found.reshape(*x.shape[:dim], *indices.shape, *x.shape[dim + 1 :])


@operator("GatherElements", "x index", dim=0)
def gather_elements(x: Tensor, index: Tensor, dim: int) -> Tensor:
    return x.gather(dim, index.long())


@operator("ScatterElements", "data indices updates", {"reduction": "none"}, axis=0)
def scatter_elements(data: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    _same_type(data, updates)
    return data.scatter(axis, indices.long(), updates)


@operator("Scatter", "var indices updates", {"reduce": "update"}, axis=0)
def scatter(var: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """Output `var` is input `var`: the cache is written in place."""
    _same_type(var, updates)
    return reference.scatter_update_(var, indices, updates, axis)


# ---- matmuls --------------------------------------------------------------------------------------------------------

@operator("MatMul", "x1 x2 bias?", transpose_x1=False, transpose_x2=False)
def matmul(x1: Tensor, x2: Tensor, bias: Tensor | None, transpose_x1: bool, transpose_x2: bool) -> Tensor:
    y = batch_matmul(x1, x2, transpose_x1, transpose_x2)
    return y if bias is None else y + bias


@operator("BatchMatMul", "x1 x2", adj_x1=False, adj_x2=False)
def batch_matmul(x1: Tensor, x2: Tensor, adj_x1: bool, adj_x2: bool) -> Tensor:
    _same_type(x1, x2)
    return (x1.mT if adj_x1 else x1) @ (x2.mT if adj_x2 else x2)


@operator("GroupedMatmul", "x* weight* bias* scale* offset* antiquant_scale* antiquant_offset* group_list? "
          "per_token_scale?", {"dtype": -1, "transpose_x": False, "act_type": 0, "tuning_config": [0]},
          split_item=0, transpose_weight=False, group_type=-1, group_list_type=0)
def grouped_matmul(x: list[Tensor], weight: list[Tensor], *other: Any, split_item: int, transpose_weight: bool,
                   group_type: int, group_list_type: int) -> Results:
    """A list input that is not used arrives as one empty tensor."""
    *lists, group_list, per_token_scale = other
    if per_token_scale is not None or any(t.numel() for values in lists for t in values):
        raise GraphError("bias, scales and offsets are not known to the interpreter")
    weights = [w.mT for w in weight] if transpose_weight else weight
    return reference.npu_grouped_matmul(x, weights, group_list=group_list, split_item=split_item,
                                        group_type=group_type, group_list_type=group_list_type)


# ---- the NPU's own operators ----------------------------------------------------------------------------------------

@operator("RmsNorm", "x gamma", epsilon=1e-6)
def rms_norm(x: Tensor, gamma: Tensor, epsilon: float) -> Results:
    return list(reference.npu_rms_norm(x, gamma, epsilon))


@operator("AddRmsNorm", "x1 x2 gamma", epsilon=1e-6)
def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float) -> Results:
    _same_type(x1, x2)
    return list(reference.npu_add_rms_norm(x1, x2, gamma, epsilon))


@operator("SwiGlu", "x", dim=-1)
def swiglu(x: Tensor, dim: int) -> Tensor:
    return reference.npu_swiglu(x, dim)


@operator("RotaryMul", "x r1 r2")
def rotary_mul(x: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    return reference.npu_rotary_mul(x, r1, r2)


@operator("MoeInitRouting", "x row_idx expert_idx", active_num=...)
def moe_init_routing(x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int) -> Results:
    return list(reference.npu_moe_init_routing(x, row_idx, expert_idx, active_num))


@operator("MoeComputeExpertTokens", "sorted_experts", num_experts=...)
def moe_compute_expert_tokens(sorted_experts: Tensor, num_experts: int) -> Tensor:
    return reference.npu_moe_compute_expert_tokens(sorted_experts, num_experts)


@operator("MoeFinalizeRoutingV2", "expanded_x expanded_row_idx x1? x2? bias? scales? expert_idx?", drop_pad_mode=0, k=1)
def moe_finalize_routing(rows: Tensor, row_idx: Tensor, x1: Tensor | None, x2: Tensor | None, bias: Tensor | None,
                         scales: Tensor | None, expert_idx: Tensor | None, drop_pad_mode: int, k: int) -> Tensor:
    return reference.npu_moe_finalize_routing(rows, x1, x2, bias, scales, row_idx, expert_idx, drop_pad_mode, k)


def flops(kind: str, attributes: dict[str, Any], fed: list[Tensor | None], results: list[Tensor]) -> int:
    """Two for each product of a matmul; other operators count as 0, their cost is memory."""
    if kind not in ("MatMul", "BatchMatMul", "GroupedMatmul") or fed[0] is None:
        return 0
    turned = attributes.get("transpose_x1") or attributes.get("adj_x1")
    return 2 * math.prod(results[0].shape) * fed[0].shape[-2 if turned else -1]

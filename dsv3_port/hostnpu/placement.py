"""Which devices the tensors of one call may be on: PyTorch's rules, which a real npu has too.

A tensor that was left on the CPU, or on another card, is an error on hardware; memory that both
could reach makes it easy to miss here. Exceptions, as PyTorch has them: 0-dim CPU tensors in
pointwise operators, index tensors of advanced indexing, copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Check = Callable[[Sequence[Any], dict[str, Any]], None]

# copies between devices, and operators that read only shapes of their other arguments
ANYWHERE = frozenset(
    """
copy_ copy _copy_from _foreach_copy_ _foreach_copy set_ set is_set_to is_same_size expand_as view_as
copy_sparse_to_sparse_ _has_same_storage_numel slice_scatter select_scatter diagonal_scatter as_strided_scatter
""".split()
)
# one number may lie in a 0-dim CPU tensor, though the operator has no tag "pointwise"
WITH_NUMBERS = frozenset(
    """
copysign eq ne ge gt le lt heaviside rsub floor_divide true_divide special_xlogy mse_loss smooth_l1_loss arctan2
__and__ __or__ __xor__ __iand__ __ior__ __ixor__ __lshift__ __rshift__ __ilshift__ __irshift__ index_fill masked_fill
fill bernoulli fake_quantize_per_tensor_affine _fused_adam _fused_adamw _fused_sgd _fused_adagrad
""".split()
)
INDEXING = frozenset("index index_put _index_put_impl _unsafe_index _unsafe_index_put".split())


def check_of(op: Any, kinds: Sequence[str]) -> Check | None:
    """The check for one operator overload; None where there is nothing to compare. kinds: the types of
    its arguments, as PyTorch writes them."""
    schema = op._schema
    name = schema.name.split("::")[1]
    base = name if name.endswith("__") else name.removesuffix("_")
    tensors = sum("Tensor" in kind for kind in kinds)
    single = tensors < 2 and not any("List" in kind for kind in kinds)
    if single or name in ANYWHERE:
        return None
    if base in INDEXING:
        return lambda args, kwargs: _indexed(op, args, kwargs)
    if name == "_pack_padded_sequence":
        return lambda args, kwargs: _lengths(args)
    if name.startswith("_foreach_"):
        return lambda args, kwargs: _each(op, args, kwargs)
    numbers = schema.name.startswith("aten::") and (
        base in WITH_NUMBERS or torch.Tag.pointwise in op.tags
    )
    return lambda args, kwargs: _same(op, args, kwargs, numbers)


def _same(op: Any, args: Sequence[Any], kwargs: dict[str, Any], numbers: bool) -> None:
    """All on one device. numbers: but for 0-dim CPU tensors that are not written."""
    first = None
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            if first is None:
                first = value.device
            elif value.device != first:
                return _decide(op, args, kwargs, numbers)
        elif isinstance(value, (list, tuple)):
            for tensor in _tensors(value):
                first = first or tensor.device
                if tensor.device != first:
                    return _decide(op, args, kwargs, numbers)
    return None


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [v for v in values if isinstance(v, Tensor)]


def _named(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Tensor]]:
    """(argument of the schema, tensor), lists one by one."""
    arguments = {a.name: a for a in op._schema.arguments}
    given = {**dict(zip(arguments, args, strict=False)), **kwargs}
    for name, value in given.items():
        for tensor in _tensors(value if isinstance(value, (list, tuple)) else (value,)):
            yield arguments[name], tensor


def _decide(op: Any, args: Sequence[Any], kwargs: dict[str, Any], numbers: bool) -> None:
    """Two devices were seen: an error, unless all that is elsewhere are numbers."""
    found = list(_named(op, args, kwargs))
    main = next(t.device for _, t in found if t.device.type == "npu")
    for argument, tensor in found:
        written = argument.alias_info is not None and argument.alias_info.is_write
        number = tensor.dim() == 0 and tensor.device.type == "cpu" and not written
        if tensor.device != main and not (numbers and number):
            raise mismatch(op, main, argument.name, tensor.device)


def mismatch(op: Any, main: torch.device, argument: str, other: torch.device) -> RuntimeError:
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {main} and {other}! "
        f"(argument {argument} of {op._schema.name})"
    )


def _indexed(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """self[indices] = values: indices on self's device or on the CPU; values on self's device, or
    one 0-dim number."""
    given = {**dict(zip((a.name for a in op._schema.arguments), args, strict=False)), **kwargs}
    main = given["self"].device
    for index in given["indices"]:
        if index is not None and index.device != main and index.device.type != "cpu":
            raise RuntimeError(
                f"indices should be either on cpu or on the same device as the indexed tensor ({main})"
            )
    for name in ("values", "out"):
        tensor = given.get(name)
        if tensor is not None and tensor.device != main and (tensor.dim() or name == "out"):
            raise mismatch(op, main, name, tensor.device)


def _lengths(args: Sequence[Any]) -> None:
    if args[1].device.type != "cpu":  # in torch_npu's words
        raise RuntimeError(
            f"'lengths' argument should be a CPU tensor, but got {args[1].device} tensor"
        )


def _each(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """The n-th tensors of all lists together; a single tensor beside them is a number, or a list of
    numbers on the CPU."""
    lists = [v for v in (*args, *kwargs.values()) if isinstance(v, (list, tuple))]
    lists = [v for v in lists if v and isinstance(v[0], Tensor)]
    for row in zip(*lists, strict=False):
        if any(t.device != row[0].device for t in row[1:]):
            main = next((t.device for t in row if t.device.type == "npu"), row[0].device)
            for tensor in row:
                if tensor.device != main and (tensor.dim() or tensor is row[0]):
                    raise mismatch(op, main, "of a list", tensor.device)

"""What the CPU's operators cannot do and the device can: numbers in a tensor's place, out= of another
size, 16-bit types. Each is tried after PyTorch has refused, so that the usual call pays nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

SIXTEEN = (torch.float16, torch.bfloat16)
NO_SIXTEEN = (
    "not implemented for 'Half'",
    "not implemented for 'BFloat16'",
    "not support Half",
    "CPU Half",
    "expected scalar type Float but found Half",
    "expected scalar type Float but found BFloat16",
    "Unsupported datatype for add_relu",
    "Low precision dtypes not supported",
)
NO_CPU = "from the 'CPU' backend"
NO_RESIZE = "resize storage that is not resizable"


class DimensionError(IndexError, RuntimeError):
    """A dimension or index out of range: PyTorch raises IndexError, torch_npu RuntimeError; whoever
    catches one of the two catches this."""


Written = list[tuple[int, str]]  # position and name of the arguments that an operator writes


def run(fn: Callable[..., Any], op: Any, written: Written, args: list[Any], kwargs: Any) -> Any:
    """fn(*args, **kwargs) on the host. Where it has to write elsewhere than into a written argument,
    that argument is replaced in args or kwargs."""
    try:
        return fn(*args, **kwargs)
    except IndexError as error:
        raise DimensionError(str(error)) from None
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        if fn is op and numbers(op, args):
            return run(for_numbers(op, args), op, written, args, kwargs)
        if NO_RESIZE in text:
            _fresh_outputs(written, args, kwargs)
            return run(fn, op, [], args, kwargs)
        if NO_CPU in text:
            why = (
                "the host stand-in has no kernel for this operator, as PyTorch has none for the CPU"
            )
            raise NotImplementedError(f"{op._schema.name}: {why}; the real NPU may") from None
        if any(sign in text for sign in NO_SIXTEEN):
            sixteen = _sixteen(args, kwargs)
            if sixteen is not None:
                return _in_float32(fn, op, sixteen, written, args, kwargs)
        raise


def _sixteen(args: Any, kwargs: Any) -> torch.dtype | None:
    """The first 16-bit type of the arguments."""
    given = (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
    return next((t.dtype for t in given if t.dtype in SIXTEEN), None)


def wide(op: Any, dtypes: tuple[torch.dtype, ...] = SIXTEEN) -> Callable[..., Any]:
    """op computed in float32 for these types, cast once: for operators whose CPU kernel rounds to
    16 bits in between, which the device's does not."""
    written = [
        (i, a.name)
        for i, a in enumerate(op._schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ]

    def call(*args: Any, **kwargs: Any) -> Any:
        sixteen = _sixteen(args, kwargs)
        if sixteen not in dtypes:
            return op(*args, **kwargs)
        assert sixteen is not None
        return _in_float32(op, op, sixteen, written, list(args), kwargs)

    call.__name__ = op._schema.name
    return call


class Call:
    """`run` of one operator, as a captured graph keeps it."""

    def __init__(self, fn: Callable[..., Any], op: Any, written: Written) -> None:
        self.fn, self.op, self.written = fn, op, written
        name = op._schema.name
        self.__name__ = name if fn is op else str(getattr(fn, "__name__", name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return run(self.fn, self.op, self.written, list(args), kwargs)


def _places(written: Written, args: list[Any], kwargs: Any) -> list[tuple[Any, Any]]:
    """(container, key) of each written argument that was given."""
    places: list[tuple[Any, Any]] = []
    for i, name in written:
        if i < len(args):
            places.append((args, i))
        elif name in kwargs:
            places.append((kwargs, name))
    return places


def _fresh_outputs(written: Written, args: list[Any], kwargs: Any) -> None:
    for where, key in _places(written, args, kwargs):
        if isinstance(where[key], Tensor):
            where[key] = torch.empty(0, dtype=where[key].dtype)


def _in_float32(
    fn: Callable[..., Any], op: Any, sixteen: torch.dtype, written: Written, args: Any, kwargs: Any
) -> Any:
    """Computed in float32 and cast once, to the dtypes that the operator's shape function names."""
    widened: dict[int, Tensor] = {}

    def widen(t: Tensor) -> Tensor:
        if t.dtype not in SIXTEEN:
            return t
        return widened.setdefault(id(t), t.float())

    wide_args, wide_kwargs = tree_map_only(Tensor, widen, (list(args), dict(kwargs)))
    result = fn(*wide_args, **wide_kwargs)
    back: dict[int, Tensor] = {}
    for where, key in _places(written, args, kwargs):
        if isinstance(where[key], (list, tuple)):  # of a foreach operator
            for target in where[key]:
                target.copy_(widened.get(id(target), target))
            continue
        source = widened.get(id(where[key]), where[key])
        if source is not where[key]:
            if source.shape == where[key].shape:
                where[key].copy_(source)
            else:
                where[key] = source.to(where[key].dtype)
        back[id(source)] = where[key]
    dtypes = iter(_dtypes(op, sixteen, args, kwargs))

    def narrow(t: Tensor) -> Tensor:
        dtype = next(dtypes, sixteen if t.dtype == torch.float32 else t.dtype)
        return back[id(t)] if id(t) in back else t.to(dtype)

    return tree_map_only(Tensor, narrow, result)


def _dtypes(op: Any, sixteen: torch.dtype, args: Any, kwargs: Any) -> list[torch.dtype]:
    meta = tree_map_only(Tensor, lambda t: torch.empty_like(t, device="meta"), (args, kwargs))
    try:
        result = op(*meta[0], **meta[1])
    except (RuntimeError, NotImplementedError):  # no shape function: the dtype of the inputs
        return []
    return [t.dtype for t in tree_leaves(result) if isinstance(t, Tensor)]


def numbers(op: Any, args: list[Any]) -> bool:
    """Whether a number stands where the schema has a tensor (PyTorch hands wrapped numbers to a
    Python kernel that way)."""
    return any(
        isinstance(value, (int, float, complex)) and str(argument.type) == "Tensor"
        for value, argument in zip(args, op._schema.arguments, strict=False)
    )


def for_numbers(op: Any, args: list[Any]) -> Callable[..., Any]:
    """The operator's overload that takes these numbers as numbers, with their type promotion."""
    places = tuple(
        i
        for i, (value, argument) in enumerate(zip(args, op._schema.arguments, strict=False))
        if isinstance(value, (int, float, complex)) and str(argument.type) == "Tensor"
    )
    return _overload(op, places) or functools.partial(_as_tensors, op, places)


@functools.cache
def _overload(op: Any, places: tuple[int, ...]) -> Any:
    wanted = [(a.name, str(a.type)) for a in op._schema.arguments]
    for name in op._overloadpacket.overloads():
        other = getattr(op._overloadpacket, name)
        found = [(a.name, str(a.type)) for a in other._schema.arguments]
        if len(found) == len(wanted) and all(
            mine[1] == "number" if i in places else mine[1] == theirs[1]
            for i, (mine, theirs) in enumerate(zip(found, wanted, strict=True))
        ):
            return other
    return None


def _as_tensors(op: Any, places: tuple[int, ...], *args: Any, **kwargs: Any) -> Any:
    """As 0-dim tensors, which take part in type promotion as a number of their kind does."""
    given = [torch.scalar_tensor(v) if i in places else v for i, v in enumerate(args)]
    for i in places:
        if isinstance(args[i], int):
            given[i] = torch.tensor(args[i])
    return op(*given, **kwargs)

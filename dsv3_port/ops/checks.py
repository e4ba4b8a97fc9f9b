"""What the argument checks of all operators share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INDICES = (torch.int32, torch.int64)


class ContractError(RuntimeError, ValueError, TypeError):
    """A wrong argument of an NPU operator. torch_npu raises RuntimeError for all of them, Python
    says ValueError or TypeError: whoever catches one of the three catches this."""


def bad(operator: str, argument: str, got: Any, wants: str) -> ContractError:
    """The exception to raise: operator, argument, what it is, what the operator's document wants."""
    if isinstance(got, Tensor):
        got = f"{str(got.dtype).removeprefix('torch.')} {list(got.shape)}"
    elif isinstance(got, (torch.dtype, torch.Size)):
        got = str(list(got)) if isinstance(got, torch.Size) else str(got).removeprefix("torch.")
    return ContractError(f"{operator}: {argument} is {got}; it must be {wants}")


# None: no device's rules; else the version of CANN that the device is said to have
_device_rules: ContextVar[tuple[int, ...] | None] = ContextVar("device_rules", default=None)


@contextmanager
def device_rules(cann: tuple[int, ...] = ()) -> Iterator[None]:
    """Within it, checks hold CPU tensors to what an NPU takes: the host NPU's kernels see its memory
    so. cann: its version, empty where none is known."""
    token = _device_rules.set(cann)
    try:
        yield
    finally:
        _device_rules.reset(token)


def for_device(x: Tensor) -> bool:
    """Whether x is an NPU's: float64 and forms that only the meaning has are then refused."""
    if x.device.type == "npu":
        return True
    return not torch.compiler.is_compiling() and _device_rules.get() is not None


def cann_version() -> tuple[int, ...]:
    """Of the device whose rules hold; empty where none is known."""
    return () if torch.compiler.is_compiling() else _device_rules.get() or ()


def readable(*tensors: Tensor) -> bool:
    """Whether looking at the values costs no more than a few microseconds: ordinary CPU tensors
    outside a compiler."""
    return not torch.compiler.is_compiling() and all(
        type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" for t in tensors
    )


def floating(operator: str, argument: str, x: Tensor) -> None:
    """float16, bfloat16 or float32; float64 passes off the NPU, where tests measure with it."""
    if x.dtype not in FLOATS and (x.dtype != torch.float64 or for_device(x)):
        raise bad(operator, argument, x.dtype, "float16, bfloat16 or float32")


def same_dtype(operator: str, argument: str, x: Tensor, other: str, y: Tensor) -> None:
    if x.dtype != y.dtype:
        wanted = f"{str(y.dtype).removeprefix('torch.')}, the dtype of {other}"
        raise bad(operator, argument, x.dtype, wanted)


def dtype_of(operator: str, argument: str, x: Tensor, *wanted: torch.dtype) -> None:
    if x.dtype not in wanted:
        raise bad(
            operator, argument, x.dtype, " or ".join(str(d).removeprefix("torch.") for d in wanted)
        )


def shape_of(operator: str, argument: str, x: Tensor, *wanted: int, names: str = "") -> None:
    if x.shape != torch.Size(wanted):
        raise bad(operator, argument, x.shape, f"{list(wanted)}{f' = {names}' if names else ''}")


def one_of(operator: str, argument: str, value: Any, *wanted: Any) -> None:
    if value not in wanted:
        raise bad(operator, argument, repr(value), " or ".join(repr(w) for w in wanted))


SMALL = 1024  # entries that a Python list handles faster than a few tensor operators


def ascending(values: Tensor) -> bool:
    """Whether a 1-D CPU tensor never decreases."""
    if values.numel() <= SMALL:
        numbers = values.tolist()
        return numbers == sorted(numbers)
    return not bool((values[1:] < values[:-1]).any())


def bounds(values: Tensor) -> tuple[int, int]:
    """(smallest, largest) of a non-empty 1-D CPU tensor."""
    if values.numel() <= SMALL:
        numbers = values.tolist()
        return min(numbers), max(numbers)
    low, high = torch.aminmax(values)
    return int(low), int(high)


class CardLimit(UserWarning):
    """A size that is computed here and that a card refuses."""


def limit(operator: str, argument: str, got: str, fits: bool, wants: str) -> None:
    """Warn where the operator's document lists sizes and this is another one: a small model has none
    of them, and is computed all the same."""
    if not fits and not torch.compiler.is_compiling():
        error = bad(operator, argument, got, f"{wants} on a card; it is computed here all the same")
        warnings.warn(str(error), CardLimit, stacklevel=2)

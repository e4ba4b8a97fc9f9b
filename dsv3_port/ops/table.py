"""The table of NPU operators and the decorator that fills it.

Beside each operator stand its check and its meaning, under torch_npu's name, argument order and
defaults. `@operator(check)` makes of them the function that the model calls: it checks, then calls
torch_npu for tensors on an NPU and the meaning for all others. torch_npu is imported here and
nowhere else, on first use.

Meanings are torch_npu 2.13's; so is every rounding its documents state (operator documents of
Ascend/op-plugin, CPU goldens of CANN's ops-nn and ops-transformer). "One cast" in a docstring: all
arithmetic in float32, rounded to the operator's dtype once, at the end. float64 tensors, which no
NPU takes, stay float64 so that tests can measure against them. Contents that the documents leave
undefined are NaN, so that nobody relies on them.

A check has the operator's arguments and makes what torch_npu's shape functions do not: ValueError
or TypeError says which argument is wrong, what it is and what the operator's document wants. Only
shapes and dtypes are read, never a tensor on an accelerator and never anything while compiling;
contents are looked at where that is cheap (`checks.readable`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, cast

from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
_torch_npu: ModuleType | None = None


@dataclass(frozen=True)
class Operator:
    """One operator in its forms, all with the same arguments."""

    meaning: Callable[..., Any]  # in plain PyTorch
    check: Callable[..., None]  # of the arguments
    checked: Callable[..., Any]  # check, then meaning: what the host NPU runs
    call: Callable[..., Any]  # check, then the device's operator or the meaning


OPERATORS: dict[str, Operator] = {}


def on_npu(first: Any) -> bool:
    """Whether an operator's first argument, a tensor or a list of them, is on an NPU."""
    tensor: Tensor = first[0] if isinstance(first, (list, tuple)) else first
    return tensor.device.type == "npu"


def torch_npu() -> ModuleType:
    """The torch_npu module, imported when first needed; a module global, so that a compiled graph
    sees an attribute."""
    global _torch_npu
    if _torch_npu is None:
        import torch_npu as module

        _torch_npu = module
    return _torch_npu


def operator(
    check: Callable[..., None], library: Callable[[], ModuleType] = torch_npu
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the decorated meaning behind `check`; `library()` has the device's operator of that
    name. The first argument becomes positional, as in torch_npu."""

    def register(meaning: Callable[P, R]) -> Callable[P, R]:
        name = meaning.__name__

        @wraps(meaning)
        def checked(*args: Any, **kwargs: Any) -> Any:
            check(*args, **kwargs)
            return meaning(*args, **kwargs)

        @wraps(meaning)
        def call(first: Any, /, *args: Any, **kwargs: Any) -> Any:
            check(first, *args, **kwargs)
            if on_npu(first):
                return getattr(library(), name)(first, *args, **kwargs)
            return meaning(first, *args, **kwargs)

        OPERATORS[name] = Operator(meaning, check, checked, call)
        return cast(Callable[P, R], call)

    return register

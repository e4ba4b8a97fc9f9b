"""Operator overloads that the dispatcher knows, and putting kernels behind them for device npu.

All by full name ("aten::add.Tensor"): PyTorch makes the Python object of an overload when somebody
first asks for it, and of the thousands that there are a process calls a few.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

_libraries: dict[str, torch.library.Library] = {}


def full_name(schema: Any) -> str:
    return schema.name + ("." + schema.overload_name if schema.overload_name else "")


def names(namespace: str, key: str = "") -> set[str]:
    """Every operator overload of a namespace that the dispatcher knows; key: that has a kernel of its
    own for this dispatch key."""
    found = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {name for name in found if name.startswith(namespace + "::")}


def schema_of(name: str) -> Any:
    """None where there is none: a library may register kernels of operators that nobody defines."""
    packet, _, overload = name.partition(".")
    try:
        return torch._C._get_schema(packet, overload)
    except RuntimeError:
        return None


def overload_of(name: str) -> Any:
    """The torch.ops object: OpOverload."""
    packet, _, overload = name.partition(".")
    namespace, _, operator = packet.partition("::")
    return getattr(getattr(getattr(torch.ops, namespace), operator), overload or "default")


def register(kernels: Iterable[tuple[str, Callable[..., Any]]]) -> None:
    """Put kernels in the place of torch_npu's, without PyTorch's warning about that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, kernel in kernels:
            namespace = name.partition("::")[0]
            if namespace not in _libraries:
                _libraries[namespace] = torch.library.Library(namespace, "IMPL")
            _libraries[namespace].impl(name, kernel, "PrivateUse1")

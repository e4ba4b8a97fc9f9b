"""Operator overloads that the dispatcher knows, and putting kernels behind them for device npu."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

_libraries: dict[str, torch.library.Library] = {}


def full_name(schema: Any) -> str:
    return schema.name + ("." + schema.overload_name if schema.overload_name else "")


@functools.cache
def _schemas() -> list[Any]:
    """Of aten and npu, asked for after torch_npu's import; the list is long, and made anew each time."""
    schemas = torch._C._jit_get_all_schemas()
    return [s for s in schemas if s.name.startswith(("aten::", "npu::"))]


def overloads(namespace: str) -> Iterator[Any]:
    """Every operator overload of a namespace that the dispatcher knows (TorchScript has more)."""
    for schema in _schemas():
        if schema.name.startswith(namespace + "::") and torch._C._dispatch_has_kernel(
            full_name(schema)
        ):
            packet = getattr(getattr(torch.ops, namespace), schema.name.split("::")[1])
            yield getattr(packet, schema.overload_name or "default")


def has_kernel(op: Any, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(full_name(op._schema), key)


def register(op: Any, kernel: Callable[..., Any]) -> None:
    """Put a kernel in the place of torch_npu's, without PyTorch's warning about that."""
    namespace = op._schema.name.split("::")[0]
    if namespace not in _libraries:
        _libraries[namespace] = torch.library.Library(namespace, "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _libraries[namespace].impl(full_name(op._schema), kernel, "PrivateUse1")

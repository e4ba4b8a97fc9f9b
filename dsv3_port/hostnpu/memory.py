"""npu tensors and CPU tensors on the same memory: what kernels work on, and where results go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def at_address(
    address: int, nbytes: int, dtype: torch.dtype, shape: Any, stride: Any, offset: int = 0
) -> Tensor:
    """A CPU tensor on existing memory, which it does not own."""
    storage = torch._C._construct_storage_from_data_pointer(address, torch.device("cpu"), nbytes)
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


def plain(x: Tensor) -> Tensor:
    """The memory of an npu tensor as a CPU tensor, whatever its conj and neg bits are."""
    storage = x.untyped_storage()
    return at_address(
        storage.data_ptr(), storage.nbytes(), x.dtype, x.size(), x.stride(), int(x.storage_offset())
    )


def alias(x: Tensor) -> Tensor:
    """The memory of an npu tensor as a CPU tensor, conjugated or negated where x is so by its bit."""
    host = plain(x)
    if x.is_neg():
        host = torch._neg_view(host)
    return host.conj() if x.is_conj() else host


def to_host(value: Any) -> Any:
    """An argument as the CPU operator wants it; lists are walked through."""
    if isinstance(value, Tensor):
        return alias(value) if value.device.type == "npu" else _really_host(value)
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "npu" else value
    return type(value)(to_host(v) for v in value) if isinstance(value, (list, tuple)) else value


def _really_host(x: Tensor) -> Tensor:
    """x, unless it only says that it is no npu tensor: PyTorch would send it back to the npu kernel,
    without end."""
    if torch._C._dispatch_keys(x).has(torch._C.DispatchKey.PrivateUse1):
        raise RuntimeError(
            f"a tensor says that it is on {x.device} and is dispatched to npu: torchair makes such tensors "
            "of the float arguments of a graph captured with dynamic=True; pass tensors, or use dynamic=False"
        )
    return x


def like(x: Tensor, device: str | torch.device) -> Tensor:
    """A new tensor with the shape, strides and dtype of x."""
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=device)

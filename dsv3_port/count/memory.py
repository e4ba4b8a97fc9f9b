"""Bytes held at one time, counted instead of asked from an allocator where there is none to ask."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Ledger(TorchDispatchMode):
    """Bytes of the storages that operators made and that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.level = self.peak = 0
        self.alive: set[int] = set()

    def _release(self, key: int, nbytes: int) -> None:
        self.alive.discard(key)
        self.level -= nbytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {
            _storage_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if (
                not isinstance(tensor, torch.Tensor)
                or (key := _storage_key(tensor)) in known
                or key in self.alive
            ):
                continue
            storage = tensor.untyped_storage()
            nbytes = storage.nbytes()
            self.alive.add(key)
            self.level += nbytes
            self.peak = max(self.peak, self.level)
            weakref.finalize(storage, self._release, key, nbytes)
        return result


def _storage_key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def peak_memory(fn: Callable[[], object], device: str = "cpu") -> int:
    """Bytes that `fn` holds at most at one time beyond what was there before it.

    On an accelerator it is the allocator's own count. The CPU allocator keeps none: there it is the
    sum of the tensors alive between operators, so that what one operator needs inside itself, or a
    compiled graph, is not seen.
    """
    kind = str(device).split(":")[0]
    with torch.no_grad():
        if kind not in ("cuda", "npu"):
            with _Ledger() as ledger:
                fn()
            return int(ledger.peak)
        memory = torch.get_device_module(kind)
        memory.synchronize()
        memory.reset_peak_memory_stats()
        before = memory.memory_allocated()
        fn()
        memory.synchronize()
        return int(memory.max_memory_allocated() - before)

"""Counting instead of timing: operators launched and bytes held. True on any device, also where
times mean nothing."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# no kernel behind them: allocation and aliases that are not declared as views
_FREE = {
    "aten._unsafe_view",
    "aten._reshape_alias",
    "aten.detach",
    "aten.alias",
    "aten.lift_fresh",
    "aten.empty",
    "aten.empty_like",
    "aten.empty_strided",
    "aten.new_empty",
    "aten.new_empty_strided",
    "aten.resize_",
    "aten.sym_size",
    "aten.sym_stride",
    "aten.sym_numel",
    "aten.sym_storage_offset",
}


def op_name(func: Any) -> str:
    """`aten.add` for any overload of it."""
    return str(func.name().split(".")[0].replace("::", "."))


def is_launch(func: Any) -> bool:
    """Whether a kernel stands behind a dispatched operator."""
    return not func.is_view and op_name(func) not in _FREE


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.inside = 0  # > 0 within an operator that is counted as one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        # inference mode passes compound operators through whole: take them apart as autograd would
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        name = op_name(func)
        if is_launch(func):
            self.counts[name] += 1
        return func(*args, **kwargs)


@contextlib.contextmanager
def _npu_operators(counter: _Counter) -> Iterator[None]:
    """Within it each operator of `ops` that torch_npu has as one counts as that one operator."""
    from .. import ops
    from ..ops.cpu import plain_products

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not counter.inside:
                counter.counts[name] += 1
            counter.inside += 1
            try:
                return function(*args, **kwargs)
            finally:
                counter.inside -= 1

        return call

    names = [
        n for n, f in vars(ops).items() if n.startswith(("npu_", "scatter_update")) and callable(f)
    ]
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(ops, name, counted(name, getattr(ops, name))))
        stack.enter_context(
            plain_products()
        )  # what a CPU does faster in another way is no part of the model
        yield


def count_ops(fn: Callable[[], object], *, as_npu: bool = True) -> dict[str, int]:
    """Operators that `fn` dispatches, most frequent first; pure views and allocations are left out.

    On an accelerator each of them is a kernel launch, give or take. With `as_npu` an operator of
    `ops` that torch_npu has as one (npu_rms_norm, ...) counts as one, although its meaning on a CPU
    consists of several. `aten._local_scalar_dense` is a wait of the host for the device;
    a CPU tensor's tolist() waits unseen.
    """
    counter = _Counter()
    with contextlib.ExitStack() as stack, torch.no_grad():
        if as_npu:
            stack.enter_context(_npu_operators(counter))
        with counter:
            fn()
    return dict(counter.counts.most_common())


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

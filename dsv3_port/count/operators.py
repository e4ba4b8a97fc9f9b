"""Counting instead of timing: operators launched. True on any device, also where times mean nothing."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .. import ops
from ..ops.cpu import plain_products

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


@contextlib.contextmanager
def each_operator(
    wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]], *more: str
) -> Iterator[None]:
    """Within it wrap(name, operator) stands for every operator of `ops` that torch_npu has as one;
    more: names of further functions in `ops`."""
    with contextlib.ExitStack() as stack:
        for name in (*ops.OPERATORS, *more):
            wrapped = wrap(name, getattr(ops, name))
            stack.enter_context(mock.patch.object(ops, name, wrapped))
        yield


class Watcher(Protocol):
    inside: int  # depth of operators that count as one


def whole_operators(
    watcher: Watcher, done: Callable[..., None], *more: str
) -> contextlib.AbstractContextManager[None]:
    """Within it `watcher` knows when such an operator, or one of `more`, runs, whose meaning on a CPU
    consists of several; done(function, args, kwargs, result) hears of each outermost one."""

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            watcher.inside += 1
            try:
                result = function(*args, **kwargs)
            finally:
                watcher.inside -= 1
            if not watcher.inside:
                done(function, args, kwargs, result)
            return result

        return call

    return each_operator(wrap, *more)


class OperatorCounter(TorchDispatchMode):
    """Launches by operator; `inside` is above 0 within an operator that is counted as one."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.inside = 0

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
def npu_operators(counter: OperatorCounter) -> Iterator[None]:
    """Within it an operator that torch_npu has as one counts as that one; what a CPU does faster in
    another way is no part of the model."""

    def count(function: Callable[..., Any], *_: Any) -> None:
        counter.counts[function.__name__] += 1

    with whole_operators(counter, count), plain_products():
        yield


def count_ops(fn: Callable[[], object], *, as_npu: bool = True) -> dict[str, int]:
    """Operators that `fn` dispatches, most frequent first; pure views and allocations are left out.

    On an accelerator each of them is a kernel launch, give or take. With `as_npu` an operator of
    `ops` that torch_npu has as one (npu_rms_norm, ...) counts as one, although its meaning on a CPU
    consists of several. `aten._local_scalar_dense` is a wait of the host for the device;
    a CPU tensor's tolist() waits unseen.
    """
    counter = OperatorCounter()
    with contextlib.ExitStack() as stack, torch.no_grad():
        if as_npu:
            stack.enter_context(npu_operators(counter))
        with counter:
            fn()
    return dict(counter.counts.most_common())

"""Counting the host's waits: places where Python asks a tensor for values, so that the host stops
for the device."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .operators import OperatorCounter, npu_operators

# what reads values to the host, and what makes a result whose shape depends on values
_READS = {
    "tolist",
    "item",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "cpu",
    "numpy",
    "equal",
    "allclose",
}
_SHAPES = {"nonzero", "masked_select", "unique", "bincount", "argwhere"}


class _Syncs(TorchFunctionMode):
    def __init__(self, operators: OperatorCounter) -> None:
        super().__init__()
        self.operators = operators
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if not self.operators.inside and (
            name in _READS | _SHAPES or name == "__getitem__" and _by_mask(args[1])
        ):
            self.counts["x[mask]" if name == "__getitem__" else name] += 1
        return func(*args, **(kwargs or {}))


def _by_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(p, Tensor) and p.dtype in (torch.bool, torch.uint8) for p in parts)


def host_syncs(fn: Callable[[], object], *, as_npu: bool = True) -> dict[str, int]:
    """Method -> how often `fn` makes the host wait for values (`tolist`, `item`, `if tensor`, ...),
    on any device.

    On an accelerator each is a synchronisation: the host launches nothing until the device has
    caught up, and a graph cannot contain it. On a CPU it costs nothing, which is why it must be
    counted and not timed. With `as_npu` what happens inside an operator that torch_npu has as one
    (`ops`) is left out: its meaning on a CPU may read values, the NPU's does not. Without it that
    counts too: on a GPU the meanings are what runs. Strings made of tensors (print) are not counted.
    """
    operators = OperatorCounter()  # knows whether an NPU operator is running
    whole = npu_operators(operators) if as_npu else contextlib.nullcontext()
    with torch.no_grad(), whole, _Syncs(operators) as syncs:
        fn()
    return dict(syncs.counts.most_common())

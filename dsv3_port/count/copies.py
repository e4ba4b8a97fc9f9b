"""Bytes that operators write, counted where they are written: what a step moves, on any device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..model.cache import Cache
from .operators import is_launch, op_name

# in-place operators that write only as much as the tensor they are given, not all of what they
# write into
_PART = {
    "aten.index_put_": 2,
    "aten._index_put_impl_": 2,
    "aten.scatter_": 3,
    "aten.index_copy_": 3,
}


class _Written(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not is_launch(func):
            return result
        name = op_name(func)
        at = _PART.get(name)
        tensors = (
            [args[at]] if at is not None and isinstance(args[at], Tensor) else tree_leaves(result)
        )
        self.counts[name] += sum(t.nbytes for t in tensors if isinstance(t, Tensor))
        return result


def written_bytes(fn: Callable[[], object]) -> dict[str, int]:
    """Operator -> bytes it writes during `fn`, largest first; views and allocations write nothing.

    An operator that copies reads as many bytes again. index_put_ and scatter_ count what they
    store, not the buffer.
    """
    with torch.no_grad(), _Written() as written:
        fn()
    return dict(written.counts.most_common())


def append_bytes(cache: Cache) -> int:
    """Bytes that a cache writes to take in one more position in every layer; it is left as it was."""
    length = cache.length
    new = [
        torch.zeros(cache.batch, heads, 1, width, device=cache.device, dtype=cache.dtype)
        for heads, width in cache.widths
    ]
    total = sum(
        written_bytes(lambda: [cache.update(layer, *new) for layer in range(cache.layers)]).values()
    )
    cache.rewind(length)
    return total


def addresses(cache: Cache) -> list[int]:
    """Where the stored tensors begin in memory, layer by layer; what a captured graph would have
    written down."""
    return [tensor.data_ptr() for layer in cache.buffers for tensor in layer]


def addresses_over(step: Callable[[], object], cache: Cache, steps: int) -> int:
    """At how many addresses the first layer's cache lies after each of so many calls of `step`; what
    is seen is kept until the end, so that no address is given out again."""
    kept = []
    for _ in range(steps):
        step()
        kept.append(cache.buffers[0][0])
    return len({tensor.data_ptr() for tensor in kept})

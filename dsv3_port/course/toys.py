"""A function on small random inputs: right, a wrong answer of the catalogue, or the first place that
differs.

Sizes are different primes, so that no wrong axis fits by chance; two seeds, so that nothing is right
by luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..messages import tr
from .slots import Function, Slot
from .written import load_function

SEEDS = (0, 1)
CLOSE = 1e-4  # of the largest value, in float32


@dataclass(frozen=True)
class Toy:
    """`sizes`: letter -> size. inputs(generator, sizes) gives the arguments by parameter name, in
    order. `result`: the result's shape in letters. exact: bit for bit. writes: the arguments that
    the function may change."""

    sizes: Mapping[str, int]
    inputs: Callable[[torch.Generator, Mapping[str, int]], dict[str, Any]]
    result: tuple[str, ...]
    exact: bool = False
    writes: tuple[str, ...] = ()

    def __call__(self, function: Function, slot: Slot) -> str | None:
        """None, the name of a wrong answer in slot.wrong, or a sentence; errors go through."""
        for seed in SEEDS:
            want = self.outcome(load_function(slot.solution, slot.name), seed)
            got = self.outcome(function, seed)
            if self.same(got, want):
                continue
            for name, wrong in slot.wrong.items():
                try:
                    known = self.outcome(load_function(wrong.source, slot.name), seed)
                except Exception:  # this answer raises, the one that is judged did not
                    continue
                if self.same(got, known) and not self.same(known, want):
                    return name
            return self.first_place(got, want)
        return None

    def outcome(self, function: Function, seed: int) -> tuple[Any, list[str]]:
        """The result, and the names of arguments that were changed and must not be."""
        arguments = self.inputs(torch.Generator().manual_seed(seed), self.sizes)
        before = {n: v._version for n, v in arguments.items() if isinstance(v, Tensor)}
        with torch.no_grad():
            result = function(*arguments.values())
        touched = [n for n, version in before.items() if arguments[n]._version != version]
        return result, [n for n in touched if n not in self.writes]

    def same(self, a: tuple[Any, list[str]], b: tuple[Any, list[str]]) -> bool:
        if a[1] != b[1]:
            return False
        if isinstance(a[0], Tensor) and isinstance(b[0], Tensor):
            return self.equal(a[0], b[0])
        return type(a[0]) is type(b[0])

    def equal(self, x: Tensor, y: Tensor) -> bool:
        if x.shape != y.shape or x.dtype != y.dtype:
            return False
        if self.exact or not x.is_floating_point():
            return bool(torch.equal(x, y))
        bound = CLOSE * float(y.abs().max()) if y.numel() else 0.0
        return bool(torch.allclose(x, y, rtol=0, atol=bound, equal_nan=True))

    def first_place(self, got: tuple[Any, list[str]], want: tuple[Any, list[str]]) -> str:
        letters = f"[{', '.join(self.result)}]"
        sizes = ", ".join(f"{k}={v}" for k, v in self.sizes.items())
        if got[1]:
            return tr("your function changes its argument {name}; it may read it only").format(
                name=got[1][0]
            )
        if not isinstance(got[0], Tensor):
            said = tr("your function returns a {kind}, not a tensor {letters}")
            return said.format(kind=type(got[0]).__name__, letters=letters)
        x, y = got[0], want[0]
        if x.shape != y.shape:
            said = tr("your result is {shape}; {letters} is {due} here ({sizes})")
            return said.format(shape=[*x.shape], letters=letters, due=[*y.shape], sizes=sizes)
        if x.dtype != y.dtype:
            return tr("your result is {dtype}, it must be {due}").format(dtype=x.dtype, due=y.dtype)
        off = ~torch.isclose(
            x.float(), y.float(), rtol=0, atol=CLOSE * float(y.float().abs().max())
        )
        at = off.nonzero()[0].tolist() if bool(off.any()) else (x != y).nonzero()[0].tolist()
        place, share = ", ".join(map(str, at)), float((x != y).float().mean())
        return tr(
            "of {letters} ({sizes}) the first place that differs is [{place}]: yours {yours:.4g}, right "
            "{right:.4g}; {share:.0%} of all differ"
        ).format(
            letters=letters,
            sizes=sizes,
            place=place,
            yours=float(x[tuple(at)]),
            right=float(y[tuple(at)]),
            share=share,
        )

"""The time of each operator of a step (count/step_work.py) by measured kernels.

An operator whose kernel was measured at its size takes the samples; else its family's fit; else,
for a vector operator that nobody measured, its size among all vector kernels. What no fit covers
has a range only, between the fastest and the slowest rate at which a cold matrix product was read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ..count.step_work import Work
from . import kernel_tables
from .kernel_fit import ANY, GROUPED, MATMUL, Call, Estimate, Fit
from .kernels import CARD, Kernel, kernels

HOW = ("measured", "fitted", "by size", "bounded")
# operator of the step -> the family that has its kernel
OPERATORS = {
    "aten.mm": MATMUL,
    "aten.bmm": MATMUL,
    "npu_grouped_matmul": GROUPED,
    "npu_rms_norm": "RmsNorm",
    "npu_add_rms_norm": "AddRmsNorm",
    "npu_swiglu": "SwiGlu",
    "aten.add": "Add",
    "aten.mul": "Mul",
    "aten._to_copy": "Cast",
}


@dataclass(frozen=True)
class Costed:
    """An operator with its time; `missing` says why it has only a range."""

    work: Work
    estimate: Estimate
    family: str
    missing: str = ""


class KernelModel:
    """Times of operators by one card's points. `fits` by family name; `points` are those of one
    device."""

    def __init__(self, points: Sequence[Kernel], fits: dict[str, Fit], device: str = CARD) -> None:
        self.points, self.fits, self.device = points, fits, device
        product, grouped = fits[MATMUL].points, fits[GROUPED].points
        base = kernel_tables.fits()[MATMUL].points  # where a card's own have none of a kind
        cold = _such((*product, *grouped), base, lambda k: k.rows <= 8 and k.mb > 20)
        self.fastest = max(cold, key=lambda k: k.mb / k.median)
        self.slowest = min(cold, key=lambda k: k.mb / k.median)
        large = _such(product, base, lambda k: k.rows >= 1000 and k.gflop > 5)
        self.most_flops = max(large, key=lambda k: k.gflop / k.median)
        self.least_flops = min(large, key=lambda k: k.gflop / k.median)
        short = _such(product, base, lambda k: k.mb < 4.5)
        self.slow_start = max(short, key=lambda k: k.median)
        self._found: dict[Work, tuple[Estimate, str, str]] = {}

    def cost(self, w: Work) -> Costed:
        """Kept by size: layers, rungs and steps ask for the same operators again and again."""
        alike = replace(w, part="", times=1)
        if alike not in self._found:
            self._found[alike] = self._cost(alike)
        return Costed(w, *self._found[alike])

    def _cost(self, w: Work) -> tuple[Estimate, str, str]:
        call = Call(w.nbytes / 1e6, w.flops / 1e9, w.rows, w.weights / 1e6, w.experts)
        family = OPERATORS.get(w.op, ANY)
        if point := self._same(w, family, call):
            e = Estimate(point.median, point.low, point.high, "measured", (point.id,))
            return e, family, ""
        if w.float32 and w.flops:
            return self.bounds(call), family, "no float32 product was measured"
        missing = self.fits[family].missing(call)
        if not missing:
            how = "by size" if family == ANY else "fitted"
            return self._estimate(family, call, how), family, ""
        if not w.flops and family != ANY and not self.fits[ANY].missing(call):
            return self._estimate(ANY, call, "by size"), ANY, missing
        return self.bounds(call), family, missing

    def _estimate(self, family: str, call: Call, how: str) -> Estimate:
        found = self.fits[family].estimate(call, how)
        assert found is not None
        return found

    def _same(self, w: Work, family: str, call: Call) -> Kernel | None:
        """A point of the same kernel and bytes; a product's rows and weights are the same too."""
        if family == ANY or w.float32 and w.flops or call.mb < 0.01:
            return None
        close = [
            k
            for k, c in zip(self.fits[family].points, self.fits[family].calls, strict=True)
            if abs(c.mb / call.mb - 1) < 0.01
            and c.rows == (call.rows or c.rows)
            and (not call.weights or abs(c.weights / call.weights - 1) < 0.01)
            and c.experts == call.experts
        ]
        return max(close, key=lambda k: k.n, default=None)

    def bounds(self, call: Call) -> Estimate:
        """A range for a call that nothing covers: its bytes and FLOPs at the fastest and at the
        slowest measured rates."""

        def at(nbytes: Kernel, flops: Kernel) -> tuple[float, float]:
            product = call.gflop * flops.median / flops.gflop
            return call.mb * nbytes.median / nbytes.mb, product if call.rows >= 64 else 0.0

        low = max(*at(self.fastest, self.most_flops))
        high = self.slow_start.median + sum(at(self.slowest, self.least_flops))
        ends = (self.fastest, self.slowest, self.most_flops, self.least_flops, self.slow_start)
        low = max(low, min(k.median for k in self.points if k.device == self.device))
        return Estimate(math.sqrt(low * high), low, high, "bounded", tuple(k.id for k in ends))


def _such(
    points: Sequence[Kernel], base: Sequence[Kernel], keep: Callable[[Kernel], bool]
) -> list[Kernel]:
    return [k for k in points if keep(k)] or [k for k in base if keep(k)]


@lru_cache(maxsize=1)
def published_model() -> KernelModel:
    """The published points of 910B4-1."""
    return KernelModel(kernels(), kernel_tables.fits())

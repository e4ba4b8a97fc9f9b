"""The time of a kernel from its bytes and FLOPs, fitted to kernels that others measured
(forecast/kernels.py); every result names the rows that it rests on.

time = start + a sum of terms, each coefficient 0 or more; least squares of log(fitted / measured)
by reweighting. A matrix product has weight bytes, other bytes and FLOPs; a vector kernel has bytes
and their square root, for its rate grows until all cores have rows. An error is always that of a
point which had no part in the fit (leave one out).

Nothing is extrapolated more than twice beyond the points (`Fit.missing` has the rule): what lies
further out has no estimate, only `bounds`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .kernels import CARD, Kernel

MATRIX = ("MatMulV2", "MatMulV3", "BatchMatMulV2", "GroupedMatmul", "QuantBatchMatmulV3")
REACH = 2.0  # a size at most this many times beyond the nearest point is covered
_SHARE = 0.1  # a term that makes up less of the time need not be covered
TERMS = {"start": "µs", "weights": "µs a MB", "other": "µs a MB", "bytes": "µs a MB"}
TERMS |= {"root": "µs a root of MB", "flops": "µs a GFLOP"}
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Call:
    """One call of an operator: what it reads and writes (MB), multiplies (GFLOP), over how many
    rows and experts. weights: MB of a product's right operand, which is not in the chip's cache."""

    mb: float
    gflop: float = 0.0
    rows: int = 0
    weights: float = 0.0
    experts: int = 0


def call_of(k: Kernel) -> Call:
    """A point as the call that it was."""
    if k.kernel not in MATRIX:
        return Call(k.mb, k.gflop, k.rows)
    shape = k.shapes[1]
    width = 1 if k.dtype == "int8" else 2
    experts = shape[0] if k.kernel == "GroupedMatmul" else 0
    return Call(k.mb, k.gflop, k.rows, math.prod(shape) * width / 1e6, experts)


@dataclass(frozen=True)
class Family:
    """Which points are fitted together, and by which terms."""

    name: str
    kernels: tuple[str, ...]
    terms: tuple[str, ...] = ("start", "root", "bytes")
    dtype: str = "bfloat16"  # of the first input; "" is any
    keep: Callable[[Kernel], bool] = field(default=lambda k: True, repr=False)


_PRODUCT = ("start", "weights", "other", "flops")
VECTOR = (
    *("RmsNorm", "AddRmsNorm", "Add", "Mul", "Muls", "SwiGlu", "Cast", "Slice", "DynamicQuant"),
    *("AscendQuantV2", "TensorMove", "InterleaveRope", "KvRmsNormRopeCache", "LayerNormV3"),
    *("Transpose", "BroadcastTo", "ConcatD"),
)
ANY = "vector, any kind"
MATMUL, GROUPED = "matrix product", "grouped matmul"
FAMILIES = {
    f.name: f
    for f in (
        Family(MATMUL, ("MatMulV2", "MatMulV3", "BatchMatMulV2"), _PRODUCT),
        Family(GROUPED, ("GroupedMatmul",), _PRODUCT),
        Family("quantised matmul int8", ("QuantBatchMatmulV3",), _PRODUCT, "int8"),
        Family("fused attention, decode", ("FusedInferAttentionScore",), dtype=""),
        Family(
            "prefill attention",
            ("RINGMLAPrefillBF16Kernel",),
            ("start", "flops"),
            # points whose lengths are told: the others hold several sequences
            keep=lambda k: k.inputs.startswith(("3585x", "4097x", "8193x")),
        ),
        Family(
            "MoeGatingTopK",
            ("MoeGatingTopK",),
            ("start", "bytes"),
            "",
            lambda k: k.inputs.endswith("x256;256"),
        ),
        *(Family(name, (name,)) for name in ("RmsNorm", "AddRmsNorm", "Add", "Mul", "SwiGlu")),
        *(Family(name, (name,), dtype="") for name in ("Cast", "DynamicQuant", "AscendQuantV2")),
        Family(ANY, VECTOR, dtype=""),
    )
}


def members(points: Sequence[Kernel], family: Family, device: str = CARD) -> list[Kernel]:
    """The points of a family: sizes known, no rate above the card's peak, no spread over 3x."""
    return [
        k
        for k in points
        if k.device == device
        and k.kernel in family.kernels
        and k.mb > 0
        and "peak" not in k.flag
        and "spread" not in k.flag
        and (not family.dtype or k.dtype == family.dtype)
        and family.keep(k)
    ]


def _features(calls: Sequence[Call], terms: Sequence[str]) -> Array:
    """[calls, terms]"""
    columns: dict[str, Callable[[Call], float]] = {
        "start": lambda c: 1.0,
        "weights": lambda c: c.weights,
        "other": lambda c: max(0.0, c.mb - c.weights),
        "bytes": lambda c: c.mb,
        "root": lambda c: c.mb**0.5,
        "flops": lambda c: c.gflop,
    }
    return np.array([[columns[t](c) for t in terms] for c in calls], dtype=float)


def _solve(x: Array, t: Array, rounds: int = 8) -> Array:
    """Coefficients of 0 or more that make log(x @ c / t) small in squares. (p - t)^2 / (p t) is
    log^2 to second order."""
    every = range(x.shape[1])
    subsets = [list(s) for n in every for s in itertools.combinations(every, n + 1)]
    made, found = t, np.zeros(x.shape[1])
    for _ in range(rounds):
        w = 1 / np.sqrt(made * t)
        a, b = x * w[:, None], t * w
        best = math.inf
        for subset in subsets:
            c = np.linalg.lstsq(a[:, subset], b, rcond=None)[0]
            error = float(((a[:, subset] @ c - b) ** 2).sum())
            if (c >= 0).all() and error < best * (1 - 1e-12):
                best, found = error, np.zeros(x.shape[1])
                found[subset] = c
        made = np.maximum(x @ found, 1e-3)
    return found


@dataclass(frozen=True)
class Estimate:
    """Microseconds of one call. low, high: the samples' smallest and largest where the call itself
    was measured, else what nine of ten left-out points stay within."""

    us: float
    low: float
    high: float
    how: str  # "measured", "fitted", "by size" (of any vector kernel), or "bounded"
    rows: tuple[str, ...]  # ids of forecast/kernels.py


@dataclass(frozen=True)
class Fit:
    """One family fitted to points; `coefficients` in the units of TERMS."""

    family: Family
    points: tuple[Kernel, ...]

    @cached_property
    def calls(self) -> list[Call]:
        return [call_of(k) for k in self.points]

    @cached_property
    def _x(self) -> Array:
        return _features(self.calls, self.family.terms)

    @cached_property
    def _t(self) -> Array:
        return np.array([k.median for k in self.points])

    @cached_property
    def _c(self) -> Array:
        return _solve(self._x, self._t)

    @property
    def coefficients(self) -> dict[str, float]:
        return dict(zip(self.family.terms, map(float, self._c), strict=True))

    @cached_property
    def left_out(self) -> dict[str, tuple[float, bool]]:
        """Id -> (fitted over measured, minus 1, by a fit of all others; whether that fit covers
        it)."""
        found = {}
        for i, k in enumerate(self.points):
            others = Fit(self.family, (*self.points[:i], *self.points[i + 1 :]))
            call = self.calls[i]
            found[k.id] = (others.us(call) / k.median - 1, not others.missing(call))
        return found

    @property
    def errors(self) -> list[float]:
        """The left-out errors of covered points, smallest magnitude first."""
        return sorted((e for e, covered in self.left_out.values() if covered), key=abs)

    @cached_property
    def band(self) -> tuple[float, float]:
        """Measured over fitted that nine of ten covered left-out points stay within: (below,
        above)."""
        ratios = sorted(1 / (1 + e) for e in self.errors) or [1.0]
        cut = len(ratios) // 20
        return min(1.0, ratios[cut]), max(1.0, ratios[-1 - cut])

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(k.id for k in self.points)

    def terms(self, call: Call) -> dict[str, float]:
        """Microseconds of each term."""
        parts = _features([call], self.family.terms)[0] * self._c
        return dict(zip(self.family.terms, map(float, parts), strict=True))

    def missing(self, call: Call) -> str:
        """Why this call has no estimate, or "". Bytes and FLOPs must lie within REACH of a point
        where they make up a tenth of the time or more, and so must rows of a product and experts;
        below the smallest point a kernel that is mostly start remains start."""
        if len(self.points) < 2:
            return f"{len(self.points)} points of {self.family.name}"
        parts = self.terms(call)
        total = sum(parts.values())
        mostly_start = parts.get("start", 0.0) >= total / 2
        if mostly_start and not self._start_known:
            return "start: no point is short enough to show it"
        sizes = {"weights": "weights", "flops": "gflop", "bytes": "mb"}
        for term, size in sizes.items():
            if parts.get(term, 0.0) < _SHARE * total or mostly_start:
                continue
            if far := _far(getattr(call, size), [getattr(c, size) for c in self.calls]):
                return f"{term} {far}"
        largest = max(c.mb for c in self.calls)
        if call.mb > REACH * largest:
            return f"{call.mb:.3g} MB are {call.mb / largest:.1f} times the largest point"
        if call.gflop and (far := _far(call.rows, [c.rows for c in self.calls])):
            return f"rows {far}"
        if call.experts and (far := _far(call.experts, [c.experts for c in self.calls])):
            return f"experts {far}"
        return ""

    @cached_property
    def _start_known(self) -> bool:
        """Some point is mostly start, so that the start is measured and not a line's end."""
        start = self.coefficients.get("start", 0.0)
        return any(start >= k.median / 2 for k in self.points)

    def us(self, call: Call) -> float:
        return float(_features([call], self.family.terms)[0] @ self._c)

    def estimate(self, call: Call, how: str = "fitted") -> Estimate | None:
        if self.missing(call):
            return None
        us, (below, above) = self.us(call), self.band
        return Estimate(us, us * below, us * above, how, self.rows)


def _far(value: float, known: Sequence[float]) -> str:
    """ "" where a known value lies within REACH, else how far the nearest is."""
    times = [max(value / v, v / value) for v in known if v > 0 and value > 0]
    if times and min(times) <= REACH * (1 + 1e-9):
        return ""
    nearest = f"{min(times):.1f} times away" if times else "absent"
    return f"{value:.4g}: the nearest point is {nearest}"

"""Two sides of a comparison as sums of kernels that others measured.

A part is a measured kernel (with its samples' spread), a measured one scaled to another width, or a
fit where the size has no point of its own. A ratio is taken within one device only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PortError
from ..messages import N_, told, tr
from . import kernel_tables
from .kernel_fit import MATMUL, Call
from .kernels import CARD, by_id, find
from .traced import Traced

NOTHING = 1.2  # a smaller ratio of medians from different runs is no finding


@dataclass(frozen=True)
class Part:
    """A kernel of one side, all its calls together. formula: as forecast/traced.py reads it."""

    what: str
    us: float
    low: float
    high: float
    formula: str
    rows: tuple[str, ...]
    device: str
    how: str  # measured, scaled or fitted


@dataclass(frozen=True)
class Pair:
    """One comparison: before and after, µs of kernel time."""

    size: str  # "decode, 8 tokens"
    what: str
    before: tuple[Part, ...]
    after: tuple[Part, ...]
    near: str  # what is exact about it, and what is not

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(p.device for p in (*self.before, *self.after)))

    @property
    def same_device(self) -> bool:
        return len(self.devices) == 1

    @property
    def ratio(self) -> float:
        return total(self.before)[0] / total(self.after)[0]

    @property
    def verdict(self) -> str:
        if not self.same_device:
            return tr("two devices: no ratio")
        if 1 / NOTHING < self.ratio < NOTHING and not self._told_apart:
            return tr("{ratio:.2f}×: no difference shown").format(ratio=self.ratio)
        slower = tr("{ratio:.2f}× slower")
        return f"{self.ratio:.2f}×" if self.ratio > 1 else slower.format(ratio=1 / self.ratio)

    @property
    def fitted(self) -> bool:
        return any(p.how == "fitted" for p in (*self.before, *self.after))

    @property
    def _told_apart(self) -> bool:
        """Both sides ran in the same run, and no sample of one is as fast as any of the other."""
        rows = [by_id()[r] for p in (*self.before, *self.after) for r in p.rows if r in by_id()]
        if self.fitted or any(p.how == "scaled" for p in (*self.before, *self.after)):
            return False
        runs = [set(k.model.split(";")) - {""} for k in rows]
        (_, b_low, b_high), (_, a_low, a_high) = total(self.before), total(self.after)
        return bool(runs and set.intersection(*runs)) and (b_low > a_high or a_low > b_high)


@dataclass(frozen=True)
class StepKernels:
    """Everything that is known of a step's kernels. `said`: what no pair can say, with rows."""

    step: str
    pairs: tuple[Pair, ...]
    said: tuple[str, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        named = [d for d in ("910B1", CARD) if any(d in text for text in self.said)]
        return tuple(dict.fromkeys([*(d for p in self.pairs for d in p.devices), *named])) or (
            CARD,
        )


def total(parts: Sequence[Part]) -> tuple[float, float, float]:
    """(µs, smallest, largest) of a side."""
    return sum(p.us for p in parts), sum(p.low for p in parts), sum(p.high for p in parts)


def formula(parts: Sequence[Part]) -> str:
    """The side's rows, "~" before them where a fit is among them."""
    fitted = "~" if any(p.how == "fitted" for p in parts) else ""
    return fitted + " + ".join(p.formula for p in parts)


def traced(pairs: Sequence[Pair]) -> list[Traced]:
    """The sides that hold a fit, for forecast/traced.py."""
    found = []
    for pair in pairs:
        for side in (pair.before, pair.after):
            if any(p.how == "fitted" for p in side):
                rows = tuple(r for p in side for r in p.rows)
                tag = formula(side).removeprefix("~")
                found += [Traced(v, "µs", tag, rows) for v in total(side)]
    return found


def measured(
    kernel: str, inputs: str, times: int = 1, scale: float = 1.0, device: str = CARD
) -> Part:
    k = find(kernel, inputs, device, "")
    factor = times * scale
    name = (f"{times} × " if times > 1 else "") + k.id + (f" × {scale:.3g}" if scale != 1 else "")
    what = (f"{times} × " if times > 1 else "") + f"{kernel} {_short(inputs)}"
    how = "measured" if scale == 1 else "scaled"
    values = (k.median * factor, k.low * factor, k.high * factor)
    return Part(what, *values, name, (k.id,), device, how)


def _short(inputs: str) -> str:
    return ";".join(inputs.split(";")[:2])


def fitted(family: str, call: Call, what: str, times: int = 1) -> Part | None:
    """By the fit, or None where it does not reach."""
    fit = kernel_tables.fits()[family]
    found = fit.estimate(call)
    if found is None:
        return None
    name = (f"{times} × " if times > 1 else "") + f"{family}, {what}"
    values = (found.us * times, found.low * times, found.high * times)
    return Part(name, *values, name, found.rows, CARD, "fitted")


def product(rows: int, k: int, n: int, times: int = 1) -> Part | None:
    """A bfloat16 product [rows, k] x [n, k]: measured where it was, else fitted."""
    try:
        return measured("MatMulV2", f"{rows}x{k};{n}x{k}", times)
    except PortError:
        weights = 2 * k * n / 1e6
        mb = weights + 2 * rows * (k + n) / 1e6
        call = Call(mb, 2 * rows * k * n / 1e9, rows, weights)
        return fitted(MATMUL, call, f"{rows}×{k}·{k}×{n}", times)


def vector(kernel: str, inputs: str, tensors: float, rows: int, width: int) -> Part | None:
    """`tensors` of [rows, width] bfloat16 in and out: measured where it was, else fitted."""
    try:
        return measured(kernel, inputs)
    except PortError:
        return fitted(kernel, Call(2e-6 * tensors * rows * width, 0.0, rows), f"{rows}×{width}")


def pair(
    size: str, what: str, before: list[Part | None], after: list[Part | None], near: str
) -> list[Pair]:
    """[] where a side is not covered."""
    sides = [tuple(p for p in side if p is not None) for side in (before, after)]
    if len(sides[0]) < len(before) or len(sides[1]) < len(after):
        return []
    by_fit = [
        told(when)
        for when, side in zip((N_("before"), N_("after")), sides, strict=True)
        if any(p.how == "fitted" for p in side)
    ]
    if by_fit and not near:
        both = tr("before and after") if len(by_fit) == 2 else by_fit[0]
        near = tr("{sides}: fitted, no point of this size").format(sides=both)
    return [Pair(size, what, sides[0], sides[1], near)]

"""The fits held against two measured sequences that they had no part in: a decode step of 8 tokens
put together from its kernels, and the recorded prefill forward of 3,585 tokens.

Both are sums of measured kernels (device time; launches and collectives are not in them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from .kernel_fit import ANY, FAMILIES, MATMUL, VECTOR, Fit, call_of, members
from .kernel_work import work
from .kernels import CARD, Kernel, find, forward, kernels, parse_shape

RUN = "command_optimized_deepseek_bf16_016"  # the forward's own run, in the names of its files
# one decode step as vLLM-Ascend ran it, 8 tokens, TP8 attention, 2 of 256 experts on the rank:
# (kernel, input shapes, times a step); 61 layers, 3 of them dense
DECODE = (
    ("AddRmsNorm", "8x7168;8x7168;7168", 122),
    ("MatMulV2", "8x7168;2112x7168", 61),
    ("RmsNorm", "8x1536;1536", 61),
    ("MatMulV2", "8x1536;3072x1536", 61),
    ("BatchMatMulV2", "16x8x128;16x128x512", 122),
    ("Transpose", "16x8x512;3", 61),
    ("FusedInferAttentionScore", "8x16x1x512", 61),
    ("MatMulV2", "8x2048;7168x2048", 61),
    ("MatMulV2", "8x7168;4608x7168", 3),
    ("SwiGlu", "8x4608", 3),
    ("MatMulV2", "8x2304;7168x2304", 3),
    ("MatMulV2", "8x7168;256x7168", 58),
    ("MoeGatingTopK", "1x256;256", 58),
    ("MatMulV2", "8x7168;512x7168", 58),
    ("SwiGlu", "8x512", 58),
    ("MatMulV2", "8x256;7168x256", 58),
    ("GroupedMatmul", "256x7168;2x7168x4096;2", 58),
    ("SwiGlu", "256x4096", 58),
    ("GroupedMatmul", "256x2048;2x2048x7168;2", 58),
    ("Add", "8x7168;8x7168", 58),
    ("MatMulV2", "8x7168;16160x7168", 1),
)


@dataclass(frozen=True)
class Line:
    """One kind of kernel in a held-out sequence. fitted_ms is None where no family has it."""

    kernel: str
    launches: int
    measured_ms: float
    fitted_ms: float | None
    covered: bool  # by the rule of Fit.missing; False: extrapolated further, or no family
    how: str

    @property
    def error(self) -> float | None:
        return None if self.fitted_ms is None else self.fitted_ms / self.measured_ms - 1


def total(lines: Sequence[Line], what: str = "covered") -> Line:
    """The sum of "covered" lines, or of all "fitted" ones (those that reach further too)."""
    chosen = [
        line for line in lines if line.fitted_ms is not None and (line.covered or what == "fitted")
    ]
    measured = sum(line.measured_ms for line in chosen)
    fitted = sum(line.fitted_ms or 0.0 for line in chosen)
    apart = sum(abs((line.fitted_ms or 0.0) - line.measured_ms) for line in chosen) / measured
    whole = sum(line.measured_ms for line in lines)
    how = (
        f"{measured / whole:.0%} of the measured time; errors of its kernels add up to {apart:.0%}"
    )
    launches = sum(line.launches for line in chosen)
    return Line(f"sum of what is {what}", launches, measured, fitted, what == "covered", how)


def family_of(kernel: str) -> str:
    """The family that predicts a kernel; "" for one that no family has."""
    for family in FAMILIES.values():
        if kernel in family.kernels:
            return family.name
    return ANY if kernel in VECTOR else ""


def _without(family: str, keep: Callable[[Kernel], bool]) -> Fit:
    return Fit(FAMILIES[family], tuple(k for k in members(kernels(), FAMILIES[family]) if keep(k)))


def decode_step() -> list[Line]:
    """Each kernel of DECODE by a fit that never saw it: matrix products by points of other models
    than DeepSeek, the others by every point but the one in question."""
    foreign = _without(MATMUL, lambda k: bool(k.model) and "Deepseek" not in k.model)
    parts = []
    for kernel, inputs, times in DECODE:
        point = _point(kernel, inputs)
        family = family_of(kernel)
        fit = foreign if family == MATMUL else _without(family, partial(_other, point.id))
        parts.append((point, times, fit))
    return _lines(parts)


def _other(name: str, k: Kernel) -> bool:
    return k.id != name


def _lines(parts: Iterable[tuple[Kernel, int, Fit | None]]) -> list[Line]:
    """Summed by kernel and by whether the fit covers it; longest first."""
    sums: dict[tuple[str, bool, str], list[float]] = {}
    for point, times, fit in parts:
        covered, how, fitted = False, "no family has this kernel", math.nan
        if fit and point.mb and len(fit.points) > 1:
            missing, fitted = fit.missing(call_of(point)), fit.us(call_of(point))
            covered, how = (
                not missing,
                f"beyond its points: {missing}" if missing else fit.family.name,
            )
        row = sums.setdefault((point.kernel, covered, how), [0, 0.0, 0.0])
        for i, value in enumerate((times, times * point.median / 1e3, times * fitted / 1e3)):
            row[i] += value
    return [
        Line(kernel, int(n), measured, None if math.isnan(fitted) else fitted, covered, how)
        for (kernel, covered, how), (n, measured, fitted) in sorted(
            sums.items(), key=lambda item: -item[1][1]
        )
    ]


def decode_rows() -> tuple[str, ...]:
    """Ids of the points that the decode step is made of."""
    return tuple(_point(kernel, inputs).id for kernel, inputs, _ in DECODE)


def _point(kernel: str, inputs: str) -> Kernel:
    if kernel == "FusedInferAttentionScore":  # its shapes go on with the cache's blocks
        return next(k for k in kernels() if k.kernel == kernel and k.inputs.startswith(inputs))
    return find(kernel, inputs)


def forward_points() -> list[Kernel]:
    """The forward's launches that have a time, as points."""
    found = []
    for launch in forward():
        if launch.us is None:
            continue
        ins = [parse_shape(s) for s in launch.inputs.split(";")]
        outs = [parse_shape(s) for s in launch.outputs.split(";")]
        note = ""
        if launch.kernel == "GroupedMatmul" and ins[1][0] == 2:  # 2 of 256 experts are here
            note = f"valid~{ins[0][0] // 128}"
        mb, gflop = work(launch.kernel, ins, launch.dtypes.split(";"), outs, note)
        sizes = (launch.us, launch.us, launch.us, mb, gflop)
        words = (launch.inputs, launch.dtypes, launch.outputs, note, "")
        found.append(Kernel(launch.id, CARD, "", launch.kernel, *words, 1, *sizes, "", "", ""))
    return found


def prefill_forward() -> list[Line]:
    """Every kernel of the forward by points that its run has no part in, longest first. A kernel
    counts as covered launch by launch, so that one may have two lines."""
    fits = {
        name: _without(name, lambda k: not all(RUN in f for f in k.files.split(";")))
        for name in FAMILIES
    }
    return _lines((point, 1, fits.get(family_of(point.kernel))) for point in forward_points())


def beyond_the_rule(kernel: str = "SwiGlu") -> dict[str, float]:
    """What fits would say of the forward's longest `kernel` if they were allowed to reach out, over
    what was measured, minus 1: by its own family, and by the rate of the largest other vector
    kernel."""
    point = max((p for p in forward_points() if p.kernel == kernel), key=lambda p: p.median)
    own = _without(family_of(kernel), lambda k: not all(RUN in f for f in k.files.split(";")))
    straight = Fit(replace(own.family, terms=("start", "bytes")), own.points)
    others = [
        k for k in kernels() if k.device == CARD and k.kernel in VECTOR and k.kernel != kernel
    ]
    largest = max(others, key=lambda k: k.mb)
    return {
        "times beyond": point.mb / max(k.mb for k in own.points),
        "own family": own.us(call_of(point)) / point.median - 1,
        "without the root": straight.us(call_of(point)) / point.median - 1,
        f"rate of {largest.id}": point.mb * largest.median / largest.mb / point.median - 1,
    }

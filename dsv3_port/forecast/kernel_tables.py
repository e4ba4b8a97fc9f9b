"""The kernel data and their fits as rows of tables: what docs/npu-kernels.md shows."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from ..markdown import table
from . import heldout
from .kernel_fit import FAMILIES, Fit, members
from .kernels import gaps, kernels

Row = dict[str, object]


@lru_cache(maxsize=1)
def fits() -> dict[str, Fit]:
    """Every family fitted to the published points of CARD."""
    return {name: Fit(f, tuple(members(kernels(), f))) for name, f in FAMILIES.items()}


def _percent(errors: list[float], part: float) -> str:
    """The magnitude that this part of the errors stays within; errors come smallest first."""
    return f"{abs(errors[min(len(errors) - 1, int(part * len(errors)))]):.0%}" if errors else "–"


def fit_rows() -> list[Row]:
    """A row for each family: points, samples, sizes, coefficients, left-out errors."""
    rows = []
    for name, fit in fits().items():
        sizes = sorted(k.mb for k in fit.points)
        c, errors = fit.coefficients, fit.errors
        rate = c.get("weights", c.get("bytes", 0.0))
        flops = c.get("flops", 0.0)
        rows.append(
            {
                "operator": name,
                "points": len(fit.points),
                "samples": sum(k.n for k in fit.points),
                "MB": f"{sizes[0]:.2g}–{sizes[-1]:.4g}",
                "start µs": f"{c.get('start', 0.0):.1f}",
                "µs a root of MB": f"{c['root']:.2g}" if c.get("root") else "–",
                "GB/s": f"{1e3 / rate:.0f}" if rate else "–",
                "TFLOP/s": f"{1e3 / flops:.0f}" if flops else "–",
                "left out: half within": _percent(errors, 0.5),
                "nine of ten": _percent(errors, 0.9),
                "worst": _percent(errors, 1.0),
                "mean": f"{sum(errors) / len(errors):+.0%}" if errors else "–",
                "not covered": len(fit.points) - len(errors),
            }
        )
    return rows


def heldout_rows(which: str) -> list[Row]:
    """`decode` or `prefill`: measured and fitted by kernel; sums at the end."""
    lines = heldout.decode_step() if which == "decode" else heldout.prefill_forward()
    shown = [line for line in lines if line.measured_ms >= 0.05]
    sums = [heldout.total(lines), heldout.total(lines, "fitted")]
    return [
        {
            "NPU kernel": line.kernel,
            "launches": line.launches,
            "measured ms": f"{line.measured_ms:.2f}",
            "fitted ms": "–" if line.fitted_ms is None else f"{line.fitted_ms:.2f}",
            "error": "–" if line.error is None else f"{line.error:+.0%}",
            "by": line.how,
        }
        for line in [*shown, *sums]
    ]


def point_rows() -> list[Row]:
    """Points and samples by device, and what says that it is this device."""
    found: Counter[tuple[str, str]] = Counter()
    samples: Counter[tuple[str, str]] = Counter()
    for k in kernels():
        found[k.device, k.basis] += 1
        samples[k.device, k.basis] += k.n
    return [
        {"device": d, "said by": b, "points": n, "samples": samples[d, b]}
        for (d, b), n in sorted(found.items())
    ]


def gap_rows() -> list[Row]:
    """How long kernels waited, and from layer to layer and step to step where that is known."""
    return [
        {
            "row": g.id,
            "mode": {"static": "graph", "dynamic": "eager"}[g.state],
            "core": g.core,
            "n": g.n,
            "waits µs, p10": g.wait_p10,
            "median": g.wait,
            "p90": g.wait_p90,
            "layer to layer µs": "–" if g.layer_us is None else g.layer_us,
            "step to step ms": "–" if g.step_ms is None else g.step_ms,
            "file": g.file.rsplit("/", 1)[-1],
        }
        for g in gaps()
    ]


def markdown(rows: list[Row]) -> str:
    heads = list(rows[0])
    return table(heads, ([r[h] for h in heads] for r in rows))

"""Curves: time against the size of what was measured, memory against the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from ..bench.cases import Case
from ..bench.paired import busy_text
from ..bench.records import Results
from ..bench.results_table import seconds_text
from ..bench.speed_tables import curve, fit_exponent
from ..errors import PortError
from ..forecast.planner import GIB, Forecast
from ..steps import title_of
from .bars import unit_of
from .colours import CYCLE, GREY, LIGHT, MARKERS
from .style import LabFigure, caption, figure, finish, key, on_phone, two_widths, wrap_titles


@two_widths
def cost_curve(
    results: Results, x: str = "context", names: Sequence[str] | None = None
) -> LabFigure:
    """Time against a field of the records ("context", "tokens", "batch"), quartiles as bands,
    logarithmic axes. A busy machine's lines are grey and dashed, without exponents."""
    chosen = results.latest().select(lambda r: names is None or r.name in names)
    note = caption(chosen.records, "lines: medians, bands: quartiles")
    scale, unit = unit_of(chosen.records)
    fig, (ax,) = figure(size=(9.0, 4.6))
    said, busy = [], busy_text(chosen.records)
    for k, name in enumerate(chosen.names):
        line = sorted((r for r in chosen if r.name == name), key=lambda r: getattr(r, x))
        xs = [getattr(r, x) for r in line]
        if len(set(xs)) != len(xs):
            raise PortError(
                f"cost_curve: {name!r} has several records with the same {x}; select one phase and size"
            )
        ys = [r.median * scale for r in line]
        low, high = ([getattr(r, end) * scale for r in line] for end in ("q1", "q3"))
        colour, dash = (GREY, "--") if busy else (CYCLE[k % 8], "-")
        ax.fill_between(xs, low, high, color=colour, alpha=0.22)
        label = title_of(name)
        if len(xs) > 2 and not busy:
            label += f"  (∝ {x}^{fit_exponent(xs, ys):.2f})"
        ax.plot(xs, ys, dash, marker=MARKERS[k % 8], color=colour, lw=2, ms=7, label=label)
        first, last = seconds_text(line[0].median), seconds_text(line[-1].median)
        said.append(label if busy else f"{label} from {first} at {xs[0]} to {last} at {xs[-1]}")
    ticks = sorted({getattr(r, x) for r in chosen})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    _plain_log_ticks(ax, min(r.q1 for r in chosen) * scale, max(r.q3 for r in chosen) * scale)
    ax.set_xlabel(
        {
            "context": "tokens in the cache",
            "tokens": "tokens of the prompt",
            "batch": "batch size",
            "top": "experts of each token",
        }.get(x, x)
    )
    ax.set_ylabel(f"time per call, {unit}")
    ax.grid(color=LIGHT, lw=0.8)
    if on_phone():
        key(fig, 1)
    else:
        ax.legend(loc="best")
    ax.set_title(busy)
    wrap_titles(fig, [ax])
    said = [*([f"no verdict, {busy}"] if busy else []), *said]
    return finish(fig, f"Line chart of time against {x}: " + "; ".join(said) + ".", note)


def _plain_log_ticks(ax: Axes, low: float, high: float) -> None:
    """1, 2, 5 steps as plain numbers: powers of ten alone would leave most of these charts with one
    label."""
    steps = [
        m * 10.0**e
        for e in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        for m in (1, 2, 5)
    ]
    ticks = [s for s in steps if low / 2.5 <= s <= high * 2.5]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_ylim(low / 1.3, high * 1.3)


def cost_of(case: Case) -> LabFigure:
    """Time over what the case varies, with the exponent of each variant."""
    x, results = curve(case)
    return cost_curve(results, x)


@two_widths
def memory_curve(rows: Sequence[Forecast]) -> LabFigure:
    """Forecast GiB on each rank over the number of ranks (planner.forecast, one dtype): experts,
    attention, the rest and the KV cache, each with its exponent. -1 is a perfect cut, 0 a copy on
    every rank.
    """
    cut = sorted((f for f in rows if f.weights_bytes), key=lambda f: f.world_size)
    if len({f.dtype for f in cut}) != 1 or len({f.world_size for f in cut}) < 2:
        raise PortError(
            "memory_curve needs forecasts of one dtype for two numbers of ranks at least"
        )
    xs = [f.world_size for f in cut]
    lines = {
        "all": [f.total_bytes for f in cut],
        "routed experts": [f.weights_bytes.get("experts", 0) for f in cut],
        "attention": [f.weights_bytes.get("attention", 0) for f in cut],
        "other weights": [
            f.weights_total
            - f.weights_bytes.get("experts", 0)
            - f.weights_bytes.get("attention", 0)
            for f in cut
        ],
        "KV cache": [f.total_bytes - f.weights_total for f in cut],
    }
    fig, (ax,) = figure(size=(9.0, 4.6))
    said = []
    for k, (name, sizes) in enumerate(lines.items()):
        if min(sizes) <= 0:
            continue
        label = f"{name}  (∝ ranks^{fit_exponent(xs, sizes):.2f})"
        ax.plot(
            xs,
            [s / GIB for s in sizes],
            marker=MARKERS[k % 8],
            color=CYCLE[k % 8],
            lw=3 if k == 0 else 2,
            ms=7,
            label=label,
        )
        said.append(
            f"{label} from {sizes[0] / GIB:.3g} GiB on {xs[0]} to {sizes[-1] / GIB:.3g} on {xs[-1]}"
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(xs, [str(x) for x in xs])
    ax.minorticks_off()
    ax.set_xlabel("ranks")
    ax.set_ylabel("GiB on each rank (forecast)")
    ax.grid(color=LIGHT, lw=0.8)
    key(fig, 3)
    return finish(
        fig,
        "Line chart of forecast memory over ranks: " + "; ".join(said) + ".",
        f"forecast from shapes, {cut[0].dtype}; nothing was measured",
    )

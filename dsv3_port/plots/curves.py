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
from ..messages import tr
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
    note = caption(chosen.records, tr("lines: medians, bands: quartiles"))
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
        ends = {"first": first, "low": xs[0], "last": last, "high": xs[-1]}
        grows = tr("{line} from {first} at {low} to {last} at {high}")
        said.append(label if busy else grows.format(line=label, **ends))
    ticks = sorted({getattr(r, x) for r in chosen})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    _plain_log_ticks(ax, min(r.q1 for r in chosen) * scale, max(r.q3 for r in chosen) * scale)
    ax.set_xlabel(
        {
            "context": tr("tokens in the cache"),
            "tokens": tr("tokens of the prompt"),
            "batch": tr("batch size"),
            "top": tr("experts of each token"),
        }.get(x, x)
    )
    ax.set_ylabel(tr("time per call, {unit}").format(unit=unit))
    ax.grid(color=LIGHT, lw=0.8)
    if on_phone():
        key(fig, 1)
    else:
        ax.legend(loc="best")
    ax.set_title(busy)
    wrap_titles(fig, [ax])
    none = tr("no verdict, {why}").format(why=busy)
    said = [*([none] if busy else []), *said]
    alt = tr("Line chart of time against {x}: {said}.").format(x=x, said="; ".join(said))
    return finish(fig, alt, note)


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
        tr("all"): [f.total_bytes for f in cut],
        tr("routed experts"): [f.weights_bytes.get("experts", 0) for f in cut],
        tr("attention"): [f.weights_bytes.get("attention", 0) for f in cut],
        tr("other weights"): [
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
        falls = tr("{line} from {first:.3g} GiB on {few} to {last:.3g} on {many}")
        ends = {"first": sizes[0] / GIB, "few": xs[0], "last": sizes[-1] / GIB, "many": xs[-1]}
        said.append(falls.format(line=label, **ends))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(xs, [str(x) for x in xs])
    ax.minorticks_off()
    ax.set_xlabel(tr("ranks"))
    ax.set_ylabel(tr("GiB on each rank (forecast)"))
    ax.grid(color=LIGHT, lw=0.8)
    key(fig, 3)
    alt = tr("Line chart of forecast memory over ranks: {said}.").format(said="; ".join(said))
    note = tr("forecast from shapes, {dtype}; nothing was measured").format(dtype=cut[0].dtype)
    return finish(fig, alt, note)

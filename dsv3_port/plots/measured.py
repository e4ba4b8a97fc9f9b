"""Plots of measurements: a step alone, the ladder, cost curves, operator counts. Regressions are
shown as such.

Pictures that hold no timing are in diagrams.py and can be had from here too. Timings of the host
stand-in are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..bench.records import FAIR, PEER, Ratio, Record, Results, seconds_text
from ..errors import PortError
from .forecast import forecast_checks, forecast_ladder, forecast_parts
from .memory import cited_figures, kv_cache_to_scale, memory_bars
from .operators import ge_census, op_census
from .routing import expert_load, group_mask, routing_picture
from .sharding import shard_picture
from .style import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    INK,
    LIGHT,
    MARKERS,
    PAPER,
    SMALL,
    VERMILLION,
    LabFigure,
    caption,
    figure,
    finish,
    save,
    styled,
    title_of,
)

__all__ = [
    "cited_figures",
    "cost_curve",
    "expert_load",
    "fit_exponent",
    "forecast_checks",
    "forecast_ladder",
    "forecast_parts",
    "ge_census",
    "group_mask",
    "kv_cache_to_scale",
    "ladder",
    "memory_bars",
    "op_census",
    "routing_picture",
    "save",
    "shard_picture",
    "step_bars",
]

SPREAD = "bars: medians, whiskers: quartiles"


def _unit(records: Sequence[Record]) -> tuple[float, str]:
    largest = max(r.median for r in records)
    return (1.0, "s") if largest >= 1 else (1e3, "ms") if largest >= 1e-3 else (1e6, "µs")


def _phases(results: Results, phase: str | None) -> list[str]:
    there = list(dict.fromkeys(r.phase for r in results))
    if phase is not None and phase not in there:
        raise PortError(
            f"no record of phase {phase!r}; there are {', '.join(repr(p) for p in there) or 'none'}"
        )
    return (
        [phase]
        if phase is not None
        else sorted(there, key=lambda p: (p != "prefill", p != "decode"))
    )


def _size(record: Record) -> str:
    parts = (
        (record.batch, f"batch {record.batch}"),
        (record.context, f"{record.context} tokens cached"),
        (record.tokens, f"{record.tokens} tokens"),
    )
    return ", ".join(text for value, text in parts if value)


def _label(record: Record) -> str:
    """A graph step's title names torchair; elsewhere than on an NPU it is torch.compile's inductor
    that ran."""
    here = (
        " (here: inductor)" if record.mode == "compiled" and record.tier in ("cpu", "cuda") else ""
    )
    return title_of(record.name) + here


def _bars(
    ax: Axes,
    records: Sequence[Record],
    colours: Sequence[str],
    hatches: Sequence[str],
    labels: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Horizontal bars from the top down, quartiles as whiskers, a note behind each."""
    scale, unit = _unit(records)
    widest = max(r.q3 for r in records) * scale
    for y, (r, colour, hatch, note) in enumerate(
        zip(records, colours, hatches, notes, strict=True)
    ):
        ax.barh(
            y,
            r.median * scale,
            0.72,
            color=colour,
            hatch=hatch,
            edgecolor=PAPER if hatch else colour,
        )
        ax.errorbar(
            r.median * scale,
            y,
            xerr=[[(r.median - r.q1) * scale], [(r.q3 - r.median) * scale]],
            color=INK,
            capsize=3,
            lw=1.3,
        )
        ax.text(r.q3 * scale + 0.015 * widest, y, note, va="center", fontsize=SMALL)
    ax.set_yticks(range(len(records)), labels)
    ax.set_ylim(len(records) - 0.45, -0.55)
    ax.set_xlim(0, widest * 1.42)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(f"time per call, {unit} (shorter is better)")
    ax.grid(axis="x", color=LIGHT, lw=0.8)
    ax.tick_params(axis="y", length=0)


@styled
def step_bars(results: Results, before: str, after: str, phase: str | None = None) -> LabFigure:
    """One step alone: the time before and after, and their paired ratio with its spread, prefill
    and decode apart."""
    phases = [
        p
        for p in _phases(results, phase)
        if {before, after} <= {r.name for r in results if r.phase == p}
    ]
    if not phases:
        raise PortError(
            f"no phase has records of both {before!r} and {after!r}; there are "
            + ", ".join(repr(n) for n in results.names)
        )
    fig, axes = figure(len(phases), 1, (9.0, 1.0 + 1.75 * len(phases)))
    used, said = [], []
    for ax, p in zip(axes, phases, strict=True):
        ratio = results.ratio(before, after, p)
        pair = [results.get(before, p), results.get(after, p)]
        longer = pair[1].median > pair[0].median  # a title that its own bars deny helps nobody
        slower, faster = ratio.high < 1 and longer, ratio.low > 1 and not longer
        word = "slower" if slower else "faster" if faster else "no clear difference"
        shown = 1 / ratio.median if slower else ratio.median
        low, high = sorted((1 / ratio.low, 1 / ratio.high) if slower else (ratio.low, ratio.high))
        text = f"{shown:.2f}× {word}" if word != "no clear difference" else f"{word} ({shown:.2f}×)"
        _bars(
            ax,
            pair,
            [GREY, VERMILLION if slower else BLUE],
            ["", "//" if slower else ""],
            [_label(r) for r in pair],
            [seconds_text(r.median) for r in pair],
        )
        ax.set_title(
            f"{p or 'call'}: {text} [{low:.2f}–{high:.2f}]", color=VERMILLION if slower else INK
        )
        if ax is not axes[-1]:
            ax.set_xlabel("")
        used += pair
        said.append(
            f"{p or 'call'} {text}, {' before, '.join(seconds_text(r.median) for r in pair)} after"
        )
    return finish(
        fig,
        f"Bar chart of {title_of(after)} against {title_of(before)}: {'; '.join(said)}.",
        caption(used, "; ".join(dict.fromkeys(_size(r) for r in used if _size(r)))),
    )


@styled
def ladder(results: Results, phase: str | None = None) -> LabFigure:
    """Cumulative rungs from the top down, prefill and decode in panels of their own, factors
    against the first rung.

    Hatched as a regression: a rung slower than the one before by more than 2 %, with the quartiles
    of the paired ratios on the same side.
    """
    rungs = results.select(lambda r: not r.name.startswith("only "))
    caption(rungs.records)
    phases = _phases(rungs, phase)
    kept = Results([r for p in phases for r in _largest_run(rungs.select(phase=p))])
    names = [[r.name for r in kept if r.phase == p] for p in phases]
    most = max(map(len, names))
    fig, axes = figure(1, len(phases), (4.4 + 3.6 * len(phases), 1.9 + 0.42 * most), sharey=False)
    said = []
    for ax, p in zip(axes, phases, strict=True):
        records = [r for r in kept if r.phase == p]
        colours, hatches, notes = [], [], []
        previous = records[0]
        for r in records:
            ratio = kept.ratio(records[0].name, r.name, p) if r is not records[0] else None
            side = r.name in (FAIR, PEER)
            worse = not side and r is not previous and _slower(kept.ratio(previous.name, r.name, p))
            colours.append(
                GREY
                if side or r is records[0]
                else VERMILLION
                if worse
                else GREEN
                if r.mode == "compiled"
                else BLUE
            )
            hatches.append("//" if worse else "")
            notes.append(seconds_text(r.median) + (f"  {ratio.median:.2f}×" if ratio else ""))
            previous = previous if side else r
            said.append(
                f"{p} {title_of(r.name)} {notes[-1]}"
                + (" slower than the rung before" if worse else "")
            )
        named = ax is axes[0] or names.count(names[0]) < len(names)
        labels = [_label(r) if named else "" for r in records]
        _bars(ax, records, colours, hatches, labels, notes)
        ax.set_title(f"{p or 'call'} ({_size(records[0])})" if _size(records[0]) else p or "call")
    fig.legend(handles=_ladder_key(kept), loc="outside upper center", ncols=4)
    return finish(
        fig,
        "Bar chart of the ladder of porting steps: " + "; ".join(said) + ".",
        caption(kept.records, SPREAD + ", ×: against the first bar, paired by round"),
    )


def _largest_run(results: Results) -> list[Record]:
    """The records of one interleaved run, the one with most variants and of those the newest: only
    they are paired."""
    runs = [r.run for r in results]
    best = max(reversed(runs), key=runs.count)
    return [r for r in results if r.run == best]


def _slower(ratio: Ratio) -> bool:
    return ratio.high < 1 and ratio.median < 0.98


def _ladder_key(results: Results) -> list[Patch]:
    key = [
        Patch(color=GREY, label="for comparison"),
        Patch(color=BLUE, label="port, eager"),
        Patch(
            facecolor=VERMILLION, hatch="//", edgecolor=PAPER, label="slower than the rung before"
        ),
    ]
    if any(r.mode == "compiled" for r in results):
        key.append(Patch(color=GREEN, label="port, compiled"))
    return key


@styled
def cost_curve(
    results: Results, x: str = "context", names: Sequence[str] | None = None
) -> LabFigure:
    """Time against a field of the records ("context", "tokens", "batch"), quartiles as bands,
    logarithmic axes."""
    chosen = results.latest().select(lambda r: names is None or r.name in names)
    note = caption(chosen.records, "lines: medians, bands: quartiles")
    scale, unit = _unit(chosen.records)
    fig, (ax,) = figure(size=(9.0, 4.6))
    said = []
    for k, name in enumerate(chosen.names):
        line = sorted((r for r in chosen if r.name == name), key=lambda r: getattr(r, x))
        xs = [getattr(r, x) for r in line]
        if len(set(xs)) != len(xs):
            raise PortError(
                f"cost_curve: {name!r} has several records with the same {x}; select one phase and size"
            )
        ys = [r.median * scale for r in line]
        ax.fill_between(
            xs,
            [r.q1 * scale for r in line],
            [r.q3 * scale for r in line],
            color=CYCLE[k % 8],
            alpha=0.22,
        )
        label = title_of(name)
        if len(xs) > 2:
            label += f"  (∝ {x}^{fit_exponent(xs, ys):.2f})"
        ax.plot(xs, ys, marker=MARKERS[k % 8], color=CYCLE[k % 8], lw=2, ms=7, label=label)
        said.append(
            f"{label} from {seconds_text(line[0].median)} at {xs[0]} to {seconds_text(line[-1].median)} at "
            f"{xs[-1]}"
        )
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
    ax.legend(loc="best")
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


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """p of the best y = c x^p (least squares of the logarithms): 1 is linear, 0 is independent of
    x."""
    if len(x) != len(y) or len(set(x)) < 2 or min(*x, *y) <= 0:
        raise PortError(
            "fit_exponent needs two different positive x at least, and as many positive y"
        )
    u, v = [math.log(a) for a in x], [math.log(b) for b in y]
    mu, mv = sum(u) / len(u), sum(v) / len(v)
    return sum((a - mu) * (b - mv) for a, b in zip(u, v, strict=True)) / sum(
        (a - mu) ** 2 for a in u
    )

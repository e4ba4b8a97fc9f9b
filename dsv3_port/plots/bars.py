"""Bars of measurements: a step alone, and the ladder. Regressions are shown as such; timings of the
host stand-in are refused."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..bench.records import FAIR, PEER, Ratio, Record, Results
from ..bench.results_table import seconds_text
from ..errors import PortError
from .colours import BLUE, GREEN, GREY, INK, PAPER, SMALL, VERMILLION
from .shapes import name_rows
from .style import LabFigure, caption, figure, finish, styled, title_of

SPREAD = "bars: medians, whiskers: quartiles"


def unit_of(records: Sequence[Record]) -> tuple[float, str]:
    """(factor of seconds, its name) in which the longest of them reads well."""
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
    scale, unit = unit_of(records)
    widest = max(r.q3 for r in records) * scale
    for y, (r, colour, hatch, note) in enumerate(
        zip(records, colours, hatches, notes, strict=True)
    ):
        edge = PAPER if hatch else colour
        ax.barh(y, r.median * scale, 0.72, color=colour, hatch=hatch, edgecolor=edge)
        spread = [[(r.median - r.q1) * scale], [(r.q3 - r.median) * scale]]
        ax.errorbar(r.median * scale, y, xerr=spread, color=INK, capsize=3, lw=1.3)
        ax.text(r.q3 * scale + 0.015 * widest, y, note, va="center", fontsize=SMALL)
    name_rows(ax, labels, grid=True)
    ax.set_xlim(0, widest * 1.42)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(f"time per call, {unit} (shorter is better)")


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
            plain = GREEN if r.mode == "compiled" else BLUE
            colours.append(GREY if side or r is records[0] else VERMILLION if worse else plain)
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

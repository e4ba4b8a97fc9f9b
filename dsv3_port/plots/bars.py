"""Bars of measurements: a step alone, and the ladder. Regressions are shown as such; timings of the
host stand-in are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..bench.outcome import FASTER, SLOWER, outcome
from ..bench.paired import Ratio, busy_text
from ..bench.records import FAIR, PEER, YOURS, Record, Results
from ..bench.results_table import seconds_text
from ..errors import PortError
from ..messages import N_, told, tr
from ..steps import title_of
from .colours import BLUE, GREEN, GREY, INK, PAPER, PURPLE, SMALL, VERMILLION
from .shapes import name_rows
from .style import LabFigure, caption, figure, finish, key, on_phone, two_widths, wrap_titles

# variants of the ladder that are no rungs
ASIDE = {FAIR: GREY, PEER: GREY, YOURS: PURPLE}
SPREAD = N_("first bar: its median; others: that over the paired ratio; whiskers: quartiles")


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
        (record.context, tr("{n} tokens cached").format(n=record.context)),
        (record.tokens, tr("{n} tokens").format(n=record.tokens)),
    )
    return tr(", ").join(text for value, text in parts if value)


def _label(record: Record) -> str:
    """A graph step's title names what an NPU has; elsewhere inductor compiled, or a CUDA graph was
    captured."""
    here = {
        "compiled": "inductor",
        "captured": "CUDA graph",
        "compiled-captured": tr("inductor in a CUDA graph"),
    }
    what = here.get(record.mode) if record.tier in ("cpu", "cuda") else None
    of_here = tr(" (here: {what})").format(what=what)
    return title_of(record.name) + (of_here if what else "")


@dataclass(frozen=True)
class Bar:
    """Seconds of one variant as drawn: its base's median over the paired ratio, so that bar and
    factor are one statistic; a variant's own median stands in the table."""

    record: Record
    seconds: float
    low: float
    high: float
    colour: str
    note: str
    hatch: str = ""


def _bar(
    base: Record, record: Record, ratio: Ratio | None, colour: str, note: str = "", hatch: str = ""
) -> Bar:
    """`ratio`: of base to record, None for the base itself. Busy records are grey and hatched, and
    say no factor."""
    m = base.median
    spread = (
        (m, base.q1, base.q3)
        if ratio is None
        else (m / ratio.median, m / ratio.high, m / ratio.low)
    )
    if record.busy:
        return Bar(record, *spread, GREY, "", "..")
    return Bar(record, *spread, colour, f"{seconds_text(spread[0])}{note}", hatch)


def _draw(ax: Axes, bars: Sequence[Bar], labels: Sequence[str]) -> None:
    """Horizontal bars from the top down, quartiles as whiskers, a note behind each."""
    scale, unit = unit_of([b.record for b in bars])
    widest = max(b.high for b in bars) * scale
    for y, b in enumerate(bars):
        edge = PAPER if b.hatch else b.colour
        ax.barh(y, b.seconds * scale, 0.72, color=b.colour, hatch=b.hatch, edgecolor=edge)
        spread = [[(b.seconds - b.low) * scale], [(b.high - b.seconds) * scale]]
        ax.errorbar(b.seconds * scale, y, xerr=spread, color=INK, capsize=3, lw=1.3)
        ax.text(b.high * scale + 0.015 * widest, y, b.note, va="center", fontsize=SMALL)
    name_rows(ax, labels, grid=True)
    ax.set_xlim(0, widest * 1.42)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(tr("time per call, {unit} (shorter is better)").format(unit=unit))


@two_widths
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
    used: list[Record] = []
    said: list[str] = []
    for ax, p in zip(axes, phases, strict=True):
        found = outcome(results, before, after, p)
        pair = results.pair(before, after, p)
        slower = found.word == SLOWER
        colour, hatch = (
            (VERMILLION, "//") if slower else (BLUE if found.word == FASTER else GREY, "")
        )
        bars = [
            _bar(pair[0], pair[0], None, GREY),
            _bar(pair[0], pair[1], found.ratio, colour, hatch=hatch),
        ]
        _draw(ax, bars, [_label(r) for r in pair])
        phase_name = p or tr("call")
        ax.set_title(f"{phase_name}: {found.factor}", color=VERMILLION if slower else INK)
        if ax is not axes[-1]:
            ax.set_xlabel("")
        used += pair
        one = tr("{phase} {factor}, {before} before, {after} after") if not found.busy else ""
        none = tr("{phase} {factor}, not said")
        notes = {"before": bars[0].note, "after": bars[1].note}
        said.append((one or none).format(phase=phase_name, factor=found.factor, **notes))
    wrap_titles(fig, axes)
    alt = tr("Bar chart of {after} against {before}: {said}.")
    return finish(
        fig,
        alt.format(after=title_of(after), before=title_of(before), said="; ".join(said)),
        caption(used, "; ".join(dict.fromkeys(_size(r) for r in used if _size(r)))),
    )


@two_widths
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
    said: list[str] = []
    for ax, p in zip(axes, phases, strict=True):
        records = [r for r in kept if r.phase == p]
        bars = _rungs(kept, records)
        said += [_said(b) for b in bars]
        named = on_phone() or ax is axes[0] or names.count(names[0]) < len(names)
        _draw(ax, bars, [_label(r) if named else "" for r in records])
        busy = busy_text(records)
        phase_name = p or tr("call")
        title = f"{phase_name} ({_size(records[0])})" if _size(records[0]) else phase_name
        ax.set_title(f"{title}\n{busy}" if busy else title)
    key(fig, 4, handles=_ladder_key(kept))
    wrap_titles(fig, axes)
    alt = tr("Bar chart of the ladder of porting steps: {said}.").format(said="; ".join(said))
    factor = tr("×: against the first bar, paired by round")
    note = tr("{spread}, {factor}").format(spread=told(SPREAD), factor=factor)
    return finish(fig, alt, caption(kept.records, note))


def _largest_run(results: Results) -> list[Record]:
    """The records of one interleaved run, the one with most variants and of those the newest: only
    they are paired."""
    runs = [r.run for r in results]
    best = max(reversed(runs), key=runs.count)
    return [r for r in results if r.run == best]


def _rungs(kept: Results, records: Sequence[Record]) -> list[Bar]:
    """One phase's bars; a rung is worse where it is slower than the rung before it."""
    first = previous = records[0]
    bars = [_bar(first, first, None, GREY)]
    for r in records[1:]:
        side = r.name in ASIDE
        worse = not side and outcome(kept, previous.name, r.name, r.phase).word == SLOWER
        plain = BLUE if r.mode == "eager" else GREEN
        colour = ASIDE.get(r.name, VERMILLION if worse else plain)
        ratio = kept.ratio(first.name, r.name, r.phase)
        bars.append(_bar(first, r, ratio, colour, f"  {ratio.median:.2f}×", "//" if worse else ""))
        previous = previous if side else r
    return bars


def _said(bar: Bar) -> str:
    worse = " " + tr("slower than the rung before") if bar.hatch == "//" else ""
    note = bar.note or tr("busy")
    return f"{bar.record.phase} {title_of(bar.record.name)} {note}{worse}"


def _ladder_key(results: Results) -> list[Patch]:
    if results.busy:
        return [Patch(facecolor=GREY, hatch="..", edgecolor=PAPER, label=tr("busy: no verdict"))]
    patches = [
        Patch(color=GREY, label=tr("for comparison")),
        Patch(color=BLUE, label=tr("port, eager")),
        Patch(
            facecolor=VERMILLION,
            hatch="//",
            edgecolor=PAPER,
            label=tr("slower than the rung before"),
        ),
    ]
    if any(r.mode != "eager" for r in results):
        patches.append(Patch(color=GREEN, label=tr("port, as a graph")))
    if YOURS in results.names:
        patches.append(Patch(color=PURPLE, label=tr("with your functions")))
    return patches

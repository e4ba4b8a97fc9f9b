"""Many variants against one: paired ratios with their spread, prefill and decode apart."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..bench.outcome import FASTER, SLOWER, outcome
from ..bench.records import Results
from ..errors import PortError
from ..messages import tr
from ..steps import title_of
from .colours import BLUE, GREY, INK, LIGHT, SMALL, VERMILLION
from .shapes import name_rows
from .style import LabFigure, caption, figure, finish, on_phone, two_widths, wrap_titles

MARKS = {FASTER: (BLUE, "o"), SLOWER: (VERMILLION, "s")}


@two_widths
def ratio_chart(results: Results, base: str, names: Sequence[str] | None = None) -> LabFigure:
    """How many times faster than `base` each variant is, from one interleaved run: right of 1
    faster, left slower.

    Points are medians of the paired ratios, lines their quartiles; only what stays off the grey band, the
    noise floor of the same run, is a difference.
    """
    phases = sorted({r.phase for r in results}, key=lambda p: (p != "prefill", p))
    if not phases:
        raise PortError("there are no records to draw; measure first")
    shown = [n for n in (names if names is not None else results.names) if n != base]
    fig, axes = figure(1, len(phases), (4.4 + 3.4 * len(phases), 1.7 + 0.42 * len(shown)))
    said = []
    for ax, phase in zip(axes, phases, strict=True):
        found = [outcome(results, base, name, phase) for name in shown]
        ratios, floor = [o.ratio for o in found], max((o.floor for o in found), default=0.0)
        low = min([r.low for r in ratios] + [1.0])
        high = max([r.high for r in ratios] + [1.0])
        pad = max(0.04, 0.08 * (high - low))
        ax.axvspan(1 / (1 + floor), 1 + floor, color=LIGHT, lw=0)
        for y, o in enumerate(found):
            r = o.ratio
            colour, marker = MARKS.get(o.word, (GREY, "D"))
            ax.plot([r.low, r.high], [y, y], color=colour, lw=3, solid_capstyle="round")
            ax.plot(r.median, y, marker=marker, color=colour, ms=9)
            note = "" if o.busy else f" {r.median:.2f}×"
            ax.text(r.high + 0.25 * pad, y, note, va="center", fontsize=SMALL, color=INK)
            said.append(f"{phase} {title_of(o.after)} {o.factor}")
        ax.axvline(1.0, color=INK, lw=1.2)
        ax.set_xlim(low - pad, high + pad + 0.22 * (high - low + 2 * pad))
        labels = [title_of(n) if on_phone() or ax is axes[0] else "" for n in shown]
        name_rows(ax, labels, 0.6, 0.4, grid=True)
        busy = next((o.busy for o in found if o.busy), "")
        name = phase or tr("call")
        ax.set_title(f"{name}\n{busy}" if busy else name)
        ax.set_xlabel(tr("times faster than\n{base}").format(base=title_of(base)))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    wrap_titles(fig, axes)
    used = [r for r in results if r.name in (base, *shown)]
    alt = tr("Points of paired ratios against {base}: {said}.")
    note = tr(
        "points: medians of paired ratios, lines: quartiles; blue faster, red squares slower, "
        "grey diamonds neither; grey band: the same code timed twice"
    )
    said_of = alt.format(base=title_of(base), said="; ".join(said))
    return finish(fig, said_of, caption(used, note))

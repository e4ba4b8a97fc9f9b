"""Many variants against one: paired ratios with their spread, prefill and decode apart."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..bench.records import Results
from ..errors import PortError
from .colours import BLUE, GREY, INK, SMALL, VERMILLION
from .shapes import name_rows
from .style import LabFigure, caption, figure, finish, styled, title_of


@styled
def ratio_chart(results: Results, base: str, names: Sequence[str] | None = None) -> LabFigure:
    """How many times faster than `base` each variant is, from one interleaved run: right of 1
    faster, left slower.

    Points are medians of the paired ratios, lines their quartiles; only a line that stays off 1 is
    a difference.
    """
    phases = sorted({r.phase for r in results}, key=lambda p: (p != "prefill", p))
    if not phases:
        raise PortError("there are no records to draw; measure first")
    shown = [n for n in (names if names is not None else results.names) if n != base]
    fig, axes = figure(1, len(phases), (4.4 + 3.4 * len(phases), 1.7 + 0.42 * len(shown)))
    said = []
    for ax, phase in zip(axes, phases, strict=True):
        ratios = [results.ratio(base, name, phase) for name in shown]
        low = min([r.low for r in ratios] + [1.0])
        high = max([r.high for r in ratios] + [1.0])
        pad = max(0.04, 0.08 * (high - low))
        for y, (name, r) in enumerate(zip(shown, ratios, strict=True)):
            faster, slower = r.low > 1, r.high < 1
            colour, marker = (BLUE, "o") if faster else (VERMILLION, "s") if slower else (GREY, "D")
            ax.plot([r.low, r.high], [y, y], color=colour, lw=3, solid_capstyle="round")
            ax.plot(r.median, y, marker=marker, color=colour, ms=9)
            ax.text(
                r.high + 0.25 * pad, y, f" {r.median:.2f}×", va="center", fontsize=SMALL, color=INK
            )
            word = "faster" if faster else "slower" if slower else "no clear difference"
            said.append(f"{phase} {title_of(name)} {r.median:.2f}, {word}")
        ax.axvline(1.0, color=INK, lw=1.2)
        ax.set_xlim(low - pad, high + pad + 0.22 * (high - low + 2 * pad))
        labels = [title_of(n) if ax is axes[0] else "" for n in shown]
        name_rows(ax, labels, 0.6, 0.4, grid=True)
        ax.set_title(phase or "call")
        ax.set_xlabel(f"times faster than\n{title_of(base)}")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    used = [r for r in results if r.name in (base, *shown)]
    return finish(
        fig,
        f"Points of paired ratios against {title_of(base)}: " + "; ".join(said) + ".",
        caption(
            used,
            "points: medians of paired ratios, lines: quartiles; blue faster, red squares slower, "
            "grey diamonds no clear difference",
        ),
    )

"""A decode step on a GPU, kernel by kernel from the host, captured, compiled, and both."""

from __future__ import annotations

from collections.abc import Sequence

from ..bench.rungs import NAMES, Rungs, span_text
from ..errors import PortError
from ..messages import sentences, told, tr
from .colours import BLUE, GREEN, GREY, ORANGE, PURPLE, SMALL
from .shapes import name_rows
from .style import LabFigure, figure, finish, styled, wrap_titles

_COLOURS = dict(zip(NAMES, (BLUE, ORANGE, GREEN, PURPLE), strict=True))


@styled
def graph_rungs(found: Sequence[Rungs], batch: int = 1) -> LabFigure:
    """A panel for each case of one batch size, from bench.rungs.recorded_rungs; a bar for each rung,
    its lighter end the slower of what was seen, and the bound below them."""
    chosen = [r for r in found if r.phase == "decode" and r.batch == batch]
    if not chosen:
        raise PortError(f"no decode step with batch {batch} is recorded on a GPU")
    fig, axes = figure(1, len(chosen), (4.6 * len(chosen), 4.6))
    said = []
    for k, (ax, rungs) in enumerate(zip(axes, chosen, strict=True)):
        names = [n for n in NAMES if n in rungs.seconds]
        eager = rungs.seconds[names[0]][0]
        longest = max(high for _, high in rungs.seconds.values())
        for y, name in enumerate(names):
            low, high = rungs.seconds[name]
            ax.barh(y, high, 0.7, color=_COLOURS[name], alpha=0.45)
            ax.barh(y, low, 0.7, color=_COLOURS[name])
            worst, best = f"{eager / high:.1f}", f"{eager / low:.1f}"
            factor = f"  {worst if worst == best else f'{worst}–{best}'}×" if y else ""
            ax.text(
                high + 0.02 * longest, y, span_text(low, high) + factor, va="center", fontsize=SMALL
            )
        ax.barh(len(names), rungs.bound, 0.7, facecolor="white", edgecolor=GREY, hatch="//")
        reached = tr("{time}, {share:.0%} reached")
        text = reached.format(time=span_text(rungs.bound, rungs.bound), share=rungs.share)
        ax.text(rungs.bound + 0.02 * longest, len(names), text, va="center", fontsize=SMALL)
        rows = [*map(told, names), tr("the device's bound")]
        name_rows(ax, rows if k == 0 else [""] * len(rows))
        ax.set_xlim(0, 1.5 * longest)
        ax.set_xticks([])
        ax.set_title(told(rungs.what))
        row = tr("{what}: {rungs}, {bound} of the bound")
        each = tr(", ").join(f"{told(n)} {span_text(*rungs.seconds[n])}" for n in names)
        said.append(row.format(what=told(rungs.what), rungs=each, bound=text))
    wrap_titles(fig, axes)
    title = tr("Recorded on a GPU: a step's launches taken away")
    if any(r.experiment for r in chosen):
        title = tr("EXPERIMENT on a GPU: a step's launches taken away")
    where = tr("; ").join(sorted({r.where for r in chosen}))
    return finish(
        fig,
        sentences(tr("; ").join(said)),
        sentences(tr("Times faster than eager behind each bar."), where),
        title=title,
    )

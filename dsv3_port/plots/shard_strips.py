"""The picture that opens 01: one MLP over two ranks, a column cut, a row cut, and one sum."""

from __future__ import annotations

from matplotlib.axes import Axes

from ..messages import tr
from .colours import BLUE, GREY, INK, LIGHT, NORMAL, ORANGE, SMALL
from .shapes import arrow, box, centred
from .style import LabFigure, figure, finish, styled

_RANKS = ((BLUE, "rank 0"), (ORANGE, "rank 1"))
_TALL, _WIDE = 4.0, 1.9  # the width I as a height; H as a width


def _name(ax: Axes, x: float, width: float, name: str, below: str) -> None:
    centred(ax, x + width / 2, -0.35, name, NORMAL, fontweight="bold")
    ax.text(x + width / 2, _TALL + 0.2, below, ha="center", va="top", fontsize=SMALL, color=GREY)


def _rows(ax: Axes, x: float, width: float) -> None:
    """Each rank a part of the height: outputs, one below the other."""
    for k, (colour, rank) in enumerate(_RANKS):
        box(ax, x, k * _TALL / 2, width, _TALL / 2, colour, rank, NORMAL, lw=2)


def _columns(ax: Axes, x: float, width: float) -> None:
    """Each rank a part of the width: inputs, side by side."""
    for k, (colour, rank) in enumerate(_RANKS):
        place = (x + k * width / 2, _TALL / 2 - 0.7, width / 2, 1.4)
        box(ax, *place, colour, rank, NORMAL, lw=2)


@styled
def shard_strips() -> LabFigure:
    """x through gate and up (cut by outputs) and down (cut by inputs) on two ranks, and the sum."""
    fig, (ax,) = figure(1, 1, (12.0, 4.9))
    middle = _TALL / 2
    box(ax, 0, middle - 0.7, 0.9, 1.4, LIGHT, "x", NORMAL, edgecolor=GREY)
    _name(ax, 0, 0.9, tr("input"), tr("whole on\nboth ranks"))
    _rows(ax, 1.7, _WIDE)
    _name(
        ax, 1.7, _WIDE, "gate_proj, up_proj", tr("column cut: each rank\nsome outputs, all inputs")
    )
    _rows(ax, 4.4, 0.9)
    _name(ax, 4.4, 0.9, "SwiGLU", tr("each output\nby itself"))
    _columns(ax, 6.1, 2.6)
    _name(ax, 6.1, 2.6, "down_proj", tr("row cut: each rank\nits own inputs, all outputs"))
    for k, (colour, _) in enumerate(_RANKS):
        box(ax, 9.5, middle - 1.55 + k * 1.7, 1.2, 1.4, colour, tr("partial\nsum"), NORMAL, lw=2)
    _name(ax, 9.5, 1.2, tr("partial sums"), tr("each of\nall outputs"))
    centred(ax, 11.5, middle, "+", 30, color=INK, fontweight="bold")
    centred(ax, 11.5, middle + 0.65, "all-reduce", SMALL, fontweight="bold")
    box(ax, 12.3, middle - 0.7, 0.9, 1.4, LIGHT, "y", NORMAL, edgecolor=GREY)
    _name(ax, 12.3, 0.9, tr("output"), tr("whole on\nboth ranks"))
    for start, end in ((0.95, 1.65), (3.65, 4.35), (5.35, 6.05), (8.75, 9.45), (10.75, 11.2)):
        arrow(ax, (start, middle), (end, middle), GREY)
    arrow(ax, (11.8, middle), (12.25, middle), GREY)
    ax.set_xlim(-0.5, 13.5)
    ax.set_ylim(_TALL + 1.1, -0.7)
    ax.axis("off")
    alt = tr(
        "One MLP over two ranks. The input is whole on both. gate_proj and up_proj are cut by outputs, one "
        "half of the rows a rank; SwiGLU works on each output by itself; down_proj is cut by inputs, one half "
        "of the columns a rank, so that each rank gets a partial sum of every output. One all-reduce adds the "
        "two partial sums, and the output is whole on both ranks."
    )
    note = tr(
        "Drawn, not measured. Weights are [out, in]; a colour is what one rank holds and computes."
    )
    return finish(fig, alt, note)

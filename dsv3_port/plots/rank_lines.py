"""The picture that opens 09: a decode step of two ranks in time, two sums a layer, and who waits."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ..errors import PortError
from ..messages import N_, told, tr
from .colours import BLUE, GREEN, GREY, INK, NORMAL, ORANGE, SMALL
from .shapes import box, centred
from .style import LabFigure, figure, finish, styled

_HIGH, _COLLECTIVE, _GATHER = 0.9, 0.35, 0.6
_BLOCKS = (N_("attention"), N_("MLP or\nexperts"))
# how long a block takes on each rank, drawn uneven: no two processes are equally fast all the time
_LENGTHS = ((1.5, 1.2), (1.3, 1.8), (1.6, 1.3), (1.2, 1.5))


def _wait(ax: Axes, x: float, y: float, length: float) -> None:
    if length > 0:
        box(ax, x, y, length, _HIGH, "white", edgecolor=GREY, hatch="///", lw=0.8)


@styled
def rank_lines(layers: int = 2) -> LabFigure:
    """Time lines of two ranks through `layers` layers: compute, wait for the slower one, sum; then the
    gather of the logits. PortError for more layers than it can draw."""
    if not 1 <= layers <= len(_LENGTHS) // 2:
        raise PortError(f"rank_lines draws 1 or {len(_LENGTHS) // 2} layers, not {layers}")
    fig, (ax,) = figure(1, 1, (12.0, 3.7))
    time = _together(ax, 0.0, (N_("lookup"),), ((0.8, 0.6),), ORANGE)
    for layer in range(layers):
        start = time
        blocks = _LENGTHS[2 * layer : 2 * layer + 2]
        time = _together(ax, time, _BLOCKS, blocks, ORANGE)
        ax.annotate(
            "", (start, -0.25), (time, -0.25), arrowprops={"arrowstyle": "<->", "color": GREY}
        )
        name = tr("layer {n}").format(n=layer)
        centred(ax, (start + time) / 2, -0.5, name, NORMAL, fontweight="bold")
    time = _together(ax, time, (N_("head"),), ((1.0, 0.8),), GREEN)
    for rank in (0, 1):
        ax.text(-0.2, rank * 1.3 + _HIGH / 2, f"rank {rank}", ha="right", va="center")
    ax.annotate("", (time, 2.55), (0, 2.55), arrowprops={"arrowstyle": "-|>", "color": INK})
    ax.text(time, 2.7, tr("time of one decode step"), ha="right", va="top", fontsize=SMALL)
    ax.set_xlim(-1.1, time + 0.1)
    ax.set_ylim(3.0, -0.8)
    ax.axis("off")
    key = [
        Patch(facecolor=BLUE, label=tr("computes its part")),
        Patch(facecolor="white", edgecolor=GREY, hatch="///", label=tr("waits for the other rank")),
        Patch(facecolor=ORANGE, label=tr("all-reduce: sum of [B, S, H]")),
        Patch(facecolor=GREEN, label=tr("all-gather: V/W logits of each")),
    ]
    fig.legend(handles=key, loc="outside upper center", ncols=4)
    alt = tr(
        "Time lines of two ranks in one decode step of {layers} layers. An all-reduce follows the lookup of "
        "the token and each attention and MLP block, two a layer; it begins when the slower rank arrives, and "
        "the other one waits. One all-gather of the logits ends the step."
    )
    note = tr("Drawn, not measured. A collective starts when the last rank is there.")
    return finish(fig, alt.format(layers=layers), note)


def _together(
    ax: Axes,
    time: float,
    names: tuple[str, ...],
    lengths: tuple[tuple[float, float], ...],
    colour: str,
) -> float:
    """Blocks on both ranks, each followed by its collective; returns when the last one is done."""
    after = _GATHER if colour == GREEN else _COLLECTIVE
    for name, both in zip(map(told, names), lengths, strict=True):
        longest = max(both)
        for rank, length in enumerate(both):
            y = rank * 1.3
            box(ax, time, y, length, _HIGH, BLUE, name if length > 0.55 else "", SMALL, lw=1)
            _wait(ax, time + length, y, longest - length)
        box(ax, time + longest, 0, after, 1.3 + _HIGH, colour, lw=1)
        time += longest + after
    return time

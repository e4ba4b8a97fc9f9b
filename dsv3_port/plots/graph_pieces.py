"""The picture that opens 07: one launch in place of many, and the line that takes it away."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from ..messages import tr
from .colours import BLUE, GREEN, GREY, INK, LARGE, LIGHT, NORMAL, ORANGE, SMALL, VERMILLION
from .lanes import Lane, run_lanes
from .shapes import box, centred
from .style import LabFigure, figure, finish, styled

_LINES = (
    ("key = torch.arange(keys)", False),
    ("start = int(slot[0])", True),
    ("visible = key <= start", False),
    ("hidden = layers(…)", False),
    ("logits = lm_head(hidden)", False),
)
_FREE = "start = slot.unsqueeze(1)"  # the same line without the question


@styled
def graph_pieces(operators: int = 6, launch: float = 2.0, kernel: float = 0.8) -> LabFigure:
    """A decode step of `operators` kernels, launched one by one and as one graph, in the unit of
    `launch` and `kernel`, an illustration; below, the step's lines with and without a question to
    the host."""
    eager = run_lanes(operators, launch, kernel)
    graph = run_lanes(operators, launch, kernel, graph=True)
    fig, axes = figure(2, 2, (11.5, 5.6), gridspec_kw={"height_ratios": [1, 1.5]})
    titles = tr("eager: {n} launches"), tr("as one graph: {n} launch")
    for ax, lane, title in zip(axes[:2], (eager, graph), titles, strict=True):
        ax.set_title(title.format(n=len(lane.host)), fontsize=LARGE)
        _lanes(ax, lane, eager.end)
    axes[2].set_title(tr("asks for nothing: one graph"), fontsize=LARGE)
    axes[3].set_title(tr("asks for one number: pieces"), fontsize=LARGE)
    _code(axes[2], asks=False)
    _code(axes[3], asks=True)
    alt = tr(
        "A decode step of {n} operators. Eager: the host launches each, and the device waits {eager:g} "
        "between kernels. As one graph: one launch, and the device waits {graph:g}. Below, the lines of a "
        "step: without a question to the host all of them are one graph; with {line} there is a graph "
        "before it, Python at that line, and a graph behind it."
    )
    values = {"n": operators, "eager": eager.waited, "graph": graph.waited, "line": _LINES[1][0]}
    return finish(fig, alt.format(**values), tr("Drawn, not measured; no unit of time."))


def _lanes(ax: Axes, lane: Lane, whole: float) -> None:
    for y, (name, spans, colour) in enumerate(
        (("host", lane.host, ORANGE), ("device", lane.device, BLUE))
    ):
        ax.text(-0.3, y + 0.35, name, ha="right", va="center", fontsize=NORMAL, color=INK)
        for a, b in spans:
            box(ax, a, y, b - a, 0.7, colour, lw=1.2)
    last = lane.device[0][1]
    for a, b in lane.device[1:]:
        if a - last > 1e-9:
            look: dict[str, Any] = {"hatch": "//", "edgecolor": GREY, "lw": 0.6}
            box(ax, last, 1, a - last, 0.7, "white", **look)
        last = b
    ax.text(lane.end + 0.2, 1.35, tr("done"), va="center", fontsize=SMALL, color=INK)
    ax.set_xlim(-2.2, whole + 1.4)
    ax.set_ylim(1.9, -0.1)
    ax.axis("off")


def _code(ax: Axes, asks: bool) -> None:
    for y, (text, question) in enumerate(_LINES):
        red = asks and question
        box(ax, 0, y, 6.4, 0.86, VERMILLION if red else LIGHT, lw=1.2)
        line = text if asks or not question else _FREE
        look: dict[str, Any] = {"color": "white", "fontweight": "bold"} if red else {"color": INK}
        ax.text(0.2, y + 0.43, line, va="center", fontsize=NORMAL, family="monospace", **look)
    at = next(y for y, (_, question) in enumerate(_LINES) if question)
    end = len(_LINES)
    graph, whole = tr("graph"), tr("one graph")
    parts = [(0, at, graph), (at, at + 1, "Python"), (at + 1, end, graph)]
    for start, stop, name in parts if asks else [(0, end, whole)]:
        colour = VERMILLION if name == "Python" else GREEN
        box(ax, 6.6, start, 0.28, stop - start - 0.14, colour)
        centred(ax, 7.85, (start + stop - 0.14) / 2, name, NORMAL, color=INK)
    ax.set_xlim(-0.1, 9.0)
    ax.set_ylim(end, -0.15)
    ax.axis("off")

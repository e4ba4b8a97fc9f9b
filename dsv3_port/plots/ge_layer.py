"""A picture of one decoder layer of a converted GE graph, drawn with matplotlib alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from matplotlib.patches import FancyBboxPatch, Patch

from ..ge.flow import Box, collapsed
from ..hostnpu.ge import Graph
from ..messages import N_, told, tr
from .colours import BLUE, GREEN, GREY, INK, LIGHT, ORANGE, PURPLE, SKY, VERMILLION, YELLOW, ink_on
from .shapes import centred
from .style import LabFigure, figure, finish, styled

COLOURS = {
    "matmul": BLUE,
    "attention": ORANGE,
    "norm": GREEN,
    "gate": YELLOW,
    "routing": PURPLE,
    "cache": VERMILLION,
    "ranks": GREY,
    "arithmetic": SKY,
    "moves": LIGHT,
}
_SAID = (
    *(N_("matmul"), N_("attention"), N_("norm"), N_("gate"), N_("routing"), N_("cache")),
    *(N_("between ranks"), N_("arithmetic"), N_("moves")),
)
_NAMES = dict(zip(COLOURS, _SAID, strict=True))
_TEXT, _WIDTH, _HEIGHT = 8.5, 0.92, 0.6  # of a box, in units of the grid


@dataclass(eq=False)
class _Point:
    """A box, or (box None) a place where a line passes a row."""

    row: int
    box: Box | None
    above: list[_Point] = field(default_factory=list)
    below: list[_Point] = field(default_factory=list)
    x: float = 0.0

    @property
    def width(self) -> float:
        return 1.0 if self.box else 0.22


@styled
def layer_picture(graph: Graph, layer: int = 1, title: str = "") -> LabFigure:
    """Data flows downwards; a box is one operator, or all small ones between two of those. Weights
    are not drawn."""
    boxes = collapsed(graph, layer)
    rows = _rows(boxes)
    _order(rows)
    wide = max(sum(p.width for p in row) for row in rows)
    fig, (ax,) = figure(size=(max(7.5, 1.7 * wide + 0.6), 1.8 + 0.62 * len(rows)))
    look: dict[str, Any]
    for point in (p for row in rows for p in row):
        x, y = point.x, -point.row
        for end in point.above:
            look = {"color": INK, "lw": 1.0, "alpha": 0.55, "zorder": 1}
            ax.plot([end.x, x], [-end.row, y], solid_capstyle="round", **look)
        if point.box:
            colour = COLOURS[point.box.kind]
            corner, shape = (x - _WIDTH / 2, y - _HEIGHT / 2), "round,pad=0.02,rounding_size=0.08"
            look = {"facecolor": colour, "lw": 0, "boxstyle": shape, "zorder": 2}
            ax.add_patch(FancyBboxPatch(corner, _WIDTH, _HEIGHT, **look))
            look = {"color": ink_on(colour), "zorder": 3, "linespacing": 0.95}
            centred(ax, x, y, point.box.label, _TEXT, **look)
    ax.set(xlim=(-wide / 2 - 0.1, wide / 2 + 0.1), ylim=(-len(rows) + 0.4, 0.5))
    ax.set_axis_off()
    used = [k for k in COLOURS if any(b.kind == k for b in boxes)]
    fig.legend(
        handles=[Patch(color=COLOURS[k], label=told(_NAMES[k])) for k in used],
        loc="outside lower left",
        ncols=min(5, len(used)),
    )
    count = sum(len(b.nodes) for b in boxes)
    alt = tr("Data flow of decoder layer {layer} of a GE graph: {boxes}.")
    head = tr("Layer {layer} of {graph}: {n} operators")
    return finish(
        fig,
        alt.format(layer=layer, boxes=tr(", ").join(b.label.replace("\n", " ") for b in boxes)),
        title=told(title) or head.format(layer=layer, graph=graph.name, n=count),
    )


def _rows(boxes: list[Box]) -> list[list[_Point]]:
    """Boxes by the longest way to them; a line that passes a row has a place of its own there."""
    points: list[_Point] = []
    for box in boxes:
        points.append(_Point(1 + max((points[b].row for b in box.after), default=-1), box))
    rows: list[list[_Point]] = [[] for _ in range(1 + max(p.row for p in points))]
    for point, box in zip(points, boxes, strict=True):
        rows[point.row].append(point)
        for before in sorted(box.after):
            last = points[before]
            for row in range(last.row + 1, point.row + 1):
                here = point if row == point.row else _Point(row, None)
                here.above.append(last)
                last.below.append(here)
                if here is not point:
                    rows[row].append(here)
                last = here
    return rows


def _order(rows: list[list[_Point]]) -> None:
    """Each row in the order of where its lines come from and go to (barycentres, a few sweeps),
    around the middle."""
    for sweep in range(6):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            ends = {id(p): p.above if down else p.below for p in row}
            row.sort(
                key=lambda p: (
                    sum(e.x for e in ends[id(p)]) / len(ends[id(p)]) if ends[id(p)] else p.x
                )
            )
            left = -sum(p.width for p in row) / 2
            for point in row:
                point.x = left + point.width / 2
                left += point.width

"""The picture that opens 05: gate and up over two ranks, cut before they are merged and after."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from ..messages import N_, told, tr
from .colours import BLUE, GREY, LARGE, NORMAL, ORANGE, SKY, VERMILLION, YELLOW
from .shapes import arrow, box, centred
from .style import LabFigure, figure, finish, styled

_WIDE, _HALF = 1.7, 1.0  # of a strip; the height of one rank's part
# gate for rank 0, for rank 1, up for rank 0, for rank 1
_PARTS = {"g0": BLUE, "g1": SKY, "u0": ORANGE, "u1": YELLOW}
_NAMES = {
    "g0": N_("gate, first"),
    "g1": N_("gate, second"),
    "u0": N_("up, first"),
    "u1": N_("up, second"),
}


def _strip(ax: Axes, x: float, y: float, parts: tuple[str, ...], title: str) -> None:
    """Parts from the top down, and the name above them."""
    for k, part in enumerate(parts):
        box(ax, x, y + k * _HALF, _WIDE, _HALF, _PARTS[part], told(_NAMES[part]), lw=1.5)
    centred(ax, x + _WIDE / 2, y - 0.25, title, NORMAL)


def _ranks(ax: Axes, x: float, ranks: tuple[tuple[str, str], ...]) -> None:
    """What each rank holds, and what npu_swiglu makes of it."""
    for rank, parts in enumerate(ranks):
        y = rank * 2.9
        _strip(ax, x, y, parts, f"rank {rank}")
        a, b = (("gate", "up")[p[0] == "u"] for p in parts)
        right = a == "gate" and b == "up" and parts[0][1] == parts[1][1]
        text = f"SiLU({a}) · {b}" + ("" if right else "\n" + tr("wrong numbers"))
        style: dict[str, Any] = (
            {"color": GREY} if right else {"color": VERMILLION, "fontweight": "bold"}
        )
        ax.text(x + _WIDE + 0.15, y + _HALF, text, va="center", fontsize=NORMAL, **style)


@styled
def merge_strips() -> LabFigure:
    """Cut, then merge, beside merge, then cut: the rows that each of two ranks holds."""
    fig, axes = figure(1, 2, (12.0, 5.2))
    left, right = axes
    left.set_title(tr("cut, then merge"), loc="left", fontsize=LARGE, fontweight="bold")
    right.set_title(tr("merge, then cut"), loc="left", fontsize=LARGE, fontweight="bold")
    _strip(left, 0, 0, ("g0", "g1"), "gate_proj")
    _strip(left, 0, 2.9, ("u0", "u1"), "up_proj")
    for y in (_HALF, 2.9 + _HALF):
        left.plot([-0.1, _WIDE + 0.1], [y, y], color="black", lw=2, linestyle="--")
    _ranks(left, 3.0, (("g0", "u0"), ("g1", "u1")))
    _strip(right, 0, 0.95, ("g0", "g1", "u0", "u1"), "[gate | up]")
    right.plot([-0.1, _WIDE + 0.1], [2.95, 2.95], color="black", lw=2, linestyle="--")
    _ranks(right, 3.0, (("g0", "g1"), ("u0", "u1")))
    for ax in axes:
        arrow(ax, (_WIDE + 0.2, 2.45), (2.85, 2.45), GREY)
        ax.set_xlim(-0.2, 7.0)
        ax.set_ylim(5.1, -0.6)
        ax.axis("off")
    alt = tr(
        "Rows of gate and up over two ranks. Cut, then merge: rank 0 holds the first half of gate over the "
        "first half of up, rank 1 the second halves; npu_swiglu computes SiLU of gate times up. Merge, then "
        "cut: rank 0 holds all of gate, rank 1 all of up; npu_swiglu multiplies gate by gate and up by up. "
        "Every shape is the same."
    )
    note = tr(
        "Drawn, not measured. Dashed: the cut. npu_swiglu takes SiLU of a rank's upper half, times the lower."
    )
    return finish(fig, alt, note)

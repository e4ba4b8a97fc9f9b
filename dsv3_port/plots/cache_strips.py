"""The picture that opens 06a: where the rows of a cache lie in memory, step after step."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ..errors import PortError
from ..messages import tr, trn
from .colours import GREY, INK, LIGHT, NORMAL, SKY, VERMILLION
from .shapes import box
from .style import LabFigure, figure, finish, styled

_ROW, _HIGH, _GAP = 1.0, 0.62, 1.4  # a strip's distance and height; between two allocations


@styled
def cache_strips(filled: int = 4, steps: int = 4, room: int = 10) -> LabFigure:
    """One layer's cache over `steps` decode steps behind `filled` positions: growing above, fixed with
    `room` positions below. A place along the strip is a place in memory. PortError where the room
    is too small."""
    if filled < 1 or steps < 1 or room < filled + steps:
        raise PortError(f"cache_strips: {filled} + {steps} positions do not fit a room of {room}")
    fig, axes = figure(2, 1, (11.0, 1.9 + 0.62 * 2 * steps))
    written = _growing(axes[0], filled, steps), _fixed(axes[1], filled, steps, room)
    wide = max(ax.get_xlim()[1] for ax in axes)
    for ax in axes:
        ax.set_xlim(-2.2, wide)
        ax.set_ylim(steps - 0.3, -0.3)
        ax.axis("off")
    key = [
        Patch(facecolor=VERMILLION, label=tr("the new row, written")),
        Patch(facecolor=LIGHT, hatch="//", edgecolor=GREY, label=tr("copied from the last step")),
        Patch(facecolor=SKY, label=tr("left where it was")),
        Patch(
            facecolor="white",
            edgecolor=GREY,
            linestyle=":",
            label=tr("given back, or still empty"),
        ),
    ]
    fig.legend(handles=key, loc="outside upper center", ncols=4)
    rows = [", ".join(map(str, w)) for w in written]
    alt = tr(
        "Strips of memory over {steps} decode steps. Growing cache: each step allocates a longer strip at "
        "another place and writes {growing} rows. Fixed cache: one strip of {room} places, at the same "
        "place in every step, of which {fixed} row is written a step."
    )
    note = tr(
        "Drawn, not measured: one square is one position's row; from left to right: addresses."
    )
    said = alt.format(steps=steps, growing=rows[0], room=room, fixed=rows[1])
    return finish(fig, said, note)


def _name(ax: Axes, step: int) -> None:
    name = tr("step {n}").format(n=step + 1)
    ax.text(-0.3, step * _ROW + _HIGH / 2, name, ha="right", va="center")


def _growing(ax: Axes, filled: int, steps: int) -> list[int]:
    """Each step a strip of its own behind the last one, which is given back."""
    ax.set_title(tr("growing: allocate, copy everything, append"))
    left, written, before = 0.0, [], (0.0, 0)
    for step in range(steps):
        y, length = step * _ROW, filled + step + 1
        for place in range(before[1]):
            _empty(ax, before[0] + place, y)
        for place in range(length - 1):
            look: dict[str, Any] = {"hatch": "//", "edgecolor": GREY, "lw": 0.8}
            box(ax, left + place, y, 1, _HIGH, LIGHT, **look)
        box(ax, left + length - 1, y, 1, _HIGH, VERMILLION, lw=1.2)
        _name(ax, step)
        _said(ax, left + length, y, length)
        written.append(length)
        before, left = (left, length), left + length + _GAP
    ax.set_xlim(0, left + 3.0)
    return written


def _fixed(ax: Axes, filled: int, steps: int, room: int) -> list[int]:
    ax.set_title(tr("fixed: allocate once, write at the slot"))
    for step in range(steps):
        y, slot = step * _ROW, filled + step
        for place in range(room):
            if place > slot:
                _empty(ax, place, y)
            else:
                box(ax, place, y, 1, _HIGH, VERMILLION if place == slot else SKY, lw=1.2)
        _name(ax, step)
        _said(ax, room, y, 1, tr("slot {n}: ").format(n=slot))
    ax.set_xlim(0, room + 4.0)
    return [1] * steps


def _empty(ax: Axes, x: float, y: float) -> None:
    box(ax, x, y, 1, _HIGH, "white", edgecolor=GREY, linestyle=":", lw=1.0, zorder=0.5)


def _said(ax: Axes, x: float, y: float, rows: int, before: str = "") -> None:
    text = before + trn("{n} row written", "{n} rows written", rows).format(n=rows)
    weight = "bold" if rows == 1 else "normal"
    ax.text(
        x + 0.25, y + _HIGH / 2, text, va="center", fontsize=NORMAL, fontweight=weight, color=INK
    )

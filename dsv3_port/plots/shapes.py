"""What pictures are made of: rows of bars, boxes with their names, arrows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from .colours import LIGHT, PAPER, SMALL, ink_on
from .style import on_phone


def centred(ax: Axes, x: float, y: float, text: str, fontsize: float = SMALL, **more: Any) -> None:
    """Text around a point."""
    ax.text(x, y, text, ha="center", va="center", fontsize=fontsize, **more)


def box(
    ax: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    colour: str,
    text: str = "",
    fontsize: float = SMALL,
    **patch: Any,
) -> None:
    """A filled rectangle with its lower left corner at (x, y), and its name in the middle."""
    look: dict[str, Any] = {"facecolor": colour, "edgecolor": "white"} | patch
    ax.add_patch(Rectangle((x, y), width, height, **look))
    if text:
        centred(ax, x + width / 2, y + height / 2, text, fontsize, color=ink_on(colour))


def arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, **more: Any
) -> None:
    look: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 12, "lw": 1.5} | more
    ax.add_patch(FancyArrowPatch(start, end, color=colour, **look))


def stack(
    ax: Axes,
    y: float,
    parts: Iterable[tuple[float, str, str]],
    height: float = 0.72,
    labels: Sequence[str | None] = (),
) -> float:
    """One stacked bar of (length, colour, text inside or ""); returns where it ends. labels: of the
    parts in a legend."""
    left = 0.0
    for k, (length, colour, text) in enumerate(parts):
        ax.barh(
            y,
            length,
            height,
            left=left,
            color=colour,
            edgecolor="white",
            lw=0.8,
            label=labels[k] if labels else None,
        )
        if text:
            centred(ax, left + length / 2, y, text, color=ink_on(colour))
        left += length
    return left


def name_rows(
    ax: Axes, labels: Sequence[str], above: float = 0.55, below: float = 0.45, grid: bool = False
) -> None:
    """Labels of horizontal bars from the top down, no ticks; grid: with upright lines. On a phone
    they stand above their bars."""
    ax.set_yticks(range(len(labels)), [""] * len(labels) if on_phone() else labels)
    ax.set_ylim(len(labels) - below, -max(above, 0.75) if on_phone() else -above)
    for y, label in enumerate(labels if on_phone() else ()):
        at = ax.get_yaxis_transform()
        ax.text(0, y - 0.37, label, fontsize=SMALL, va="bottom", transform=at)
    ax.tick_params(axis="y", length=0)
    if grid:
        ax.grid(axis="x", color=LIGHT, lw=0.8)


PHONE_BAR = 0.22  # how high a bar is in its row where lines of text stand above it


def lines_above(ax: Axes, lines: Sequence[str], colours: Sequence[str] = ()) -> None:
    """What each bar is and says, in lines above it: a phone's picture has no room beside bars."""
    for y, text in enumerate(lines):
        look: dict[str, Any] = {"color": colours[y]} if colours else {}
        look |= {"va": "bottom", "fontsize": SMALL, "transform": ax.get_yaxis_transform()}
        look["bbox"] = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.5}
        ax.text(0, y - 0.16, text, **look)
    ax.set_yticks([])
    ax.set_ylim(len(lines) - 0.8, -1)

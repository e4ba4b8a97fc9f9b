"""Pictures of the hunt: where a fault can sit in one step, and which tool saw which model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from ..messages import N_, told, tr
from .colours import BLUE, GREEN, GREY, LIGHT, NORMAL, ORANGE, SKY
from .shapes import arrow, box, centred
from .style import LabFigure, figure, finish, styled

WITHIN = (N_("attention"), N_("gate"), N_("routed experts"), N_("shared expert"))
SHARED = (N_("positions"), N_("mask"), N_("cache"))


@styled
def step_map(layers: int = 4) -> LabFigure:
    """One cached step with the words of `accuse`: what each layer has, what all layers share, what
    stands outside."""
    fig, (ax,) = figure(size=(9.0, 4.4))
    ax.axis("off")
    ax.set_xlim(0, 10)
    ax.set_ylim(0, 5)
    box(ax, 0.1, 0.2, 9.8, 4.7, "white", edgecolor=GREY, lw=1.2, ls="--")
    centred(ax, 0.45, 4.65, tr("step"), NORMAL, color=GREY)
    width, left = 1.55, 1.55
    for n in range(layers):
        x = left + n * (width + 0.15)
        moe = n > 0
        box(ax, x, 1.45, width, 2.9, "white", edgecolor=GREY)
        centred(ax, x + width / 2, 4.12, tr("layer {n}").format(n=n), NORMAL, fontweight="bold")
        for k, part in enumerate(WITHIN if moe else ("attention", "MLP")):
            colour = SKY if part == "attention" else ORANGE if part != "gate" else GREEN
            box(ax, x + 0.08, 3.35 - 0.6 * k, width - 0.16, 0.5, colour, told(part))
        if n:
            arrow(ax, (x - 0.17, 2.9), (x + 0.02, 2.9), GREY)
    box(ax, 0.25, 2.6, 1.1, 0.6, LIGHT, tr("embedding"))
    arrow(ax, (1.35, 2.9), (left, 2.9), GREY)
    end = left + layers * (width + 0.15)
    arrow(ax, (end - 0.15, 2.9), (end + 0.1, 2.9), GREY)
    box(ax, end + 0.1, 3.0, 1.2, 0.6, LIGHT, tr("norm"))
    box(ax, end + 0.1, 2.1, 1.2, 0.6, LIGHT, "LM head")
    arrow(ax, (end + 0.7, 3.0), (end + 0.7, 2.67), GREY)
    for k, part in enumerate(SHARED):
        x = left + k * 2.25
        box(ax, x, 0.45, 2.1, 0.55, BLUE, told(part))
        arrow(ax, (x + 1.05, 1.0), (x + 1.05, 1.42), BLUE)
    alt = tr(
        "One cached step: the embedding, then layers 0 to {last}, each with attention and, from layer 1 on, "
        "gate, routed experts and shared expert; then norm and LM head. Positions, mask and cache are made "
        "once and feed every layer."
    )
    title = tr("Where can it sit? A layer, what every layer shares (blue), or outside")
    return finish(fig, alt.format(last=layers - 1), title=title)


@styled
def tool_map(seen: Mapping[str, Mapping[str, bool]]) -> LabFigure:
    """model -> tool -> saw it, as check.faults.seen gives: a grid with a mark where a tool differs."""
    models, tools = list(seen), list(next(iter(seen.values())))
    fig, (ax,) = figure(size=(9.0, 0.42 * len(tools) + 1.2))
    for row, tool in enumerate(tools):
        for column, name in enumerate(models):
            _cell(ax, column, row, seen[name][tool])
    ax.set_xlim(-0.5, len(models) - 0.5)
    ax.set_ylim(len(tools) - 0.5, -0.5)
    ax.set_xticks(range(len(models)), models)
    ax.set_yticks(range(len(tools)), [told(tool) for tool in tools])
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.set_xlabel(tr("model"))
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    row_of, nothing = tr("{name}: {tools}."), tr("nothing")
    said = [
        row_of.format(name=n, tools="; ".join(told(t) for t in tools if seen[n][t]) or nothing)
        for n in models
    ]
    alt = tr("Which tool sees which model. {said}").format(said=" ".join(said))
    title = tr("Filled: the tool sees a difference from the right model")
    return finish(fig, alt, title=title)


def _cell(ax: Axes, column: int, row: int, sees: bool) -> None:
    look: dict[str, Any] = {"edgecolor": LIGHT, "lw": 1.0}
    text = tr("sees") if sees else ""
    box(ax, column - 0.46, row - 0.42, 0.92, 0.84, BLUE if sees else "white", text, **look)

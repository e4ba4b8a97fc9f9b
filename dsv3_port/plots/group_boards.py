"""The picture that opens 04: one mask of kept groups, made by writing and by comparing."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from torch import Tensor

from ..errors import PortError
from ..messages import tr
from .colours import BLUE, GREY, LARGE, NORMAL, VERMILLION
from .shapes import arrow, box, centred
from .style import LabFigure, figure, finish, styled

_GAP = 2.0  # between two boards, in cells


def _board(
    ax: Axes,
    left: float,
    top: float,
    lit: dict[tuple[int, int], str],
    size: tuple[int, int],
    c: str,
) -> None:
    """A board [T, G]; `lit`: (token, group) -> the text there. Elsewhere stands a 0."""
    for t in range(size[0]):
        for g in range(size[1]):
            text = lit.get((t, g))
            colour = "white" if text is None else c
            box(ax, left + g, top + t, 1, 1, colour, text or "", edgecolor=GREY, lw=0.8)


@styled
def group_boards(group_idx: Tensor, groups: int) -> LabFigure:
    """group_idx [T, K], the kept ones of so many groups -> the mask [T, G] twice: T·K writes in an
    order, above; K pages of comparisons and their sum, below. PortError for more than 8 tokens, 4
    choices or 8 groups."""
    idx = torch.as_tensor(group_idx)
    if idx.dim() != 2 or idx.shape[0] > 8 or idx.shape[1] > 4 or not 0 < groups <= 8:
        raise PortError(
            f"group_boards draws [tokens, choices] up to 8 × 4 of 8 groups, not {list(idx.shape)} of "
            f"{groups}: give a part of it"
        )
    tokens, top = idx.shape
    size, step = (tokens, groups), groups + _GAP
    kept = [(t, int(idx[t, k]), k) for t in range(tokens) for k in range(top)]
    ones = {(t, g): "1" for t, g, _ in kept}
    wide, low = top * step + groups, tokens + 4.6
    fig, (ax,) = figure(size=(12.0, 1.1 + 12.0 / wide * (low + tokens + 1.6)))
    places = {(t, g): str(n + 1) for n, (t, g, _) in enumerate(kept)}
    last = top * step
    writing = max(0.0, last - 2 * step)
    _board(ax, writing, 1.0, {}, size, BLUE)
    _board(ax, writing + step, 1.0, places, size, VERMILLION)
    for at, text in (
        (writing, tr("zeros")),
        (writing + step, tr("the writes, in their order")),
        (last, tr("mask")),
    ):
        centred(ax, at + groups / 2, 0.3, text, NORMAL)
    _board(ax, last, 1.0, ones, size, BLUE)
    for left in (writing, writing + step):
        y = 1.0 + tokens / 2
        arrow(ax, (left + groups + 0.2, y), (left + step - 0.2, y), GREY)
    for k in range(top):
        page = {(t, g): "1" for t, g, at in kept if at == k}
        _board(ax, k * step, low, page, size, BLUE)
        head = tr("choice {k} == 0 … {last}").format(k=k, last=groups - 1)
        centred(ax, k * step + groups / 2, low - 0.7, head, NORMAL)
        sign = "=" if k == top - 1 else "+"
        centred(ax, k * step + groups + _GAP / 2, low + tokens / 2, sign, LARGE)
    _board(ax, last, low, ones, size, BLUE)
    centred(ax, last + groups / 2, low - 0.7, tr("mask"), NORMAL)
    for x, y, text in ((writing, -0.9, tr("by writing")), (0, low - 1.9, tr("by comparing"))):
        ax.text(x, y, text, fontsize=LARGE, fontweight="bold", va="center")
    ax.set_xlim(-0.3, wide + 0.3)
    ax.set_ylim(low + tokens + 0.3, -1.6)
    ax.axis("off")
    row = tr("token {t} keeps {groups}")
    rows = "; ".join(row.format(t=t, groups=sorted(idx[t].tolist())) for t in range(tokens))
    alt = tr(
        "The same mask of {tokens} tokens and {groups} groups, made twice. By writing: zeros, then {writes} "
        "writes to places that the choices name. By comparing: {top} pages, one for each choice, and their "
        "sum. {rows}."
    )
    said = alt.format(tokens=tokens, groups=groups, writes=len(kept), top=top, rows=rows)
    return finish(fig, said, tr("Drawn, not measured. Rows: tokens; columns: groups of experts."))

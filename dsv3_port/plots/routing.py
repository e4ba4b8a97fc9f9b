"""Pictures of routing: which groups and experts tokens choose, and the way of their rows through a
grouped matmul."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.patches import Patch
from torch import Tensor

from ..errors import PortError
from ..messages import N_, told, tr
from .colours import BLUE, CYCLE, GREY, INK, LIGHT, NORMAL
from .shapes import arrow, box, centred
from .style import LabFigure, figure, finish, styled


@styled
def expert_load(counts: Tensor, groups: int | None = None) -> LabFigure:
    """Heat map of how many tokens each expert got: counts [layers, E]; `groups` draws the borders
    of expert groups."""
    values = torch.as_tensor(counts).float()
    if values.dim() != 2:
        raise PortError(f"expert_load needs counts [layers, experts], not {list(values.shape)}")
    layers, experts = values.shape
    fig, (ax,) = figure(size=(10.0, 1.9 + min(3.6, 0.34 * layers)))
    image = ax.imshow(
        values.numpy(), aspect="auto", cmap="cividis", interpolation="nearest", vmin=0
    )
    fig.colorbar(image, ax=ax, label=tr("tokens"), pad=0.01)
    for g in range(1, groups or 0):
        ax.axvline(g * experts / (groups or 1) - 0.5, color="white", lw=1.2)
    of = tr("expert ({n} groups)").format(n=groups)
    ax.set_xlabel(of if groups else tr("expert"))
    ax.set_ylabel(tr("MoE layer"))
    if layers <= 12:
        ax.set_yticks(range(layers))
    even = values.sum(1, keepdim=True) / experts
    worst = float((values / even.clamp(min=1e-9)).max())
    idle = float((values == 0).float().mean())
    title = tr("busiest expert: {times:.1f} times an even share; without a token: {idle:.0%}")
    ax.set_title(title.format(times=worst, idle=idle))
    alt = tr(
        "Heat map of tokens for {experts} experts in {layers} layers; the busiest has {times:.1f} times an "
        "even share, {idle:.0%} have none."
    )
    return finish(fig, alt.format(experts=experts, layers=layers, times=worst, idle=idle))


@styled
def group_mask(mask: Tensor, group_scores: Tensor | None = None) -> LabFigure:
    """Which groups each token may choose experts from: mask [T, G] of 0 and 1, with the groups'
    scores if given."""
    kept = torch.as_tensor(mask).float()
    if kept.dim() != 2 or kept.shape[0] > 32 or kept.shape[1] > 32:
        raise PortError(
            f"group_mask draws [tokens, groups] up to 32 × 32, not {list(kept.shape)}: give a part of it"
        )
    tokens, groups = kept.shape
    fig, (ax,) = figure(size=(1.6 + 0.85 * groups, 1.6 + 0.45 * tokens))
    for t in range(tokens):
        for g in range(groups):
            on = bool(kept[t, g])
            hatch: dict[str, Any] = {"hatch": None if on else "xx", "alpha": 1 if on else 0.55}
            box(ax, g, t, 1, 1, BLUE if on else "white", edgecolor=GREY, lw=1, **hatch)
            text = f"{float(group_scores[t, g]):.2f}" if group_scores is not None else str(int(on))
            behind = None if on else {"facecolor": "white", "edgecolor": "none", "pad": 1}
            centred(ax, g + 0.5, t + 0.5, text, color="white" if on else INK, bbox=behind)
    ax.set_xlim(0, groups)
    ax.set_ylim(tokens, 0)
    ax.set_xticks([g + 0.5 for g in range(groups)], [str(g) for g in range(groups)])
    ax.set_yticks([t + 0.5 for t in range(tokens)], [str(t) for t in range(tokens)])
    ax.set_xlabel(tr("group of experts"))
    ax.set_ylabel(tr("token"))
    ax.tick_params(length=0)
    out = Patch(facecolor="white", edgecolor=GREY, hatch="xx", label=tr("masked out"))
    fig.legend(
        handles=[Patch(color=BLUE, label=tr("kept")), out], loc="outside upper center", ncols=2
    )
    row = tr("token {t} keeps {groups}")
    rows = "; ".join(
        row.format(t=t, groups=[g for g in range(groups) if kept[t, g]]) for t in range(tokens)
    )
    return finish(fig, tr("Grid of tokens and expert groups: {rows}.").format(rows=rows))


_HEADS = (
    (0.0, N_("1 the gate's choice")),
    (3.3, N_("2 rows sorted\nby expert")),
    (5.9, N_("3 one matmul\na group")),
    (8.1, N_("4 results,\nstill sorted")),
    (10.5, N_("5 back and\nweighted sum")),
)


@styled
def routing_picture(expert_idx: Tensor, experts: int | None = None) -> LabFigure:
    """The way of a few tokens: choose, sort by expert, group_list, one matmul a group, back.
    expert_idx [T, K]."""
    chosen = torch.as_tensor(expert_idx)
    if chosen.dim() != 2 or chosen.numel() > 24:
        raise PortError(
            f"routing_picture draws [tokens, top-k] of 24 choices at most, not {list(chosen.shape)}"
        )
    tokens, top = chosen.shape
    count = experts or int(chosen.max()) + 1
    order = chosen.flatten().argsort(stable=True)
    total = tokens * top
    fig, (ax,) = figure(size=(12.0, 1.7 + 0.42 * max(total, 6)))
    token_y = [(t + 0.5) * total / tokens - 0.5 for t in range(tokens)]

    def cell(x: float, y: float, width: float, colour: str, text: str) -> None:
        box(ax, x, y - 0.4, width, 0.8, colour, text)

    def line(x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        arrow(ax, (x0, y0), (x1, y1), colour, mutation_scale=11, shrinkA=2, shrinkB=2)

    for t in range(tokens):
        colour = CYCLE[t % 8]
        cell(0, token_y[t], 0.9, colour, f"token {t}")
        for k in range(top):
            cell(0.95 + 0.45 * k, token_y[t], 0.42, colour, str(int(chosen[t, k])))
        cell(11.1, token_y[t], 0.9, colour, f"token {t}")
    start, one_row, one_expert = 1.0 + 0.45 * top, tr("row {n}"), tr("expert {n}")
    for row, choice in enumerate(order.tolist()):
        t, colour = choice // top, CYCLE[choice // top % 8]
        name = one_row.format(n=row)
        cell(3.6, row, 1.0, colour, name)
        cell(8.3, row, 1.0, colour, name)
        line(start, token_y[t], 3.6, row, colour)
        line(9.3, row, 11.1, token_y[t], colour)
    sizes = torch.bincount(chosen.flatten(), minlength=count).tolist()
    end = 0
    for expert, size in enumerate(sizes):
        end += size
        if size:
            box(ax, 5.9, end - size - 0.4, 1.55, size - 0.2, LIGHT, edgecolor=GREY)
            name = one_expert.format(n=expert)
            centred(ax, 6.67, end - size / 2 - 0.5, name, fontweight="bold")
            for row in range(end - size, end):
                line(4.6, row, 5.9, row, GREY)
                line(7.45, row, 8.3, row, GREY)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    for x, text in _HEADS:
        ax.text(x, -0.75, told(text), fontsize=NORMAL, fontweight="bold", va="bottom")
    lists = tr("group_list as row ends (type 0): {ends}     as counts (type 1): {sizes}")
    shown = lists.format(ends=ends, sizes=sizes)
    ax.text(0, total - 0.25, shown, fontsize=NORMAL, va="top")
    ax.set_xlim(-0.1, 12.1)
    ax.set_ylim(total + 0.5, -2.1)
    ax.axis("off")
    alt = tr(
        "{tokens} tokens with {top} experts each become {rows} rows sorted by expert, are multiplied by one "
        "matrix a group and go back; {lists}."
    )
    return finish(fig, alt.format(tokens=tokens, top=top, rows=total, lists=shown))

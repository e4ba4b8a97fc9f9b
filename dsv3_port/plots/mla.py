"""Pictures of the low-rank absorb: how kv_b_proj is split, and which product is done first."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from ..config import DeepseekV3Config
from ..messages import tr
from .colours import BLUE, GREY, INK, LARGE, NORMAL, ORANGE, SMALL, VERMILLION
from .shapes import arrow, box, centred
from .style import LabFigure, figure, finish, styled

_GAP = 0.26  # between two factors, in widths of the latent row


def _matrix(
    ax: Axes, x: float, y: float, width: float, height: float, colour: str, inside: str, below: str
) -> None:
    """A matrix centred on height y, its name inside and its shape below."""
    box(ax, x, y - height / 2, width, height, colour, inside, NORMAL, lw=1.5)
    ax.text(x + width / 2, y - height / 2 - 0.05, below, ha="center", va="top", fontsize=SMALL)


def _bracket(ax: Axes, left: float, right: float, y: float, text: str, colour: str) -> None:
    """Brackets around the factors that are multiplied first, and what their product is."""
    for x, turn in ((left, 0.05), (right, -0.05)):
        ax.plot(
            [x + turn, x, x, x + turn], [y + 0.56, y + 0.56, y - 0.56, y - 0.56], color=colour, lw=3
        )
    look: dict[str, Any] = {
        "ha": "center",
        "va": "bottom",
        "fontsize": NORMAL,
        "fontweight": "bold",
    }
    ax.text((left + right) / 2, y + 0.62, text, color=colour, **look)


@styled
def absorb_picture(config: DeepseekV3Config) -> LabFigure:
    """One head's scores of one query, as a product of three matrices drawn to scale (the context's
    length is not).

    Above the order of upstream, whose product W_k latent is what the cache must hold; below the
    absorbed order.
    """
    c = config
    rank, nope = c.kv_lora_rank, c.qk_nope_head_dim
    thin, n, length = 0.09, nope / rank, 1.7  # a row vector; Dn and L in units of R
    n = max(n, 0.16)
    fig, (ax,) = figure(size=(10.5, 6.3))
    for y, absorbed in ((1.75, False), (0.0, True)):
        second, third = n + _GAP, n + _GAP + 1.0 + _GAP  # where the factors begin
        end = third + length + 0.07
        _matrix(ax, 0.0, y, n, thin, BLUE, "", f"q_nope\n1 × {nope}")
        centred(ax, second - _GAP / 2, y, "·", LARGE, fontweight="bold")
        _matrix(ax, second, y, 1.0, n, ORANGE, "w_k", f"{nope} × {rank}")
        centred(ax, third - _GAP / 2, y, "·", LARGE, fontweight="bold")
        colour, kept = (
            (VERMILLION, tr("cached: once for all heads")) if absorbed else (GREY, tr("not kept"))
        )
        latent = tr("latent, transposed")
        _matrix(ax, third, y, length, 1.0, colour, f"{latent}\n{kept}", f"{rank} × L")
        if absorbed:
            what = tr("1 × {rank}: the query in latent space").format(rank=rank)
            _bracket(ax, -0.07, second + 1.07, y, what, BLUE)
            numbers = f"{rank} + {c.qk_rope_head_dim}"
        else:
            what = tr("{n} × L: the keys of this head, cached").format(n=nope)
            _bracket(ax, second - 0.07, end, y, what, GREY)
            numbers = f"{c.num_attention_heads} × ({nope} + {c.qk_rope_head_dim} + {c.v_head_dim})"
        text = tr("cache a token and layer\n{count} numbers").format(count=numbers)
        colour = VERMILLION if absorbed else INK
        ax.text(end + 0.1, y, text, va="center", fontsize=NORMAL, color=colour)
    for y, text in (
        (2.62, tr("upstream: expand the keys, then multiply")),
        (0.87, tr("absorbed: turn the query, then multiply")),
    ):
        ax.text(-0.1, y, text, fontsize=LARGE, fontweight="bold")
    ax.set_xlim(-0.12, n + 2 * _GAP + 1.0 + length + 1.35)
    ax.set_ylim(-0.72, 2.8)
    ax.set_aspect("equal")
    ax.axis("off")
    alt = tr(
        "The scores of one head as a product of three matrices, bracketed in two ways: upstream multiplies "
        "w_k [{nope} x {rank}] with the latent rows first and caches keys for every head, the absorbed form "
        "multiplies the query with w_k first and caches the latent rows."
    )
    note = tr(
        "one head, one query, L cached positions; the rotary part of the score is added to either"
    )
    return finish(fig, alt.format(nope=nope, rank=rank), note)


@styled
def kv_b_split(config: DeepseekV3Config, shown: int = 3) -> LabFigure:
    """Rows of kv_b_proj, head by head, and the two stacks they are sorted into; `shown` heads stand
    for all."""
    c = config
    nope, value = c.qk_nope_head_dim, c.v_head_dim
    rank, heads = c.kv_lora_rank, c.num_attention_heads
    shown = min(shown, heads)
    fig, (ax,) = figure(size=(10.0, 4.4))
    k, v, wide, pitch = 0.5, 0.5 * value / nope, 1.9, 0.1
    y = 0.0
    keys, values = tr("head {head}: {n} key rows"), tr("head {head}: {n} value rows")
    for head in range(shown):
        for colour, height, what in (
            (BLUE, k, keys.format(head=head, n=nope)),
            (ORANGE, v, values.format(head=head, n=value)),
        ):
            y -= height
            box(ax, 0, y, wide, height, colour, what, lw=1.2)
            depth = head * pitch
            target = (3.1 + depth, (-0.75 if colour == BLUE else -2.3) - depth)
            bent = "arc3,rad=0.06"
            arrow(ax, (wide + 0.03, y + height / 2), target, colour, connectionstyle=bent, zorder=1)
    ax.text(wide / 2, y - 0.08, "…" if heads > shown else "", ha="center", va="top", fontsize=LARGE)
    ax.text(
        0, 0.1, f"kv_b_proj  [{heads * (nope + value)}, {rank}]", fontsize=NORMAL, fontweight="bold"
    )
    for head in reversed(range(shown)):
        depth = head * pitch
        box(ax, 3.15 + depth, -1.0 - depth, 1.6, k, BLUE, lw=1.2, zorder=2)
        box(ax, 3.15 + depth, -3.1 - depth, v, 1.6, ORANGE, lw=1.2, zorder=2)
    kept, turned = tr("rows as they are: q_nope · w_k"), tr("turned: latent output · w_v")
    for at, text in (
        (-0.75, f"kv_b_proj_w_k  [{heads}, {nope}, {rank}]\n{kept}"),
        (-2.3, f"kv_b_proj_w_v  [{heads}, {rank}, {value}]\n{turned}"),
    ):
        ax.text(5.15, at, text, va="center", fontsize=NORMAL)
    ax.set_xlim(-0.05, 8.0)
    ax.set_ylim(min(y - 0.35, -3.4), 0.35)
    ax.axis("off")
    alt = tr(
        "kv_b_proj has {nope} rows for keys and {value} rows for values of each head in turn; the key rows of "
        "all heads are stacked into w_k, the value rows are stacked and transposed into w_v."
    )
    return finish(fig, alt.format(nope=nope, value=value))

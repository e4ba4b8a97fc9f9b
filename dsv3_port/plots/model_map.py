"""The way of a token through DeepSeek-V3, with shapes, and where the steps of the port change it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from ..config import DeepseekV3Config
from ..messages import N_, told, tr
from ..steps import STEPS
from .colours import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LARGE,
    LIGHT,
    NORMAL,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILLION,
    ink_on,
)
from .shapes import arrow, centred
from .style import LabFigure, figure, finish, styled

_TOUCHES = {
    "tensor_parallel": ("embedding", "o_proj", "sum", "head"),
    "mla_low_rank": ("attention",),
    "gmm_routing": ("routed",),
    "one_hot_gate": ("gate",),
    "merged_mlp": ("routed", "shared"),
    "fixed_kv_cache": ("cache",),
    "rope_once": ("queries", "cache"),
    "add_rms_norm": ("norm", "second norm"),
    "last_token_head": ("head",),
}
_Box = tuple[float, float, float, float, str, str, str]  # x, y, width, height, title, text, colour
_PLACES = {
    "embedding": (0.1, 5.6, 1.6, 0.8, N_("embedding"), SKY),
    "layers": (0.1, 3.6, 1.6, 1.2, "", LIGHT),
    "last norm": (0.1, 2.0, 1.6, 0.8, "RMSNorm", LIGHT),
    "head": (0.1, 0.4, 1.6, 0.8, "LM head", PURPLE),
    "norm": (2.3, 3.4, 1.25, 0.9, "RMSNorm", LIGHT),
    "queries": (3.9, 4.7, 1.6, 1.1, N_("queries"), ORANGE),
    "cache": (5.75, 4.7, 1.45, 1.1, N_("KV row"), ORANGE),
    "attention": (3.9, 2.6, 3.3, 1.3, N_("attention"), ORANGE),
    "o_proj": (3.9, 1.1, 3.3, 0.8, "o_proj", ORANGE),
    "second norm": (7.55, 3.4, 1.25, 0.9, "+ RMSNorm", LIGHT),
    "gate": (9.2, 4.7, 1.9, 1.1, N_("gate"), VERMILLION),
    "routed": (9.2, 2.6, 1.9, 1.3, N_("routed experts"), BLUE),
    "shared": (11.35, 2.6, 1.75, 1.3, N_("shared expert"), GREEN),
    "sum": (9.2, 1.1, 3.9, 0.8, N_("weighted sum, +"), BLUE),
}
_ARROWS = (
    (0.9, 5.6, 0.9, 4.8),
    (0.9, 3.6, 0.9, 2.8),
    (0.9, 2.0, 0.9, 1.2),
    (1.7, 4.2, 2.3, 3.85),
    (3.1, 4.3, 3.74, 5.1),
    (4.7, 4.7, 4.7, 3.9),
    (6.5, 4.7, 6.5, 3.9),
    (5.55, 2.6, 5.55, 1.9),
    (7.2, 1.5, 8.0, 3.4),
    (8.45, 4.3, 9.18, 5.1),
    (10.15, 4.7, 10.15, 3.9),
    (8.8, 3.6, 9.04, 3.35),
    (10.15, 2.6, 10.15, 1.9),
    (12.2, 2.6, 12.2, 1.9),
)


def _boxes(c: DeepseekV3Config) -> dict[str, _Box]:
    heads, row = c.num_attention_heads, c.kv_lora_rank + c.qk_rope_head_dim
    nope, value = c.qk_nope_head_dim, c.v_head_dim
    dense, low = tr("the first {n} dense:\nMLP, I {width:,}"), tr("low rank {rank}")
    row_text, all_tokens = tr("R + Dr = {row},\nto the cache"), tr("for every token,\nI {width:,}")
    expands = tr("kv_b_proj expands each row to\n{sizes}; softmax(q kᵀ) v")
    top = tr("top {top} of {experts} experts\nin {kept} of {groups} groups")
    rank = c.q_lora_rank or tr("none")
    mlps = tr("{n} MLPs,\nI {width:,}")
    texts = {
        "embedding": f"[V {c.vocab_size:,}, H]",
        "layers": dense.format(n=c.first_k_dense_replace, width=c.intermediate_size),
        "last norm": f"[B, S, H {c.hidden_size:,}]",
        "head": "logits [B, S, V]",
        "norm": "[B, S, H]",
        "queries": f"{heads} × ({nope} + {c.qk_rope_head_dim})\n{low.format(rank=rank)}",
        "cache": row_text.format(row=row),
        "attention": expands.format(sizes=f"{heads} × ({nope} + {value})"),
        "o_proj": f"[H, {heads} × {value}]",
        "second norm": "[B, S, H]",
        "gate": top.format(
            top=c.num_experts_per_tok,
            experts=c.n_routed_experts,
            kept=c.topk_group,
            groups=c.n_group,
        ),
        "routed": mlps.format(n=c.n_routed_experts, width=c.moe_intermediate_size),
        "shared": all_tokens.format(width=c.moe_intermediate_size * c.n_shared_experts),
        "sum": tr("[B, S, H], the stream of the next layer"),
    }
    titles = {"layers": tr("{n} layers").format(n=c.num_hidden_layers)}
    return {
        name: (x, y, w, h, titles.get(name) or told(title), texts[name], colour)
        for name, (x, y, w, h, title, colour) in _PLACES.items()
    }


@styled
def model_picture(config: DeepseekV3Config, name: str = "") -> LabFigure:
    """A token's way through the model with shapes (letters of config.py); circles carry the numbers
    of the steps."""
    fig, (ax,) = figure(size=(12.6, 6.3))
    boxes = _boxes(config)
    for x, y, width, height in (
        (2.05, 0.3, 11.25, 6.2),
        (3.78, 4.58, 3.54, 1.34),
        (9.08, 2.48, 4.14, 1.54),
    ):  # the layer; what takes the same input
        _round(ax, x, y, width, height, 0.08, pad=0.02, fill=False, edgecolor=GREY, lw=1.2, ls="--")
    ax.text(2.25, 6.1, tr("one layer with experts"), fontsize=LARGE, fontweight="bold")
    ax.text(0.9, 6.55, tr("token ids [B, S]"), ha="center", fontsize=SMALL)
    for box in boxes.values():
        _box(ax, box)
    for x0, y0, x1, y1 in _ARROWS:
        arrow(ax, (x0, y0), (x1, y1), GREY, lw=1.4, shrinkA=1, shrinkB=1)
    badges = _badges(ax, boxes)
    graphs = tr(" and ").join(s.number for s in STEPS if s.field == "graph")
    circles = tr(
        "circles: the steps of this course. {steps} (graph modes) take the whole picture at once"
    )
    ax.text(2.25, 0.5, circles.format(steps=graphs), fontsize=SMALL)
    ax.set_xlim(0, 13.4)
    ax.set_ylim(0.2, 6.8)
    ax.axis("off")
    said = "; ".join(f"{b[4]}: {b[5]}" for b in boxes.values()).replace("\n", " ")
    alt = tr("Flow chart of {name}. {said}. Steps at their boxes: {badges}.")
    whose = told(name) if name else tr("the model")
    return finish(fig, alt.format(name=whose, said=said, badges=badges), told(name))


def _badges(ax: Axes, boxes: Mapping[str, _Box]) -> str:
    """Step numbers on the upper right corners of the boxes they change; returns them in words."""
    taken: Counter[str] = Counter()
    said = []
    for step in STEPS:
        for name in _TOUCHES.get(step.id, ()):
            x, y, width, height = boxes[name][:4]
            x = x + width - 0.12 - 0.42 * taken[name]
            y = y + height
            circle = {
                "boxstyle": "circle,pad=0.2",
                "facecolor": INK,
                "edgecolor": "white",
                "lw": 1.2,
            }
            centred(ax, x, y, step.number, SMALL - 1, fontweight="bold", color="white", bbox=circle)
            taken[name] += 1
            said.append(f"{step.number} {boxes[name][4]}")
    return ", ".join(said)


def _box(ax: Axes, box: _Box) -> None:
    x, y, width, height, title, text, colour = box
    _round(ax, x, y, width, height, 0.06, facecolor=colour, edgecolor="none")
    ink, lines = ink_on(colour), text.count("\n") + 1
    x, y = x + width / 2, y + height / 2
    centred(ax, x, y + 0.14 * lines, title, NORMAL, fontweight="bold", color=ink)
    centred(ax, x, y - 0.16, text, SMALL - 1, color=ink, linespacing=1.2)


def _round(
    ax: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    radius: float,
    pad: float = 0,
    **look: Any,
) -> None:
    style = f"round,pad={pad},rounding_size={radius}"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, **look))

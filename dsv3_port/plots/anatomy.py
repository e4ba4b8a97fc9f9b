"""DeepSeek-V3 on one page: the way of a token with shapes, where the parameters lie, and how each
matrix is cut."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from ..config import DeepseekV3Config
from ..forecast.planner import active_params, rank_targets, total_params
from ..parallel import TensorParallel
from ..steps import STEPS, PortPlan
from ..weights.layout import targets
from .style import (
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
    YELLOW,
    LabFigure,
    figure,
    finish,
    ink_on,
    styled,
)

_COLOURS = {
    "experts": BLUE,
    "attention": ORANGE,
    "shared": GREEN,
    "dense": YELLOW,
    "embedding": SKY,
    "head": PURPLE,
    "gate": VERMILLION,
    "norm": GREY,
}


def component_params(config: DeepseekV3Config) -> dict[str, tuple[int, int]]:
    """Component -> (parameters stored, parameters that one token is multiplied with), the largest
    first."""
    stored: Counter[str] = Counter()
    for target in rank_targets(config, PortPlan.upstream(), 1):
        stored[target.component] += math.prod(target.shape)
    share = {"experts": config.num_experts_per_tok / config.n_routed_experts, "embedding": 0.0}
    return {name: (n, round(n * share.get(name, 1.0))) for name, n in stored.most_common()}


def config_rows(configs: Mapping[str, DeepseekV3Config]) -> list[dict[str, Any]]:
    """Rows of a table that sets models side by side: what each size is called, its letter, and its
    values."""
    facts = (
        ("layers (of them dense)", lambda c: f"{c.num_hidden_layers} ({c.first_k_dense_replace})"),
        ("H hidden", lambda c: c.hidden_size),
        ("N heads", lambda c: c.num_attention_heads),
        ("Dn + Dr of a query and key", lambda c: f"{c.qk_nope_head_dim} + {c.qk_rope_head_dim}"),
        ("Dv of a value", lambda c: c.v_head_dim),
        ("R low rank of keys and values", lambda c: c.kv_lora_rank),
        ("low rank of queries", lambda c: c.q_lora_rank),
        ("E routed experts, K chosen", lambda c: f"{c.n_routed_experts}, {c.num_experts_per_tok}"),
        ("G groups, kept", lambda c: f"{c.n_group}, {c.topk_group}"),
        (
            "I of an expert, of a dense MLP",
            lambda c: f"{c.moe_intermediate_size}, {c.intermediate_size}",
        ),
        ("V vocabulary", lambda c: f"{c.vocab_size:,}"),
        ("parameters", lambda c: _count(total_params(c))),
        ("of them active for a token", lambda c: _count(active_params(c))),
    )
    return [{"": what} | {name: value(c) for name, c in configs.items()} for what, value in facts]


def cut_rows(config: DeepseekV3Config, plan: PortPlan, world_size: int) -> list[dict[str, Any]]:
    """Rows of a table from layout.targets: each parameter of a dense and a MoE layer, how it is
    cut, rank 0's shape."""
    rows: dict[str, dict[str, Any]] = {}
    for target in targets(config, plan, TensorParallel(0, world_size)):
        parts = target.name.split(".")
        if parts[1] == "layers" and int(parts[2]) not in (0, config.first_k_dense_replace):
            continue
        if (
            "experts" in parts
            and parts[parts.index("experts") + 1].isdigit()
            and "0" not in parts[5:]
        ):
            continue
        piece = target.pieces[0]
        whole = piece.length == piece.source_shape[piece.dim]
        how = "whole" if whole else "outputs (dim 0)" if piece.dim == 0 else "inputs (dim 1)"
        name = ".".join(
            p for p in parts if p not in ("model", "layers", "weight") and not p.isdigit()
        )
        if len(target.pieces) > 1:
            from_text = f"{len(target.pieces)} × [{_by(piece.source_shape)}]"
        else:
            from_text = f"[{_by(piece.source_shape)}]"
        rows.setdefault(
            name,
            {
                "parameter": name,
                "published": from_text,
                "cut": how,
                f"rank 0 of {world_size}": f"[{_by(target.shape)}]",
            },
        )
    return list(rows.values())


def _by(shape: tuple[int, ...]) -> str:
    return ", ".join(str(n) for n in shape)


# ---- where the parameters lie --------------------------------------------------------------------


@styled
def parameter_picture(configs: Mapping[str, DeepseekV3Config]) -> LabFigure:
    """For each model two bars to 100 %: the parameters it stores, and those that one token is
    multiplied with."""
    fig, (ax,) = figure(size=(10.5, 1.9 + 1.0 * len(configs)))
    labels, said, y = [], [], 0.0
    for name, config in configs.items():
        parts = component_params(config)
        for which, what in ((0, "stored"), (1, "used by one token")):
            total = sum(counts[which] for counts in parts.values())
            left, shares = 0.0, []
            for component in _COLOURS:
                share = parts.get(component, (0, 0))[which] / total
                ax.barh(
                    y, share, 0.8, left=left, color=_COLOURS[component], edgecolor="white", lw=0.8
                )
                if share > 0.045:
                    ax.text(
                        left + share / 2,
                        y,
                        f"{share:.0%}",
                        ha="center",
                        va="center",
                        fontsize=SMALL,
                        color=ink_on(_COLOURS[component]),
                    )
                    shares.append(f"{component} {share:.0%}")
                left += share
            ax.text(1.01, y, _count(total), va="center", fontsize=NORMAL, fontweight="bold")
            labels.append((y, f"{name}\n{what}"))
            said.append(f"{name} {what} {_count(total)}: {', '.join(shares)}")
            y += 0.95
        y += 0.45
    ax.set_yticks([at for at, _ in labels], [text for _, text in labels])
    ax.set_ylim(y - 0.75, -0.6)
    ax.set_xlim(0, 1.12)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    fig.legend(
        handles=[
            Patch(color=c, label={"shared": "shared expert", "experts": "routed experts"}.get(n, n))
            for n, c in _COLOURS.items()
        ],
        loc="outside upper center",
        ncols=8,
        columnspacing=1.0,
        handlelength=1.2,
    )
    return finish(fig, "Stacked bars of parameters by component: " + "; ".join(said) + ".")


def _count(n: float) -> str:
    for scale, letter in ((1e9, "B"), (1e6, "M")):
        if n >= scale:
            return f"{n / scale:.3g} {letter}" if n < 100 * scale else f"{n / scale:,.0f} {letter}"
    return f"{n:,.0f}"


# ---- the way of a token --------------------------------------------------------------------------

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


def _boxes(c: DeepseekV3Config) -> dict[str, _Box]:
    heads, row = c.num_attention_heads, c.kv_lora_rank + c.qk_rope_head_dim
    shared = c.moe_intermediate_size * c.n_shared_experts
    return {
        "embedding": (0.1, 5.6, 1.6, 0.8, "embedding", f"[V {c.vocab_size:,}, H]", SKY),
        "layers": (
            0.1,
            3.6,
            1.6,
            1.2,
            f"{c.num_hidden_layers} layers",
            f"the first {c.first_k_dense_replace} dense:\nMLP, I {c.intermediate_size:,}",
            LIGHT,
        ),
        "last norm": (0.1, 2.0, 1.6, 0.8, "RMSNorm", f"[B, S, H {c.hidden_size:,}]", LIGHT),
        "head": (0.1, 0.4, 1.6, 0.8, "LM head", "logits [B, S, V]", PURPLE),
        "norm": (2.3, 3.4, 1.25, 0.9, "RMSNorm", "[B, S, H]", LIGHT),
        "queries": (
            3.9,
            4.7,
            1.6,
            1.1,
            "queries",
            f"{heads} × ({c.qk_nope_head_dim} + {c.qk_rope_head_dim})\n"
            f"low rank {c.q_lora_rank or 'none'}",
            ORANGE,
        ),
        "cache": (5.75, 4.7, 1.45, 1.1, "KV row", f"R + Dr = {row},\nto the cache", ORANGE),
        "attention": (
            3.9,
            2.6,
            3.3,
            1.3,
            "attention",
            "kv_b_proj expands each row to\n"
            f"{heads} × ({c.qk_nope_head_dim} + {c.v_head_dim}); softmax(q kᵀ) v",
            ORANGE,
        ),
        "o_proj": (3.9, 1.1, 3.3, 0.8, "o_proj", f"[H, {heads} × {c.v_head_dim}]", ORANGE),
        "second norm": (7.55, 3.4, 1.25, 0.9, "+ RMSNorm", "[B, S, H]", LIGHT),
        "gate": (
            9.2,
            4.7,
            1.9,
            1.1,
            "gate",
            f"top {c.num_experts_per_tok} of {c.n_routed_experts} experts\nin "
            f"{c.topk_group} of {c.n_group} groups",
            VERMILLION,
        ),
        "routed": (
            9.2,
            2.6,
            1.9,
            1.3,
            "routed experts",
            f"{c.n_routed_experts} MLPs,\nI {c.moe_intermediate_size:,}",
            BLUE,
        ),
        "shared": (
            11.35,
            2.6,
            1.75,
            1.3,
            "shared expert",
            f"for every token,\nI {shared:,}",
            GREEN,
        ),
        "sum": (
            9.2,
            1.1,
            3.9,
            0.8,
            "weighted sum, +",
            "[B, S, H], the stream of the next layer",
            BLUE,
        ),
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
    ):
        ax.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle="round,pad=0.02,rounding_size=0.08",
                fill=False,
                edgecolor=GREY,
                lw=1.2,
                ls="--",
            )
        )  # the layer; what takes the same input
    ax.text(2.25, 6.1, "one layer with experts", fontsize=LARGE, fontweight="bold")
    ax.text(0.9, 6.55, "token ids [B, S]", ha="center", fontsize=SMALL)
    for box in boxes.values():
        _box(ax, box)
    for x0, y0, x1, y1 in (
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
    ):
        _arrow(ax, x0, y0, x1, y1)
    badges = _badges(ax, boxes)
    graphs = " and ".join(s.number for s in STEPS if s.field == "graph")
    ax.text(
        2.25,
        0.5,
        f"circles: the steps of this course. {graphs} (graph modes) take the whole picture at once",
        fontsize=SMALL,
    )
    ax.set_xlim(0, 13.4)
    ax.set_ylim(0.2, 6.8)
    ax.axis("off")
    said = "; ".join(f"{b[4]}: {b[5]}" for b in boxes.values()).replace("\n", " ")
    return finish(
        fig, f"Flow chart of {name or 'the model'}. {said}. Steps at their boxes: {badges}.", name
    )


def _badges(ax: Axes, boxes: Mapping[str, _Box]) -> str:
    """Step numbers on the upper right corners of the boxes they change; returns them in words."""
    taken: Counter[str] = Counter()
    said = []
    for step in STEPS:
        for name in _TOUCHES.get(step.id, ()):
            x, y, width, height = boxes[name][:4]
            ax.text(
                x + width - 0.12 - 0.42 * taken[name],
                y + height,
                step.number,
                ha="center",
                va="center",
                fontsize=SMALL - 1,
                fontweight="bold",
                color="white",
                bbox={
                    "boxstyle": "circle,pad=0.2",
                    "facecolor": INK,
                    "edgecolor": "white",
                    "lw": 1.2,
                },
            )
            taken[name] += 1
            said.append(f"{step.number} {boxes[name][4]}")
    return ", ".join(said)


def _box(ax: Axes, box: _Box) -> None:
    x, y, width, height, title, text, colour = box
    ax.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=colour,
            edgecolor="none",
        )
    )
    ink, lines = ink_on(colour), text.count("\n") + 1
    middle = y + height / 2
    ax.text(
        x + width / 2,
        middle + 0.14 * lines,
        title,
        ha="center",
        va="center",
        fontsize=NORMAL,
        fontweight="bold",
        color=ink,
    )
    ax.text(
        x + width / 2,
        middle - 0.16,
        text,
        ha="center",
        va="center",
        fontsize=SMALL - 1,
        color=ink,
        linespacing=1.2,
    )


def _arrow(ax: Axes, x0: float, y0: float, x1: float, y1: float) -> None:
    ax.add_patch(
        FancyArrowPatch(
            (x0, y0),
            (x1, y1),
            arrowstyle="-|>",
            mutation_scale=12,
            color=GREY,
            lw=1.4,
            shrinkA=1,
            shrinkB=1,
        )
    )

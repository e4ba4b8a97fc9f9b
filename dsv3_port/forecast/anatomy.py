"""DeepSeek-V3 in rows of a table: its sizes, where the parameters lie, and how each matrix is cut."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..config import DeepseekV3Config
from ..parallel import TensorParallel
from ..plan import PortPlan
from ..weights.layout import targets
from .planner import active_params, rank_targets, total_params


def component_params(config: DeepseekV3Config) -> dict[str, tuple[int, int]]:
    """Component -> (parameters stored, parameters that one token is multiplied with), the largest
    first."""
    stored: Counter[str] = Counter()
    for target, layers in rank_targets(config, PortPlan.upstream(), 1):
        stored[target.component] += layers * math.prod(target.shape)
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
        ("parameters", lambda c: count_text(total_params(c))),
        ("of them active for a token", lambda c: count_text(active_params(c))),
    )
    return [{"": what} | {name: value(c) for name, c in configs.items()} for what, value in facts]


def cut_rows(config: DeepseekV3Config, plan: PortPlan, world_size: int) -> list[dict[str, Any]]:
    """Rows of a table from layout.targets: each parameter of a dense and a MoE layer, how it is
    cut, rank 0's shape."""
    rows: dict[str, dict[str, Any]] = {}
    kinds = {0, config.first_k_dense_replace} & set(range(config.num_hidden_layers))
    for target in targets(config, plan, TensorParallel(0, world_size), kinds):
        parts = target.name.split(".")
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


def count_text(n: float) -> str:
    """671 B, 36.6 B, 4,096."""
    for scale, letter in ((1e9, "B"), (1e6, "M")):
        if n >= scale:
            return f"{n / scale:.3g} {letter}" if n < 100 * scale else f"{n / scale:,.0f} {letter}"
    return f"{n:,.0f}"

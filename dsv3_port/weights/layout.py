"""Which published tensor goes where: the mapping from checkpoint to model, as data.

One list of targets (pieces.py) serves the in-memory loader (load.py), the on-disk splitter
(sharding) and the memory forecast.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial

from ..config import DeepseekV3Config
from ..parallel import SINGLE, TensorParallel
from ..plan import PortPlan
from .int8 import as_int8
from .pieces import Piece, Target, kv_b_to_w_k, kv_b_to_w_v, same

__all__ = [
    "Piece",
    "Target",
    "kv_b_to_w_k",
    "kv_b_to_w_v",
    "of_mtp",
    "same",
    "source_shapes",
    "targets",
]


def targets(
    config: DeepseekV3Config,
    plan: PortPlan,
    parallel: TensorParallel = SINGLE,
    layers: Collection[int] | None = None,
) -> Iterator[Target]:
    """Every parameter of this rank's model, layer by layer, in the order of the published
    checkpoint; `layers`: of the decoder's layers only these."""
    found = _float_targets(config, plan, parallel, layers)
    yield from as_int8(found) if plan.quant == "w8a8" else found


def _float_targets(
    config: DeepseekV3Config,
    plan: PortPlan,
    parallel: TensorParallel,
    layers: Collection[int] | None,
) -> Iterator[Target]:
    rules = _Rules(config, plan, parallel)
    yield rules.matrix(
        "model.embed_tokens.weight",
        (config.vocab_size, config.hidden_size),
        0,
        "embedding",
        what="vocab_size",
    )
    for layer in range(config.num_hidden_layers) if layers is None else sorted(layers):
        yield from rules.layer(f"model.layers.{layer}", config.is_moe(layer))
    yield rules.vector("model.norm.weight", config.hidden_size, "norm")
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    yield rules.matrix(
        "lm_head.weight",
        (config.vocab_size, config.hidden_size),
        0,
        "head",
        source=head,
        what="vocab_size",
    )
    if plan.mtp:
        yield from rules.mtp(config.num_hidden_layers)


def of_mtp(name: str) -> bool:
    """Whether a target belongs to the MTP layer."""
    return name.startswith("mtp.")


class _Rules:
    """The cut of each kind of tensor for one rank. Cut 0 is by outputs (column cut), 1 by inputs
    (row cut)."""

    def __init__(self, config: DeepseekV3Config, plan: PortPlan, parallel: TensorParallel) -> None:
        self.c, self.plan = config, plan
        self.parallel = parallel if plan.tensor_parallel else SINGLE

    def _share(self, total: int, what: str) -> tuple[int, int]:
        length = self.parallel.share(total, what)
        return self.parallel.rank * length, length

    def vector(self, name: str, width: int, component: str, keep_float32: bool = False) -> Target:
        piece = Piece(name, (width,), 0, 0, width, (), 0, width)
        return Target(name, (width,), (piece,), keep_float32, component)

    def matrix(
        self,
        name: str,
        shape: tuple[int, int],
        dim: int | None,
        component: str,
        *,
        source: str = "",
        keep_float32: bool = False,
        unit: int = 1,
        what: str = "",
    ) -> Target:
        """A matrix cut along `dim` in multiples of `unit` rows (a head), or whole where dim is
        None."""
        start, length = 0, shape[0]
        if dim is not None:
            start, length = self._share(shape[dim] // unit, what or f"{name} dimension {dim}")
            start, length = start * unit, length * unit
        local = (length, shape[1]) if dim in (0, None) else (shape[0], length)
        piece = Piece(source or name, shape, dim or 0, start, length, (), 0, local[0], unit=unit)
        return Target(name, local, (piece,), keep_float32, component)

    def layer(self, at: str, moe: bool) -> Iterator[Target]:
        hidden = self.c.hidden_size
        yield self.vector(f"{at}.input_layernorm.weight", hidden, "norm")
        yield from self.attention(f"{at}.self_attn")
        yield self.vector(f"{at}.post_attention_layernorm.weight", hidden, "norm")
        if moe:
            yield from self.moe(f"{at}.mlp")
        else:
            yield from self.mlp(f"{at}.mlp", self.c.intermediate_size, "dense")

    def mtp(self, number: int) -> Iterator[Target]:
        """The first layer behind the last: `mtp.` in the model; embedding and head are shared."""
        at, hidden = f"model.layers.{number}", self.c.hidden_size
        own = [
            self.vector(f"{at}.enorm.weight", hidden, "norm"),
            self.vector(f"{at}.hnorm.weight", hidden, "norm"),
            self.matrix(f"{at}.eh_proj.weight", (hidden, 2 * hidden), None, "mtp"),
            *self.layer(at, self.c.is_moe(number)),
            self.vector(f"{at}.shared_head.norm.weight", hidden, "norm"),
        ]
        for target in own:
            yield replace(target, name=target.name.replace(at, "mtp", 1))

    def attention(self, at: str) -> Iterator[Target]:
        c = self.c
        heads, hidden = c.num_attention_heads, c.hidden_size
        cut = partial(self.matrix, component="attention", what="num_attention_heads")
        if c.q_lora_rank is None:
            yield cut(f"{at}.q_proj.weight", (heads * c.qk_head_dim, hidden), 0, unit=c.qk_head_dim)
        else:
            yield cut(f"{at}.q_a_proj.weight", (c.q_lora_rank, hidden), None)
            yield self.vector(f"{at}.q_a_layernorm.weight", c.q_lora_rank, "norm")
            yield cut(
                f"{at}.q_b_proj.weight",
                (heads * c.qk_head_dim, c.q_lora_rank),
                0,
                unit=c.qk_head_dim,
            )
        yield cut(
            f"{at}.kv_a_proj_with_mqa.weight", (c.kv_lora_rank + c.qk_rope_head_dim, hidden), None
        )
        yield self.vector(f"{at}.kv_a_layernorm.weight", c.kv_lora_rank, "norm")
        nope, value = c.qk_nope_head_dim, c.v_head_dim
        kv_b = cut(
            f"{at}.kv_b_proj.weight", (heads * (nope + value), c.kv_lora_rank), 0, unit=nope + value
        )
        if self.plan.attention == "low_rank":
            (rows,) = kv_b.pieces
            count = rows.length // (nope + value)
            for name, shape, transform in (
                ("kv_b_proj_w_k", (count, nope, c.kv_lora_rank), kv_b_to_w_k),
                ("kv_b_proj_w_v", (count, c.kv_lora_rank, value), kv_b_to_w_v),
            ):
                piece = Piece(
                    rows.source,
                    rows.source_shape,
                    0,
                    rows.start,
                    rows.length,
                    (),
                    0,
                    count,
                    partial(transform, nope=nope, value=value),
                    rows.unit,
                )
                yield Target(f"{at}.{name}", shape, (piece,), component="attention")
        else:
            yield kv_b
        yield cut(f"{at}.o_proj.weight", (hidden, heads * value), 1, unit=value)

    def mlp(self, at: str, width: int, component: str) -> Iterator[Target]:
        hidden = self.c.hidden_size
        what = "moe_intermediate_size" if component != "dense" else "intermediate_size"
        gate = self.matrix(f"{at}.gate_proj.weight", (width, hidden), 0, component, what=what)
        up = self.matrix(f"{at}.up_proj.weight", (width, hidden), 0, component, what=what)
        if self.plan.mlp == "merged":
            local = gate.shape[0]
            pieces = (_moved(gate.pieces[0], (), 0), _moved(up.pieces[0], (), local))
            yield Target(
                f"{at}.merge_up_gate_proj.weight", (2 * local, hidden), pieces, component=component
            )
        else:
            yield from (gate, up)
        yield self.matrix(f"{at}.down_proj.weight", (hidden, width), 1, component, what=what)

    def moe(self, at: str) -> Iterator[Target]:
        c = self.c
        yield self.matrix(
            f"{at}.gate.weight",
            (c.n_routed_experts, c.hidden_size),
            None,
            "gate",
            keep_float32=True,
        )
        yield self.vector(
            f"{at}.gate.e_score_correction_bias", c.n_routed_experts, "gate", keep_float32=True
        )
        experts = [
            list(self.mlp(f"{at}.experts.{e}", c.moe_intermediate_size, "experts"))
            for e in range(c.n_routed_experts)
        ]
        if self.plan.experts == "grouped":
            yield from self._stacked(at, experts)
        else:
            for parts in experts:
                yield from parts
        if c.n_shared_experts:
            yield from self.mlp(
                f"{at}.shared_experts", c.moe_intermediate_size * c.n_shared_experts, "shared"
            )

    def _stacked(self, at: str, experts: list[list[Target]]) -> Iterator[Target]:
        names = (
            ("group_w1_w3", "group_w2")
            if self.plan.mlp == "merged"
            else ("group_w1", "group_w3", "group_w2")
        )
        for name, same_part in zip(names, zip(*experts, strict=True), strict=True):
            pieces = tuple(
                _moved(p, (e,), p.offset) for e, part in enumerate(same_part) for p in part.pieces
            )
            yield Target(
                f"{at}.experts.{name}",
                (len(experts), *same_part[0].shape),
                pieces,
                component="experts",
            )


def _moved(piece: Piece, at: tuple[int, ...], offset: int) -> Piece:
    return replace(piece, at=at, offset=offset)


def source_shapes(config: DeepseekV3Config, mtp: bool = False) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of every tensor the model uses, from the config alone; with `mtp`
    those of its MTP layer too."""
    plan = PortPlan(mtp=mtp)
    return {p.source: p.source_shape for t in targets(config, plan) for p in t.pieces}

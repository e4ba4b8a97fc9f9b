"""The plan of a port: which form of each component is built, and so which steps are on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from .errors import PortError
from .steps import PRODUCTION, STEPS, step


@dataclass(frozen=True, kw_only=True)
class PortPlan:
    """Which form of each component is built. The defaults are the upstream model. Every combination
    is correct when run eagerly; `graph_blockers` says which forms a graph needs.

    Options that are not steps of their own: `prefill_attention` (of mla_low_rank: how it computes
    several queries at once; "expanded" by fused kernels where the device has them, "plain" with all
    scores [B, N, S, L] in memory), `decode_attention` (of mla_low_rank: "split" reads what is filled of the
    cache, on cuda by a Triton kernel that no GPU has run yet; "products" reads the whole buffer under a
    mask), `npu_routing_kernel` (of gmm_routing: npu_moe_* routing operators, else
    sort and count in torch), `quant` (no step: every step leaves the numbers as they were, and this one
    rounds them), `weight_format` (of quant: the order in which its int8 matrices lie on an NPU), `mla_prolog`
    (of paged_cache: one operator with narrow limits in place of what its cached steps do before their
    scores), `kv_cache_dtype` (of mla_prolog and quant: latent rows are cached as int8, by one scale a layer
    that calibration finds), `group_mask_value` (the old sample and Hugging Face's first code used 0.0,
    DeepSeek's own -inf).
    """

    tensor_parallel: bool = False
    attention: Literal["expanded", "low_rank"] = "expanded"
    prefill_attention: Literal["expanded", "absorbed", "plain"] = "expanded"
    decode_attention: Literal["products", "split"] = "products"
    experts: Literal["loop", "grouped"] = "loop"
    npu_routing_kernel: bool = True
    quant: Literal["none", "w8a8"] = "none"  # of Part II: matrices and their inputs of int8
    weight_format: Literal["nd", "nz"] = "nd"  # of Part II: nz is FRACTAL_NZ, an NPU's own order
    group_mask: Literal["scatter", "one_hot"] = "scatter"
    group_mask_value: float = -math.inf
    mlp: Literal["split", "merged"] = "split"
    cache: Literal["growing", "fixed", "paged"] = "growing"  # paged: of Part II, with its attention
    rope: Literal["per_layer", "per_step"] = "per_layer"
    norm: Literal["separate", "add_rms_norm"] = "separate"
    lm_head: Literal["all", "last"] = "all"
    mtp: bool = False  # of Part II: the layer that drafts tokens is built, and its weights are read
    mla_prolog: bool = False  # of Part II: cached steps begin with one operator
    kv_cache_dtype: Literal["model", "int8"] = (
        "model"  # of Part II: of the latent part of a paged row
    )
    graph: Literal["eager", "ge", "aclgraph"] = "eager"  # an execution mode, see engine/graph.py

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise PortError(
                    f"PortPlan.{name} is {getattr(self, name)!r}; it can be "
                    + " or ".join(repr(a) for a in allowed)
                )
        if self.cache == "paged" and self.attention != "low_rank":
            raise PortError(
                "PortPlan.cache 'paged' holds latent rows: it needs attention 'low_rank' (step "
                f"{step('mla_low_rank').id!r})"
            )
        if self.decode_attention == "split":
            self._require_latent_buffer()
        if self.mla_prolog and self.cache != "paged":
            raise PortError(
                "PortPlan.mla_prolog writes into blocks: it needs cache 'paged' (step "
                f"{step('paged_cache').id!r})"
            )
        if self.weight_format == "nz" and self.quant == "none":
            raise PortError(
                "PortPlan.weight_format 'nz' is for int8 matrices: it needs quant 'w8a8' (`--plan …+w8a8+nz`)"
            )
        if self.kv_cache_dtype == "int8":
            self._require_int8_writer()

    def _require_latent_buffer(self) -> None:
        """PortError where no step has one buffer of latent rows for its decode_attention."""
        if self.attention != "low_rank":
            raise PortError(
                "PortPlan.decode_attention 'split' reads latent rows: it needs attention 'low_rank' (step "
                f"{step('mla_low_rank').id!r})"
            )
        if self.cache == "paged":
            raise PortError(
                "PortPlan.decode_attention 'split' reads one buffer, and cache 'paged' (with mla_prolog and an "
                "int8 cache) has an attention of its own over its blocks: take 'products'"
            )

    def _require_int8_writer(self) -> None:
        """PortError where nothing in the plan writes or reads int8 latent rows."""
        needed = {"cache": "paged", "quant": "w8a8", "mla_prolog": True}
        for name, value in needed.items():
            if getattr(self, name) != value:
                raise PortError(
                    "PortPlan.kv_cache_dtype 'int8' is what npu_mla_prolog_v3 writes with int8 matrices: it "
                    f"needs {name} {value!r} (`--plan production+w8a8+mla_prolog+c8`)"
                )
        if self.prefill_attention == "absorbed":
            raise PortError(
                "PortPlan.prefill_attention 'absorbed' has 16-bit queries, and "
                "npu_fused_infer_attention_score_v2 takes int8 ones over an int8 cache: 'expanded' or 'plain'"
            )

    @classmethod
    def upstream(cls) -> PortPlan:
        """The model as DeepSeek and Hugging Face wrote it."""
        return cls()

    @classmethod
    def full(cls) -> PortPlan:
        """Every step that changes the model (1 to 6.4), run eagerly; graph modes are added with
        `plus`."""
        return cls.with_steps(*(s.id for s in STEPS if s.field != "graph"))

    @classmethod
    def production(cls) -> PortPlan:
        """The full port with every step of Part II, run eagerly."""
        return cls.full().plus(*(s.id for s in PRODUCTION))

    @classmethod
    def upto(cls, step_id: str) -> PortPlan:
        """The ladder's rung at `step_id`: this step and all before it. Part II's stand behind the
        full port: no graph mode is on."""
        last = step(step_id)
        if last in PRODUCTION:
            return cls.full().plus(*(s.id for s in PRODUCTION[: PRODUCTION.index(last) + 1]))
        return cls.with_steps(*(s.id for s in STEPS[: STEPS.index(last) + 1]))

    @classmethod
    def with_steps(cls, *step_ids: str) -> PortPlan:
        """Upstream plus just these steps, in any combination."""
        return cls().plus(*step_ids)

    def plus(self, *step_ids: str) -> PortPlan:
        return dataclasses.replace(self, **{step(i).field: step(i).ported for i in step_ids})

    def minus(self, *step_ids: str) -> PortPlan:
        return dataclasses.replace(self, **{step(i).field: step(i).upstream for i in step_ids})

    def replace(self, **changes: Any) -> PortPlan:
        return dataclasses.replace(self, **changes)

    @property
    def step_ids(self) -> tuple[str, ...]:
        """The steps that are on, in ladder order."""
        on = [s for s in (*STEPS, *PRODUCTION) if getattr(self, s.field) == s.ported]
        beneath = {s.field: s.upstream for s in on if s in PRODUCTION}
        return tuple(
            s.id for s in (*STEPS, *PRODUCTION) if s in on or beneath.get(s.field) == s.ported
        )


# field -> what it can be, the default first
CHOICES: dict[str, tuple[Any, ...]] = {
    name: get_args(hint) or (False, True) for name, hint in get_type_hints(PortPlan).items()
} | {"npu_routing_kernel": (True, False), "group_mask_value": (-math.inf, 0.0)}


def graph_blockers(plan: PortPlan) -> list[str]:
    """Why a plan cannot run as one static graph, each with the step that removes the reason."""
    reasons = []
    if plan.experts == "loop":
        reasons.append(
            f"the expert loop reads counts on the host (step {step('gmm_routing').id!r} removes it)"
        )
    if plan.cache == "growing":
        reasons.append(
            f"the growing cache has a new shape each step (step {step('fixed_kv_cache').id!r} removes it)"
        )
    return reasons

"""The ordered registry of porting steps, and the plan that says which of them are on.

Notebooks, tests, plots, README's table and the progress map are all read from STEPS; nothing else
lists the steps.
A step is a swap: it sets one field of PortPlan, and `build(config, plan)` assembles the named
    forms.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from .errors import PortError

# Largest |difference| of logits over their largest magnitude, by dtype; 0 where the step is exact.
# float32: another order of the same additions. bfloat16: a rounding step of 2^-8 met in every
#     layer.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2}
EXACT = {"float64": 0.0, "float32": 0.0, "bfloat16": 0.0, "float16": 0.0}


@dataclass(frozen=True)
class PortPlan:
    """Which form of each component is built. The defaults are the upstream model; every combination
    is correct.

    Options that are not steps of their own: `prefill_attention` (of mla_low_rank),
    `npu_routing_kernel` (of gmm_routing), `group_mask_value` (the old sample and Hugging Face's
    first code used 0.0, DeepSeek's own -inf).
    """

    tensor_parallel: bool = False
    attention: str = "expanded"  # or "low_rank"
    prefill_attention: str = (
        "expanded"  # or "absorbed": how the low-rank form computes several queries at once
    )
    experts: str = "loop"  # or "grouped"
    npu_routing_kernel: bool = (
        True  # grouped experts: npu_moe_* routing operators, else sort and count in torch
    )
    group_mask: str = "scatter"  # or "one_hot"
    group_mask_value: float = -math.inf  # or 0.0
    mlp: str = "split"  # or "merged"
    cache: str = "growing"  # or "fixed"
    rope: str = "per_layer"  # or "per_step"
    norm: str = "separate"  # or "add_rms_norm"
    lm_head: str = "all"  # or "last"
    graph: str = "eager"  # or "ge", "aclgraph": an execution mode, see engine/graph.py

    def __post_init__(self) -> None:
        for name, allowed in _FORMS.items():
            if getattr(self, name) not in allowed:
                raise PortError(
                    f"PortPlan.{name} is {getattr(self, name)!r}; it can be "
                    + " or ".join(repr(a) for a in allowed)
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
    def upto(cls, step_id: str) -> PortPlan:
        """The ladder's rung at `step_id`: this step and all before it."""
        last = STEPS.index(step(step_id))
        return cls.with_steps(*(s.id for s in STEPS[: last + 1]))

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
        return tuple(s.id for s in STEPS if getattr(self, s.field) == s.ported)


@dataclass(frozen=True)
class Step:
    """One porting step. `before` and `after` name objects of dsv3_port as 'module:attribute' (see
    course/show.py)."""

    id: str
    number: str
    title: str
    title_zh: str
    notebook: str
    field: str  # of PortPlan
    upstream: Any
    ported: Any
    before: str
    after: str
    stays_equal: str
    saves: str  # what it saves on an NPU, in countable terms
    tolerance: dict[str, float] = dataclasses.field(default_factory=lambda: dict(TOLERANCE))


STEPS: tuple[Step, ...] = (
    Step(
        "tensor_parallel",
        "1",
        "Shard the weights over ranks",
        "权重切分",
        "01_shard_weights",
        "tensor_parallel",
        False,
        True,
        "model.linear:Linear",
        "model.linear:RowParallelLinear",
        "logits; each rank holds 1/W of heads, widths and vocabulary",
        "memory per card; adds two all-reduces a layer",
    ),
    Step(
        "mla_low_rank",
        "2",
        "MLA low-rank absorb",
        "MLA 低秩压缩",
        "02_mla_low_rank",
        "attention",
        "expanded",
        "low_rank",
        "model.attention:ExpandedAttention",
        "model.attention:LowRankAttention",
        "logits; the cache holds R + Dr numbers a token and layer instead of N (Dn + Dr + Dv)",
        "KV-cache bytes read by every decode step",
    ),
    Step(
        "gmm_routing",
        "3",
        "Grouped matmul (GMM) routing",
        "GMM 专家路由",
        "03_gmm_routing",
        "experts",
        "loop",
        "grouped",
        "model.experts:ExpertLoop",
        "model.experts:GroupedExperts",
        "expert indices and logits",
        "launches: a fixed number a layer instead of several for each expert; no host sync",
    ),
    Step(
        "one_hot_gate",
        "4",
        "One-hot group mask",
        "MoeGate 亲和优化",
        "04_one_hot_gating",
        "group_mask",
        "scatter",
        "one_hot",
        "model.gate:scatter_group_mask",
        "model.gate:one_hot_group_mask",
        "expert indices, bit for bit",
        "a scatter with random writes becomes a comparison and a sum",
        dict(EXACT),
    ),
    Step(
        "merged_mlp",
        "5",
        "Merged gate and up projections",
        "MLP 合并",
        "05_merged_mlp",
        "mlp",
        "split",
        "merged",
        "model.mlp:SplitMLP",
        "model.mlp:MergedMLP",
        "logits",
        "one matmul and one SwiGLU operator instead of two matmuls, a SiLU and a product",
    ),
    Step(
        "fixed_kv_cache",
        "6.1",
        "Fixed-size KV cache",
        "固定 KV cache",
        "06_eager_finish",
        "cache",
        "growing",
        "fixed",
        "model.cache:GrowingCache",
        "model.cache:FixedCache",
        "logits",
        "no allocation and no copy of the whole cache a step; shapes stay static for graphs",
    ),
    Step(
        "rope_once",
        "6.2",
        "cos/sin once per step",
        "cos/sin 预计算",
        "06_eager_finish",
        "rope",
        "per_layer",
        "per_step",
        "model.rope:apply_rope",
        "model.rope:apply_rope_ported",
        "logits",
        "cos and sin are made once instead of once per layer; one rotary operator",
    ),
    Step(
        "add_rms_norm",
        "6.3",
        "Add + RMSNorm fused",
        "Add+RMSNorm 融合",
        "06_eager_finish",
        "norm",
        "separate",
        "add_rms_norm",
        "model.norm:SeparateNorm",
        "model.norm:FusedNorm",
        "logits",
        "one operator instead of an addition and six of the norm, twice a layer",
    ),
    Step(
        "last_token_head",
        "6.4",
        "LM head on the last token",
        "LM Head 仅算末位",
        "06_eager_finish",
        "lm_head",
        "all",
        "last",
        "model.linear:every_position",
        "model.linear:last_position",
        "the last position's logits, the only ones that generation reads",
        "S-1 of S rows of the largest matmul in prefill",
    ),
    Step(
        "ge_graph",
        "7",
        "torchair GE graph",
        "GE 图模式",
        "07_torchair_graph",
        "graph",
        "eager",
        "ge",
        "engine.graph:run_eager",
        "engine.graph:compile_steps",
        "logits and greedy tokens",
        "host launches: one graph a step",
    ),
    Step(
        "aclgraph",
        "8",
        "aclgraph capture and replay",
        "aclgraph 捕获与重放",
        "08_aclgraph",
        "graph",
        "eager",
        "aclgraph",
        "engine.graph:run_eager",
        "engine.graph:compile_steps",
        "logits and greedy tokens",
        "host launches: one replay a step, with the eager kernels",
    ),
)

_FORMS: dict[str, tuple[Any, ...]] = {
    "tensor_parallel": (False, True),
    "attention": ("expanded", "low_rank"),
    "prefill_attention": ("expanded", "absorbed"),
    "experts": ("loop", "grouped"),
    "npu_routing_kernel": (True, False),
    "group_mask": ("scatter", "one_hot"),
    "group_mask_value": (-math.inf, 0.0),
    "mlp": ("split", "merged"),
    "cache": ("growing", "fixed"),
    "rope": ("per_layer", "per_step"),
    "norm": ("separate", "add_rms_norm"),
    "lm_head": ("all", "last"),
    "graph": ("eager", "ge", "aclgraph"),
}


def step(step_id: str) -> Step:
    """The step with this id; its number ("6.1") works too."""
    for s in STEPS:
        if step_id in (s.id, s.number):
            return s
    raise PortError(f"unknown step {step_id!r}; the steps are " + ", ".join(s.id for s in STEPS))


def progress_map(here: str = "") -> str:
    """The ladder as Markdown, with the steps of notebook `here` marked; for the "where we are"
    cells."""
    rows = ["| | step | notebook |", "|---|---|---|"]
    for s in STEPS:
        mark = "**▶ {}**" if s.notebook == here else "{}"
        rows.append(f"| {s.number} | {mark.format(s.title)} · {s.title_zh} | `{s.notebook}` |")
    return "\n".join(rows)

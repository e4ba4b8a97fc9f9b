"""The ordered registry of porting steps.

Notebooks, tests, plots, README's table and the progress map are all read from STEPS; nothing else
lists the steps. A step is a swap: it sets one field of PortPlan (plan.py), and `build(config, plan)`
assembles the named forms.

PRODUCTION is Part II: what production ports do behind the full port. Its steps go on from a ported
form (`upstream` is that form), and nothing of Part I reads them: `PortPlan.full()` has none on.

SERVING (the loop around the model), ROUNDING (an option of every plan: no step changes the numbers) and FUSED
(operators with narrow limits: an option of some plans) are Part II too, and have no number on the ladder.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .errors import PortError
from .messages import told, tr

# Largest |difference| of logits over their largest magnitude, by dtype; 0 where the step is exact.
# float32: another order of the same additions. bfloat16: a rounding of 2^-8 in every layer.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2}
EXACT = {"float64": 0.0, "float32": 0.0, "bfloat16": 0.0, "float16": 0.0}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One porting step. `before` and `after` name objects of dsv3_port as 'module:attribute' (see
    course/show.py). Chinese for title, stays_equal and saves is in locale/zh.po."""

    id: str
    number: str = ""
    title: str
    notebook: str
    field: str = ""  # of PortPlan; "" beside the ladder
    upstream: Any = None
    ported: Any = None
    before: str
    after: str
    stays_equal: str
    saves: str  # what it saves on an NPU, in countable terms
    tolerance: dict[str, float] = dataclasses.field(default_factory=lambda: dict(TOLERANCE))


STEPS: tuple[Step, ...] = (
    Step(
        id="tensor_parallel",
        number="1",
        title="Shard the weights over ranks",
        notebook="01_shard_weights",
        field="tensor_parallel",
        upstream=False,
        ported=True,
        before="model.linear:Linear",
        after="model.linear:RowParallelLinear",
        stays_equal="logits; each rank holds 1/W of heads, widths and vocabulary",
        saves="memory per card; adds two all-reduces a layer",
    ),
    Step(
        id="mla_low_rank",
        number="2",
        title="MLA low-rank absorb",
        notebook="02_mla_low_rank",
        field="attention",
        upstream="expanded",
        ported="low_rank",
        before="model.attention:ExpandedAttention",
        after="model.attention:LowRankAttention",
        stays_equal="logits; the cache holds R + Dr numbers a token and layer",
        saves="KV-cache bytes read by every decode step",
    ),
    Step(
        id="gmm_routing",
        number="3",
        title="Grouped matmul (GMM) routing",
        notebook="03_gmm_routing",
        field="experts",
        upstream="loop",
        ported="grouped",
        before="model.experts:ExpertLoop",
        after="model.experts:GroupedExperts",
        stays_equal="expert indices and logits",
        saves="launches: as many for any number of experts; no host sync",
    ),
    Step(
        id="one_hot_gate",
        number="4",
        title="One-hot group mask",
        notebook="04_one_hot_gating",
        field="group_mask",
        upstream="scatter",
        ported="one_hot",
        before="model.gate:scatter_group_mask",
        after="model.gate:one_hot_group_mask",
        stays_equal="expert indices, bit for bit",
        saves="a scatter with random writes becomes a comparison and a sum",
        tolerance=dict(EXACT),
    ),
    Step(
        id="merged_mlp",
        number="5",
        title="Merged gate and up projections",
        notebook="05_merged_mlp",
        field="mlp",
        upstream="split",
        ported="merged",
        before="model.mlp:SplitMLP",
        after="model.mlp:MergedMLP",
        stays_equal="logits",
        saves="one matmul and one SwiGLU operator instead of four",
    ),
    Step(
        id="fixed_kv_cache",
        number="6.1",
        title="Fixed-size KV cache",
        notebook="06a_fixed_cache",
        field="cache",
        upstream="growing",
        ported="fixed",
        before="model.cache:GrowingCache",
        after="model.cache:FixedCache",
        stays_equal="logits",
        saves="no allocation and no copy of the whole cache a step; shapes stay static for graphs",
    ),
    Step(
        id="rope_once",
        number="6.2",
        title="cos/sin once per step",
        notebook="06b_small_operators",
        field="rope",
        upstream="per_layer",
        ported="per_step",
        before="model.rope:apply_rope",
        after="model.rope:apply_rope_ported",
        stays_equal="logits",
        saves="cos and sin are made once instead of once per layer; one rotary operator",
    ),
    Step(
        id="add_rms_norm",
        number="6.3",
        title="Add + RMSNorm fused",
        notebook="06b_small_operators",
        field="norm",
        upstream="separate",
        ported="add_rms_norm",
        before="model.norm:SeparateNorm",
        after="model.norm:FusedNorm",
        stays_equal="logits",
        saves="one operator instead of an addition and six of the norm, twice a layer",
    ),
    Step(
        id="last_token_head",
        number="6.4",
        title="LM head on the last token",
        notebook="06b_small_operators",
        field="lm_head",
        upstream="all",
        ported="last",
        before="model.linear:every_position",
        after="model.linear:last_position",
        stays_equal="the last position's logits, the only ones that generation reads",
        saves="S-1 of S rows of the largest matmul in prefill",
    ),
    Step(
        id="ge_graph",
        number="7",
        title="torchair GE graph",
        notebook="07_torchair_graph",
        field="graph",
        upstream="eager",
        ported="ge",
        before="engine.graph:run_eager",
        after="engine.graph:compile_steps",
        stays_equal="logits and greedy tokens",
        saves="host launches: one graph a step",
    ),
    Step(
        id="aclgraph",
        number="8",
        title="aclgraph capture and replay",
        notebook="08_aclgraph",
        field="graph",
        upstream="eager",
        ported="aclgraph",
        before="engine.graph:run_eager",
        after="engine.graph:compile_steps",
        stays_equal="logits and greedy tokens",
        saves="host launches: one replay a step, with the eager kernels",
    ),
)

PRODUCTION: tuple[Step, ...] = (
    Step(
        id="paged_cache",
        number="9",
        title="Paged cache and fused attention",
        notebook="12_paged_cache",
        field="cache",
        upstream="fixed",
        ported="paged",
        before="model.attention:LowRankAttention.forward",
        after="model.paged_attention:PagedAttention.forward",
        stays_equal="logits and greedy tokens",
        saves="cache memory: blocks of what a sequence has; one operator writes rows, one attends",
    ),
    Step(
        id="mtp",
        number="10",
        title="Multi-token prediction (MTP)",
        notebook="13_mtp",
        field="mtp",
        upstream=False,
        ported=True,
        before="engine.decoding:decode",
        after="engine.speculative:decode",
        stays_equal="greedy tokens, and the distribution of drawn ones",
        saves="decode steps: an accepted draft is a second token",
    ),
)

SERVING: tuple[Step, ...] = (
    Step(
        id="slots",
        title="Continuous batching in slots",
        notebook="14_slots",
        before="engine.decoding:decode",
        after="engine.continuous:run_requests",
        stays_equal="each request's tokens, in any order of arrival",
        saves="decode steps: a row that is done takes the next request",
    ),
)

ROUNDING: tuple[Step, ...] = (
    Step(
        id="w8a8",
        title="W8A8: int8 matrices and inputs",
        notebook="15_int8",
        before="model.mlp:MergedMLP",
        after="model.mlp:Int8MLP",
        stays_equal="its own definition, bit for bit",
        saves="half of bfloat16's bytes",
    ),
)

FUSED: tuple[Step, ...] = (
    Step(
        id="mla_prolog",
        title="One launch before the scores",
        notebook="16_one_launch",
        before="model.paged_attention:PagedAttention.forward",
        after="model.mla_prolog:PrologAttention.launch",
        stays_equal="logits and greedy tokens",
        saves="launches: twelve in each layer become one",
    ),
)
SECOND = (*PRODUCTION, *SERVING, *ROUNDING, *FUSED)  # Part II
_BY_ID = {s.id: s for s in (*STEPS, *SECOND)}


def step(step_id: str) -> Step:
    """The step with this id; its number ("6.1") works too."""
    known = (*STEPS, *PRODUCTION)
    for s in known:
        if step_id in (s.id, s.number):
            return s
    raise PortError(f"unknown step {step_id!r}; the steps are " + ", ".join(s.id for s in known))


def change(step_id: str) -> Step:
    """The step with this id, on the ladder or beside it."""
    return _BY_ID.get(step_id) or step(step_id)


def title_of(variant: str) -> str:
    """How a variant is written on a picture: a step's id becomes its number and title."""
    word, _, rest = variant.partition(" ")
    if word == "only":
        return tr("only {step}").format(step=title_of(rest))
    if word == "without":
        return tr("without {step}").format(step=title_of(rest))
    known = _BY_ID.get(variant)
    return f"{known.number} {told(known.title)}".strip() if known else told(variant)

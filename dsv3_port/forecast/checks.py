"""The forecast held against what others measured: the same roofline and assumptions, the cited
configuration.

The cited runs are not this package's (other engines, int8, expert parallelism), so each row says
what was forecast and what was left out. A row whose figure lies outside its range is a finding
about the assumptions, and is shown as such.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import DeepseekV3Config
from ..count.step_work import StepWork, step_work
from ..messages import N_, told, tr
from ..plan import PortPlan
from .planner import kv_bytes_per_token, weight_bytes
from .roofline import CARDS, FAST, SLOW, Assumptions, Card, Range, forecast_step


@dataclass(frozen=True)
class Check:
    """A cited figure beside the forecast of the same quantity."""

    what: str
    unit: str
    measured: float
    forecast: Range  # in `unit`
    how: str  # what was forecast, and with what simplification
    source: str

    @property
    def inside(self) -> bool:
        return self.forecast.low <= self.measured <= self.forecast.high

    @property
    def error(self) -> float:
        """Middle of the forecast over the measured figure, minus 1: 0.2 is a fifth too high."""
        return self.forecast.middle / self.measured - 1

    @property
    def verdict(self) -> str:
        if self.inside:
            return tr("inside")
        if self.measured < self.forecast.low:
            below = tr("{times:.1f} times below the range")
            return below.format(times=self.forecast.low / self.measured)
        above = tr("{times:.1f} times above the range")
        return above.format(times=self.measured / self.forecast.high)


def cited_checks() -> list[Check]:
    """Every published figure of DeepSeek-V3 or R1 on Ascend whose configuration can be forecast."""
    return [
        _graph_ratio(),
        _two_layers(),
        _decode_expert_parallel(),
        _prefill(3128, N_("R1 prefill of 64 x 4096 tokens, 16 A3 cards, plain")),
        _prefill(
            2512,
            N_(
                "R1 prefill of 64 x 4096 tokens, 16 A3 cards, two micro-batches that hide communication"
            ),
        ),
    ]


def _graph_ratio() -> Check:
    config = DeepseekV3Config.preset("v3-671b")
    work = step_work(config, PortPlan.full(), world_size=32, batch=1, context=4096)
    eager, graph = (forecast_step(work, "a3", mode).total for mode in ("eager", "aclgraph"))
    ratios = sorted((eager.low / graph.low, eager.high / graph.high))
    return Check(
        N_("V3.1 decode step, eager over full graph"),
        N_("times"),
        185.6 / 45.0,
        Range(*ratios),
        "full port eager over aclgraph, 32 A3 ranks, batch 1, 4096 cached; cards and batch of the cited run "
        "are not stated",
        "hicann/cann-learning-hub: blogs/inference/npugraph_ex_aclgraph_graph_mode",
    )


def _two_layers() -> Check:
    config = DeepseekV3Config.preset("v3-671b").replace(
        num_hidden_layers=2, first_k_dense_replace=1
    )
    work = step_work(config, PortPlan.full(), world_size=16, batch=1, context=4096)
    eager, graph = (forecast_step(work, "a3", mode).total for mode in ("eager", "ge"))
    saved = sorted(((eager.low - graph.low) * 1e3, (eager.high - graph.high) * 1e3))
    return Check(
        N_("GE graph on two layers (one dense, one MoE), saved"),
        "ms",
        9.5,
        Range(*saved),
        "eager minus GE graph of a model of two layers, 16 A3 ranks, batch 1; the cited eager is "
        "vLLM-Ascend's (more operators a layer, scheduler included)",
        "hicann/cann-learning-hub: blogs/inference/vllm_ascend_inference_optimization",
    )


def _decode_expert_parallel() -> Check:
    """6144 sequences over 128 dies, 2 tokens a step (MTP1), int8 weights and cache, 2 experts a
    die."""
    config, ranks = DeepseekV3Config.preset("v3-671b"), 128
    batch, context = 6144 // ranks, 4096
    plan = PortPlan.full().replace(prefill_attention="absorbed")
    work = step_work(config, plan, batch=batch, tokens=2, context=context)
    weights = weight_bytes(config, plan, 1, "int8")
    experts = weights.pop("experts") / ranks
    cache = batch * context * kv_bytes_per_token(config, plan, "bfloat16") / 2  # a byte a value
    return Check(
        N_("R1 decode step (TPOT x accepted tokens), 128 A3 dies"),
        "ms",
        44.9 * 1.7,
        _int8_range(work, sum(weights.values()) + experts + cache, 1.0),
        "48 sequences of 4096 on a die, 2 tokens a step, whole-step roofline in int8 with attention in "
        "bfloat16; low: memory and matrix units overlap, high: they do not; TPOT 44.9 ms at 0.7 drafts "
        "accepted is a step of 1.7 times that; kernel starts and all-to-all left out",
        "hicann/cann-recipes-infer: models/deepseek_r1/README.md",
    )


def _prefill(measured: float, what: str) -> Check:
    """64 prompts of 4096 over 32 dies, attention data-parallel, 8 experts a die, int8."""
    config = DeepseekV3Config.preset("v3-671b")
    work = step_work(config, PortPlan.full(), batch=2, tokens=4096, context=4096)
    weights = weight_bytes(config, PortPlan.full(), 1, "int8")
    nbytes = sum(weights.values()) - weights["experts"] * 31 / 32
    return Check(
        what,
        "ms",
        measured,
        _int8_range(work, nbytes, 0.5, communication=0.3),
        "2 prompts on a die, whole-step roofline in int8 with attention in bfloat16, half of the score matrix "
        "skipped as causal; high: communication takes 30 % of the time besides, as the source says",
        "hicann/cann-recipes-infer: docs/models/deepseek_r1/deepseek_r1_prefill_optimization.md",
    )


def _int8_range(
    work: StepWork, nbytes: float, attended: float, communication: float = 0.0
) -> Range:
    """Milliseconds of a whole step from its totals: products of attention in bfloat16 (a share
    `attended` of them is done), all others in int8. Attention reaches in prefill what its kernel
    was measured at, in decode what a bfloat16 product reaches."""
    attention = sum(
        w.flops * w.times for w in work.work if w.part == "attention" and w.op == "aten.bmm"
    )
    others, card = work.flops - attention, CARDS["a3"]

    def ends(a: Assumptions, c: Card) -> tuple[float, float]:
        reached = a.attention if work.phase == "prefill" else a.compute
        products = attended * attention / (c.bfloat16 * reached) + others / (c.int8 * a.int8)
        return nbytes / (c.memory * a.memory), products

    low, high = max(ends(FAST, card)), sum(ends(SLOW, card)) / (1 - communication)
    return Range(low * 1e3, high * 1e3)


# what the same checks said under the constants that were assumed before anything was measured:
# (FORECAST's two ends), in the order of cited_checks
ASSUMED_BEFORE = ((1.8, 3.5), (0.1, 1.3), (35.5, 86.5), (1268.3, 2952.9), (1268.3, 2952.9))


def check_rows() -> list[dict[str, object]]:
    """The checks as a table, the error in numbers."""
    span = tr("{a:.1f} to {b:.1f}")
    return [
        {
            N_("cited"): c.what,
            N_("measured value"): f"{c.measured:.1f} {told(c.unit)}",
            "FORECAST": span.format(a=c.forecast.low, b=c.forecast.high),
            N_("measured is"): c.verdict,
            N_("middle of the forecast"): f"{c.error:+.0%}",
            N_("before it was fitted"): span.format(a=before[0], b=before[1]),
        }
        for c, before in zip(cited_checks(), ASSUMED_BEFORE, strict=True)
    ]


def assumptions_text() -> str:
    """Both ends of the range, as a sentence."""
    said = tr(
        "{memory} of the memory's rate, {compute} of the matrix units', {link} of the links'; {matmul} a matrix "
        "kernel, {other} another, {collective} a collective, {host} of the host an operator in eager mode, {wait} "
        "between replayed kernels"
    )
    share, us = tr("{a:.0%} to {b:.0%}"), tr("{a:g} to {b:g} µs")
    return said.format(
        memory=share.format(a=SLOW.memory, b=FAST.memory),
        compute=share.format(a=SLOW.compute, b=FAST.compute),
        link=share.format(a=SLOW.link, b=FAST.link),
        matmul=us.format(a=FAST.matmul_start * 1e6, b=SLOW.matmul_start * 1e6),
        other=us.format(a=FAST.other_start * 1e6, b=SLOW.other_start * 1e6),
        collective=us.format(a=FAST.collective_start * 1e6, b=SLOW.collective_start * 1e6),
        host=us.format(a=FAST.host * 1e6, b=SLOW.host * 1e6),
        wait=us.format(a=FAST.wait * 1e6, b=SLOW.wait * 1e6),
    )

"""FORECAST of prefill and decode on Ascend NPUs, rung by rung, as a range; nothing is measured.

Each operator of the step (count/step_work.py) takes the longer of its bytes over the memory's rate
and its FLOPs over the matrix units' rate (a roofline: Williams et al. 2009, doi
10.1145/1498765.1498785), each at an achievable fraction; besides, every kernel has a start, every
collective a latency, and eager mode a cost on the host. How many kernels a GE graph has is counted
from converted graphs (ge/layers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config import DeepseekV3Config
from ..count.step_work import StepWork, Work, step_work
from ..errors import PortError
from ..ge import layers as ge_layers
from ..messages import N_
from ..plan import PortPlan
from ..steps import STEPS

_MSMODELING = "Ascend/msmodeling on gitcode.com: tensor_cast/device.py, profile "
_CLOCK = "; 24 cube cores x 4096 products x 1.8 GHz (CANN's platform_config/Ascend910B2C.ini) give the same 353.9"


@dataclass(frozen=True)
class Card:
    """What the vendor states of one rank's hardware: FLOP/s of dense products, bytes/s. On A3 a
    rank is a die."""

    name: str
    bfloat16: float
    float32: float
    int8: float
    memory: float  # bytes/s of HBM
    memory_gib: float
    node: int  # ranks that the inner link joins
    link: float  # bytes/s of one rank in its node, one way
    across: float  # bytes/s of one rank to another node
    source: str


CARDS = {
    "a2": Card(
        "Ascend 910B (Atlas 800 A2, 376T)",
        353.9e12,
        99.5e12,
        752e12,
        1.6 * 2**40,
        64,
        8,
        196e9,
        25e9,
        _MSMODELING + "ATLAS_800_A2_376T_64G" + _CLOCK,
    ),
    "a2-280t": Card(
        "Ascend 910B (Atlas 800 A2, 280T)",
        245.8e12,
        75e12,
        560e12,
        1.6 * 2**40,
        64,
        8,
        196e9,
        25e9,
        _MSMODELING + "ATLAS_800_A2_280T_64G",
    ),
    "a3": Card(
        "Ascend A3 die (Atlas 800 A3, 752T a card)",
        353.9e12,
        99.5e12,
        752e12,
        1.6 * 2**40,
        64,
        16,
        196e9,
        196e9,
        _MSMODELING + "ATLAS_800_A3_752T_128G_DIE" + _CLOCK,
    ),
}


@dataclass(frozen=True)
class Assumptions:
    """Everything that no datasheet says. FAST and SLOW are the two ends of the range, measured where
    anything was."""

    memory: float  # fraction of the memory's rate that a kernel reaches
    compute: float  # fraction of the matrix units' rate
    int8: float  # the same of their int8 rate
    attention: float  # fraction of the bfloat16 rate in prefill attention, masked half not counted
    link: float  # fraction of a link's rate
    matmul_start: float  # seconds before a matrix kernel's first byte, on the device
    other_start: float  # the same of any other kernel
    collective_start: float  # latency of one collective over all ranks
    host: float  # seconds that the host needs to launch one operator in eager mode
    wait: float  # seconds that a replayed kernel waits behind the one before it


# By kernels that others measured (data/npu-kernels; tests/forecast/test_roofline.py derives each
# number from its rows). Memory: slowest and fastest of 16 bfloat16 products of 1 to 8 rows that
# read over 20 MB on 910B4-1, 570 and 1241 GB/s (k241, k245). Compute: quarters of 29 products of
# 3,585 rows and more, 182 and 223 of 245.8 TFLOP/s; narrow ones are slower. int8: quarters of 8
# products, 341 and 395 of 560. Prefill attention: 106 to 114 of 245.8 (k347, k350, k353). Starts: quarters of 20
# products up to 4.5 MB on 910B4-1; other kernels below 0.1 MB: A3's first quarter, 910B4-1's third.
# Host: p10 and p90 of eager waits (g15), and of graph waits (g3, g5, g11). Nothing measured says
# what links reach or how long a collective takes: 70 % of a link is what Ascend/msmodeling assumes
# (noting that it needs calibration), the latency is a guess.
FAST = Assumptions(0.71, 0.91, 0.71, 0.46, 0.9, 8.3e-6, 1.3e-6, 10e-6, 30e-6, 0.74e-6)
SLOW = Assumptions(0.32, 0.74, 0.61, 0.43, 0.7, 12.8e-6, 5.7e-6, 40e-6, 51e-6, 1.52e-6)
MODES = ("eager", "ge", "aclgraph")
PARTS = ("roofline", "kernel starts", "collectives", "host")


@dataclass(frozen=True)
class Range:
    """Seconds under FAST and under SLOW assumptions."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Geometric mean: as far from one end as from the other in times."""
        return float((self.low * self.high) ** 0.5)


@dataclass(frozen=True)
class StepForecast:
    """One phase of one rung on one card. `parts`: what the time is made of; in eager mode host and
    device overlap."""

    rung: str  # id of the step that was added last
    phase: str
    card: str  # key of CARDS
    mode: str
    total: Range
    parts: dict[str, Range]
    launches: tuple[int, int]  # kernels on the device, fewest and most
    work: StepWork

    def to_dict(self) -> dict[str, Any]:
        w = self.work
        ends = {name: [r.low, r.high] for name, r in {"total": self.total, **self.parts}.items()}
        return {
            "forecast": True,
            "step": self.rung,
            "phase": self.phase,
            "card": CARDS[self.card].name,
            "mode": self.mode,
            "ranks": w.world_size,
            "batch": w.batch,
            "tokens": w.tokens,
            "context": w.context,
            "seconds": ends,
            "launches": list(self.launches),
            "bytes": w.nbytes,
            "flops": w.flops,
            "bytes_sent": w.sent,
            "host_waits": w.syncs,
            "source": CARDS[self.card].source,
        }


def operator_seconds(work: Work, card: Card, a: Assumptions) -> tuple[float, str]:
    """(seconds of one such operator without its start, what bounds it: "memory" or "compute")."""
    read = work.nbytes / (card.memory * a.memory)
    product = work.flops / ((card.float32 if work.float32 else card.bfloat16) * a.compute)
    return (read, N_("memory")) if read >= product else (product, N_("compute"))


def collective_seconds(
    kind: str, nbytes: int, world_size: int, card: Card, a: Assumptions
) -> float:
    """An all-reduce or all-gather of `nbytes` a rank: within nodes first, then between them, each
    as a ring."""
    inner = min(world_size, card.node)
    outer = -(-world_size // inner)
    if kind == "all_reduce":
        moved, between = 2 * (inner - 1) / inner * nbytes, 2 * (outer - 1) / outer * nbytes / inner
    else:
        moved, between = (inner - 1) * nbytes, (outer - 1) * inner * nbytes
    return a.collective_start + moved / (card.link * a.link) + between / (card.across * a.link)


def _kernels(work: StepWork, mode: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """(fewest, most) matrix kernels, and others. An aclgraph replays eager's kernels; GE's graph
    has its own."""
    if mode == "ge":
        c = work.config
        dense = min(c.first_k_dense_replace, c.num_hidden_layers)
        return ge_layers.kernels(
            ge_layers.operators(
                recorded_rung(work.plan), work.phase, dense, c.num_hidden_layers - dense
            )
        )
    matmuls = sum(w.times for w in work.work if w.flops)
    return (matmuls, matmuls), (work.launches - matmuls, work.launches - matmuls)


def recorded_rung(plan: PortPlan) -> str:
    """The recorded rung whose graph this plan is, ranks apart."""
    for rung in ge_layers.recorded()["rungs"]:
        if PortPlan.upto(rung).minus("tensor_parallel") == plan.replace(graph="eager").minus(
            "tensor_parallel"
        ):
            return str(rung)
    raise PortError(
        "forecast: this plan's GE graph was not counted; use a rung from fixed_kv_cache on"
    )


def forecast_step(
    work: StepWork, card: str = "a3", mode: str = "eager", rung: str = ""
) -> StepForecast:
    """The range of one step. PortError for a card or mode that is not known."""
    if card not in CARDS or mode not in MODES:
        raise PortError(
            f"forecast: card {card!r} and mode {mode!r}; there are {', '.join(CARDS)} and "
            f"{', '.join(MODES)}"
        )
    matmuls, others = _kernels(work, mode)
    ends = []
    for end, a in enumerate((FAST, SLOW)):
        roof = sum(w.times * operator_seconds(w, CARDS[card], a)[0] for w in work.work)
        starts = matmuls[end] * a.matmul_start + others[end] * a.other_start
        if mode != "eager":
            starts += (matmuls[end] + others[end]) * a.wait
        sent = sum(
            times * collective_seconds(call.kind, call.nbytes, work.world_size, CARDS[card], a)
            for call, times in work.collectives
        )
        host = work.launches * a.host if mode == "eager" else 0.0
        ends.append((roof, starts, sent, host))
    parts = {name: Range(low, high) for name, low, high in zip(PARTS, *ends, strict=True)}
    totals = []
    for *device, host in ends:
        # the host runs ahead of the device; where it must wait for a value, it starts from nothing
        # again
        totals.append(sum(device) + host if work.syncs else max(sum(device), host))
    most = matmuls[1] + others[1]
    return StepForecast(
        rung, work.phase, card, mode, Range(*totals), parts, (matmuls[0] + others[0], most), work
    )


def forecast_ladder(
    config: DeepseekV3Config,
    card: str = "a3",
    *,
    world_size: int = 32,
    batch: int = 1,
    context: int = 4096,
    prompt: int = 1024,
    phases: Sequence[str] = ("prefill", "decode"),
) -> list[StepForecast]:
    """Every step of the ladder in order, bfloat16: prefill of one prompt, decode of `batch`
    sequences in a cache of `context` positions. One rank begins with the upstream form, several
    with its cut (step 1).
    """
    if card not in CARDS:
        raise PortError(f"forecast: card {card!r} is not known; there are {', '.join(CARDS)}")
    found = []
    for phase in phases:
        rows, new, length = (1, prompt, prompt) if phase == "prefill" else (batch, 1, context)
        for s in STEPS:
            plan = PortPlan.upto(s.id) if s.field != "graph" else PortPlan.full()
            mode = "eager" if s.field != "graph" else str(s.ported)
            work = step_work(
                config, plan, world_size=world_size, batch=rows, tokens=new, context=length
            )
            found.append(forecast_step(work, card, mode, s.id))
    return found


def operator_rows(work: StepWork, card: str = "a3", top: int = 12) -> list[dict[str, object]]:
    """Rows of a table: the operators that take longest under FAST assumptions: bytes, FLOPs, and
    what bounds them."""
    sums: dict[tuple[str, str, str], list[float]] = {}
    for w in work.work:
        seconds, bound = operator_seconds(w, CARDS[card], FAST)
        row = sums.setdefault((w.part, w.op, bound), [0, 0, 0, 0])
        for i, value in enumerate((1, w.nbytes, w.flops, seconds)):
            row[i] += value * w.times
    rows = sorted(sums.items(), key=lambda item: -item[1][3])
    return [
        {
            N_("part"): part,
            N_("operator"): op,
            N_("launches"): int(n),
            "MB": round(nbytes / 1e6, 1),
            "GFLOP": round(flops / 1e9, 1),
            N_("bound by"): bound,
            N_("ms at best"): round(seconds * 1e3, 3),
        }
        for (part, op, bound), (n, nbytes, flops, seconds) in rows[:top]
    ]

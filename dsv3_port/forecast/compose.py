"""A step of this package put together from measured kernels, with what stands between them.

Kernel times: forecast/kernel_model.py. Waits and links: forecast/waits.py. The sum is composed from
measured kernels, ± 30 % at best: it is not a measurement of a step. The latency of collectives is
in no source and not in it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..config import DeepseekV3Config
from ..count.step_work import StepWork, step_work
from ..errors import PortError
from ..ge import layers as ge_layers
from ..messages import N_
from ..plan import PortPlan
from ..steps import STEPS
from .kernel_fit import ANY, MATMUL
from .kernel_model import HOW, Costed, KernelModel, published_model
from .roofline import recorded_rung
from .waits import Sent, sent, wait

BAND = 0.3  # no composed sum is better than this
SENTENCE = N_("composed from measured kernels, ± 30 % or worse: not a measurement")


@dataclass(frozen=True)
class Composed:
    """One step in one mode, milliseconds. `kernels` is device time by how it is known; `idle` is
    what the device waits for the host (eager) or for replayed kernels (graph); `starts` is the part
    of the kernels that no size explains."""

    rung: str  # step that was added last
    mode: str
    kernels: dict[str, float]
    starts: float
    idle: float
    low: float
    high: float
    launches: tuple[int, int]
    sent: Sent
    rows: tuple[str, ...]
    costed: tuple[Costed, ...]
    work: StepWork

    @property
    def device(self) -> float:
        return sum(self.kernels.values())

    @property
    def ms(self) -> float:
        return self.device + self.idle

    @property
    def covered(self) -> float:
        """The share of kernel time that points or fits cover."""
        return 1 - self.kernels["bounded"] / self.device

    @property
    def binds(self) -> str:
        """What most of the step is."""
        parts = {
            N_("launches: the device waits for the host"): self.idle
            if self.mode == "eager"
            else 0.0,
            N_("waits between replayed kernels"): self.idle if self.mode != "eager" else 0.0,
            N_("starts of kernels, whatever they do"): self.starts,
            N_("bytes and FLOPs"): self.device - self.starts,
        }
        return max(parts, key=lambda name: parts[name])


def compose(
    work: StepWork, mode: str = "eager", rung: str = "", model: KernelModel | None = None
) -> Composed:
    """One step in one mode. PortError for a GE graph whose kernels were not counted."""
    model = model or published_model()
    costed = tuple(model.cost(w) for w in work.work)
    sums = dict.fromkeys(HOW, 0.0)
    starts = {
        product: model.fits[MATMUL if product else ANY].coefficients["start"]
        for product in (False, True)
    }
    start = 0.0
    for c in costed:
        sums[c.estimate.how] += c.work.times * c.estimate.us / 1e3
        start += c.work.times * min(c.estimate.us, starts[bool(c.work.flops)]) / 1e3
    device = sum(sums.values())
    low, high = _band(costed)
    launches = _launches(work, mode)
    w = wait(mode)
    idle = [_idle(work, costed, mode, each, launches) for each in (w.low, w.us, w.high)]
    links = sent(work.sent, sum(times for _, times in work.collectives))
    ends = (device * low + idle[0] + links.low / 1e3, device * high + idle[2] + links.high / 1e3)
    rows = sorted({r for c in costed for r in c.estimate.rows} | set(w.rows) | set(links.rows))
    return Composed(
        rung, mode, sums, start, idle[1], *ends, launches, links, tuple(rows), costed, work
    )


def _band(costed: Sequence[Costed]) -> tuple[float, float]:
    """Low and high end of the kernels' sum over its middle. Errors of one family go together, those
    of different families do not; at least BAND."""
    off: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    total = 0.0
    for c in costed:
        e, times = c.estimate, c.work.times
        total += times * e.us
        family = off[c.family, e.how]
        family[0] += times * (e.us - e.low)
        family[1] += times * (e.high - e.us)
    below, above = (math.sqrt(sum(f[i] ** 2 for f in off.values())) / total for i in (0, 1))
    return 1 - max(BAND, min(below, 0.9)), 1 + max(BAND, above)


def _launches(work: StepWork, mode: str) -> tuple[int, int]:
    """Kernels, fewest and most: a captured graph replays eager's, a GE graph has its own."""
    if mode != "ge":
        return work.launches, work.launches
    c = work.config
    dense = min(c.first_k_dense_replace, c.num_hidden_layers)
    rung = recorded_rung(work.plan)
    counts = ge_layers.operators(rung, work.phase, dense, c.num_hidden_layers - dense)
    (matmuls, _), (fewest, most) = ge_layers.kernels(counts)
    return matmuls + fewest, matmuls + most


def _idle(
    work: StepWork, costed: Sequence[Costed], mode: str, each: float, launches: tuple[int, int]
) -> float:
    """Milliseconds that the device stands still. In a graph every kernel waits `each`; in eager
    mode the host launches one operator every `each` µs and the device waits where its queue is
    empty, or where the host itself waits for a value."""
    if mode != "eager":
        return each * sum(launches) / 2 / 1e3
    host = device = busy = 0.0
    synced = False
    for c in in_order(costed):
        loop = work.syncs and c.work.part == "experts" and bool(c.work.flops)
        if loop and not synced:  # the loop reads how many tokens each expert has
            host = max(host, device)
        synced = bool(loop or synced and c.work.part == "experts")
        host += each
        device = max(host, device) + c.estimate.us
        busy += c.estimate.us
    return (device - busy) / 1e3


def in_order(costed: Sequence[Costed]) -> Iterator[Costed]:
    """Operators as the step runs them: a layer's run of equal `times` is repeated so often."""
    at = 0
    while at < len(costed):
        end, times = at, costed[at].work.times
        while end < len(costed) and costed[end].work.times == times:
            end += 1
        for _ in range(times):
            yield from costed[at:end]
        at = end


@lru_cache(maxsize=128)
def _work(
    config: DeepseekV3Config, plan: PortPlan, world_size: int, batch: int, tokens: int, context: int
) -> StepWork:
    return step_work(
        config, plan, world_size=world_size, batch=batch, tokens=tokens, context=context
    )


def ladder(
    config: DeepseekV3Config,
    *,
    world_size: int,
    batch: int = 1,
    context: int = 4096,
    model: KernelModel | None = None,
) -> list[Composed]:
    """Decode of `batch` sequences, every step of the ladder in order; the graph steps run the full
    port. bfloat16 on 910B4-1 unless a model of other points is given."""
    if world_size < 2:
        raise PortError("npu ladder: the ladder begins with the cut over ranks; use 2 or more")
    found = []
    for s in STEPS:
        graph = s.field == "graph"
        plan = PortPlan.full() if graph else PortPlan.upto(s.id)
        work = _work(config, plan, world_size, batch, 1, context)
        found.append(compose(work, str(s.ported) if graph else "eager", s.id, model))
    return found


def prefill(config: DeepseekV3Config, rung: str, world_size: int, tokens: int = 4096) -> Composed:
    """Prefill of one prompt at a rung, eager."""
    work = _work(config, PortPlan.upto(rung), world_size, 1, tokens, tokens)
    return compose(work, "eager", rung)

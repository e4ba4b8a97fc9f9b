"""What one step of the model asks of a device, operator by operator: bytes, FLOPs, launches,
collectives.

The model itself runs, in its published sizes, on torch's meta device: shapes without values. So the
counts are those of the code of this plan and not of a formula. An operator that torch_npu has as
one counts as one (`npu_rms_norm`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from ..config import DeepseekV3Config
from ..errors import PortError
from ..model.cache import GrowingCache
from ..model.decoder import build
from ..plan import PortPlan
from .step_counter import CountedRank, StepCounter, Work, counting
from .traffic import Collective, sent_bytes


@dataclass(frozen=True)
class StepWork:
    """One forward call on one of `world_size` ranks."""

    config: DeepseekV3Config
    plan: PortPlan
    world_size: int
    phase: str  # prefill or decode
    batch: int
    tokens: int  # new ones of each sequence
    context: int  # positions that a query meets, its own among them
    work: list[Work]
    collectives: list[tuple[Collective, int]]  # a call, and how many of it
    syncs: int  # times that the host waits for a value

    @property
    def launches(self) -> int:
        """Kernels without collectives."""
        return sum(w.times for w in self.work)

    @property
    def nbytes(self) -> int:
        return sum(w.nbytes * w.times for w in self.work)

    @property
    def flops(self) -> int:
        return sum(w.flops * w.times for w in self.work)

    def layer(self, part: str) -> list[str]:
        """Operators of one layer's part, in order; every layer has the same where the part is attention."""
        names = [w.op for w in self.work if w.part == part]
        kinds = len(one_of_each(self.config)[1]) - 1
        return names[-(len(names) // kinds) :] if names else []

    @property
    def sent(self) -> int:
        """Bytes that this rank sends by ring algorithms."""
        return sum(sent_bytes([call], self.world_size) * times for call, times in self.collectives)


def step_work(
    config: DeepseekV3Config,
    plan: PortPlan,
    *,
    world_size: int = 1,
    batch: int = 1,
    tokens: int = 1,
    context: int = 4096,
    dtype: torch.dtype = torch.bfloat16,
) -> StepWork:
    """A prefill of `tokens` tokens of each sequence where tokens is context, else a step in a cache
    of `context`.

    PortError where the model cannot be cut over `world_size` ranks, or tokens do not fit into the
    context.
    """
    if not 1 <= tokens <= context or batch < 1:
        raise PortError(
            f"step_work: {tokens} tokens of each of {batch} sequences do not fit a context of {context}"
        )
    if plan.quant != "none":
        raise PortError("step_work counts plans without int8: leave +w8a8 out")
    plan = plan.replace(graph="eager")
    plan = plan.plus("tensor_parallel") if world_size > 1 else plan
    return _counted(config, plan, world_size, batch, tokens, context, dtype)


@lru_cache(maxsize=128)
def _counted(
    config: DeepseekV3Config,
    plan: PortPlan,
    world_size: int,
    batch: int,
    tokens: int,
    context: int,
    dtype: torch.dtype,
) -> StepWork:
    """Kept: a forecast asks for the same step on every card, and for graphs as for eager."""
    short, times = one_of_each(config)
    counter = StepCounter(short, batch * tokens, times)
    model = build(short, plan, CountedRank(0, world_size, counter=counter), "meta", dtype)
    cache = model.new_cache(batch, context)
    past = context - tokens
    if past and isinstance(cache, GrowingCache):
        cache.buffers = [
            [
                torch.empty(batch, heads, past, width, device="meta", dtype=dtype)
                for heads, width in cache.widths
            ]
            for _ in range(cache.layers)
        ]
    cache.length = past
    ids = torch.zeros(batch, tokens, dtype=torch.int64, device="meta")
    with counting(model, counter):
        model(ids, cache=cache)
    return StepWork(
        config,
        plan,
        world_size,
        "decode" if past else "prefill",
        batch,
        tokens,
        context,
        counter.work,
        counter.collectives,
        counter.syncs,
    )


def one_of_each(config: DeepseekV3Config) -> tuple[DeepseekV3Config, dict[int, int]]:
    """A model with each kind of layer once, and how many layers each stands for; -1 is what lies
    outside of layers.

    The very first layer is a kind of its own: nothing is added to the stream before its norm.
    """
    layers, dense = (
        config.num_hidden_layers,
        min(config.first_k_dense_replace, config.num_hidden_layers),
    )
    kinds = [config.is_moe(0)]  # of the layers of the short model: MoE or not
    times = [1]
    for moe, count in ((False, dense), (True, layers - dense)):
        rest = count - (1 if kinds[0] == moe else 0)
        if rest > 0:
            kinds.append(moe)
            times.append(rest)
    short = config.replace(num_hidden_layers=len(kinds), first_k_dense_replace=kinds.count(False))
    return short, {-1: 1, **dict(enumerate(times))}

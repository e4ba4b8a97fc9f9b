"""What tensor parallelism sends: collectives counted where they happen, without ranks for any
model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor

from ..config import DeepseekV3Config
from ..engine.device import synchronize
from ..model.decoder import build
from ..ops import cpu
from ..parallel import TensorParallel
from ..plan import PortPlan


@dataclass(frozen=True)
class Collective:
    """One call: what this rank handed over, and how long it took, waiting for the slowest rank
    included."""

    kind: str  # "all_reduce" or "all_gather"
    nbytes: int
    seconds: float = 0.0


def handed_bytes(calls: Sequence[Collective], kind: str = "") -> int:
    """Bytes that one rank hands to these calls, or to those of one kind."""
    return sum(c.nbytes for c in calls if kind in ("", c.kind))


def sent_bytes(calls: Sequence[Collective], world_size: int) -> int:
    """Bytes that one rank puts on the wire for these calls by the ring algorithms: an all-reduce
    sends 2 (W-1)/W of its payload, an all-gather its part W-1 times. (Thakur et al. 2005, doi
    10.1177/1094342005051521.)
    """
    part = {"all_reduce": 2 * (world_size - 1) / world_size, "all_gather": world_size - 1}
    return round(sum(c.nbytes * part[c.kind] for c in calls))


@dataclass(frozen=True)
class CountedParallel(TensorParallel):
    """TensorParallel that writes every collective down; a model built with it logs its own traffic."""

    log: list[Collective] = field(default_factory=list, compare=False, repr=False)

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._count("all_reduce", super().all_reduce, x)

    def all_gather_last(self, x: Tensor) -> Tensor:
        return self._count("all_gather", super().all_gather_last, x)

    def _count(self, kind: str, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.world_size == 1:
            return call(x)
        synchronize(x.device)
        start = time.perf_counter()
        result = call(x)
        synchronize(x.device)
        self.log.append(Collective(kind, x.nbytes, time.perf_counter() - start))
        return result


@dataclass(frozen=True)
class _Rehearsal(CountedParallel):
    """Counts without other ranks: shapes are right, values are nobody's."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._count("all_reduce", lambda y: y, x)

    def all_gather_last(self, x: Tensor) -> Tensor:
        return self._count("all_gather", lambda y: torch.cat([y] * self.world_size, -1), x)


def count_traffic(
    config: DeepseekV3Config,
    plan: PortPlan | None = None,
    world_size: int = 8,
    batch: int = 1,
    tokens: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Collective]:
    """The collectives of one forward call of `tokens` new tokens in each of `batch` sequences, for
    a model of any size.

    The model itself runs, on the meta device (shapes without values), so this is the code's own
    traffic and no formula.
    """
    place = _Rehearsal(0, world_size)
    model = build(config, (plan or PortPlan.full()).plus("tensor_parallel"), place, "meta", dtype)
    ids = torch.zeros(batch, tokens, dtype=torch.int64, device="meta")
    # on meta there are no group borders to read; the compiled form's operator knows its shape
    # without them
    with mock.patch.object(cpu, "_grouped_eager", torch.ops.dsv3.grouped_matmul):
        model(ids)
    return place.log

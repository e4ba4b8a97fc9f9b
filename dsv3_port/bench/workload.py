"""One phase at one size, for several models: what ladder, sweep, peer, limit and worlds time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ..check.equivalence import random_ids
from ..engine.graph import CAPTURED, eagerly, is_compiled, made
from ..errors import PortError
from ..model.cache import Cache
from ..model.decoder import DeepseekV3
from .llamacpp import LlamaPeer
from .measure import measure
from .peer_forms import PIECE, Peer, PeerForm
from .records import Record, Results

PHASES = ("decode", "prefill")
# seconds: several decode steps in a row, as decoding runs; a single one finds the caches cold
DECODE_SAMPLE = 0.03
# seconds: llama.cpp brings its own OpenMP, and the idle threads of either one spin some ms before
# they sleep, on the cores that the other is timed on
SETTLE = 0.02


class Ours:
    """One of our models with a cache of its own, and the interface of peer_forms.Peer."""

    def __init__(self, model: DeepseekV3, batch: int, capacity: int) -> None:
        self.model, self.cache = model, model.new_cache(batch, capacity)

    def rewind(self, length: int) -> None:
        self.cache.rewind(length)

    def fill(self, ids: Tensor) -> None:
        """The prompt in pieces, operator by operator: a graph for each size of piece is not what is
        timed."""
        self.rewind(0)
        with eagerly(self.model):
            for piece in ids.split(PIECE, dim=1):
                self.forward(piece.contiguous())

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(ids, cache=self.cache)
        return logits


class Workload:
    """A call of each model: in decode one cached step behind `size` positions, in prefill a prompt
    of `size` tokens. Before it a fresh input is taken and the cache rewound (`prepare`).

    models: ours, transformers' (which computes all logits, as ours do), an Ours, a Peer or a LlamaPeer.
    capacity: of the caches, default just enough. filled: for decode, random positions lie in the caches.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        phase: str,
        *,
        batch: int,
        size: int,
        capacity: int = 0,
        seed: int = 0,
        filled: bool = True,
    ) -> None:
        if phase not in PHASES:
            raise PortError(f"unknown phase {phase!r}; it can be {' or '.join(PHASES)}")
        decode, capacity = phase == "decode", capacity or size + 1
        self.phase, self.batch, self.size = phase, batch, size
        self.start = size if decode else 0
        self.first = next(iter(models.values()))
        self.runs: dict[str, Ours | Peer | LlamaPeer] = {}
        for name, model in models.items():
            if isinstance(model, DeepseekV3):
                self.runs[name] = Ours(model, batch, capacity)
            elif isinstance(model, Ours | Peer | LlamaPeer):
                self.runs[name] = model
            else:
                self.runs[name] = Peer(PeerForm(name), model, capacity, logits=0)
        shape = (64, batch, 1) if decode else (8, batch, size)
        self.inputs = random_ids(self.first, shape, seed)
        self.now: dict[str, Tensor] = {}
        self.settles = any(isinstance(run, LlamaPeer) for run in self.runs.values())
        self.last = ""
        for run in self.runs.values() if decode and filled else ():
            if isinstance(run, Ours):
                run.cache.fill_random(size, seed)
            else:
                run.fill(random_ids(self.first, (batch, size), seed))

    @property
    def caches(self) -> dict[str, Cache]:
        """Of our own models."""
        return {name: run.cache for name, run in self.runs.items() if isinstance(run, Ours)}

    def prepare(self, name: str, call: int) -> None:
        """What stands beside the models in a measurement has nothing to prepare."""
        if self.settles and name != self.last:
            time.sleep(SETTLE)
        self.last = name
        if name in self.runs:
            self.now[name] = self.inputs[call % len(self.inputs)]
            self.runs[name].rewind(self.start)

    def call(self, name: str) -> Tensor:
        return self.runs[name].forward(self.now[name])

    def variants(self) -> dict[str, Callable[[], Tensor]]:
        return {name: partial(self.call, name) for name in self.runs}

    def meta(self, profile: str, mode: Mapping[str, str]) -> dict[str, Any]:
        """Fields of the records."""
        return {
            "profile": profile,
            "dtype": str(self.first.dtype).removeprefix("torch."),
            "batch": self.batch,
            "phase": self.phase,
            "mode": mode,
            "context" if self.phase == "decode" else "tokens": self.size,
        }

    def measure(
        self,
        profile: str,
        mode: Mapping[str, str] | None = None,
        beside: Mapping[str, Callable[[], Tensor]] | None = None,
        **options: Any,
    ) -> Results:
        """bench.measure of the models, and of what stands beside them. mode: default what the
        models are; options: of bench.measure."""
        given = {"device": self.first.device, "prepare": self.prepare} | options
        meta = self.meta(profile, mode or modes({n: r.model for n, r in self.runs.items()}))
        return measure(self.variants() | dict(beside or {}), meta=meta, **given)


def modes(models: Mapping[str, Any]) -> dict[str, str]:
    """ "eager", "compiled", "captured" or "compiled-captured": what each model is."""

    def mode(model: Any) -> str:
        if not isinstance(model, DeepseekV3) or not is_compiled(model):
            return "eager"
        return found if (found := made(model)) in CAPTURED else "compiled"

    return {name: mode(m) for name, m in models.items()}


def decode_call(
    model: DeepseekV3, context: int, batch: int = 1, spare: int = 16, seed: int = 0
) -> Callable[[], Tensor]:
    """A function that makes one cached step behind `context` random positions, at most `spare`
    times: to count, or to profile. Each call adds a position, so that nothing but the step itself
    is in it.
    """
    cache = model.new_cache(batch, context + spare)
    cache.fill_random(context, seed)
    token = random_ids(model, (batch, 1), seed)

    def call() -> Tensor:
        logits: Tensor = model(token, cache=cache)
        return logits

    return call


def with_first_call(record: Record, first_calls: Mapping[str, Any]) -> Record:
    """A compiled variant's first call, compilation included, was the check's and not the timing's."""
    if record.mode in ("eager", "replayed") or record.name not in first_calls:
        return record
    seconds = getattr(first_calls[record.name], f"seconds_{record.phase}")
    return dataclasses.replace(record, first_call_seconds=seconds)

"""The ladder in numbers: every rung of the port timed against the upstream form, decode and prefill
apart.

Weights and cache contents are random (times do not depend on them); equivalence is checked before
anything is timed.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from ..check.equivalence import STEPS_CHECKED, Rows, check_equivalence
from ..check.peer import cache_argument, peer_model
from ..config import PRESETS, DeepseekV3Config
from ..count.census import count_ops, peak_memory
from ..engine.device import pick_device, pick_dtype
from ..engine.loading import load_model
from ..errors import PortError
from ..model.cache import Cache
from ..model.decoder import DeepseekV3
from ..plan import PortPlan
from ..steps import STEPS
from ..weights.layout import targets
from .measure import Results, measure
from .records import FAIR, PEER, UPSTREAM
from .sweep import with_plan

DECODE_SAMPLE = (
    0.03  # seconds: several steps in a row, as decoding runs; a single one finds the caches cold
)


def ladder_plans(*, compiled: bool = False, alone: bool = False) -> dict[str, PortPlan]:
    """Name -> plan: upstream, the fair baseline, every cumulative rung, each step alone, the
    compiled full port.

    A rung is named after its step; with one rank `tensor_parallel` changes nothing and shows the
    noise.
    """
    steps = [s for s in STEPS if s.field != "graph"]
    plans = {UPSTREAM: PortPlan.upstream(), FAIR: PortPlan.upstream().replace(cache="fixed")}
    plans |= {s.id: PortPlan.upto(s.id) for s in steps}
    if alone:
        plans |= {f"only {s.id}": PortPlan.with_steps(s.id) for s in steps}
    if compiled:
        plans["ge_graph"] = PortPlan.full().plus("ge_graph")
    return plans


def checkpoint_of(profile: str | Path) -> tuple[str, Path]:
    """A preset's name -> its random-weight checkpoint (made once, cached); a folder stands for
    itself."""
    from ..weights.synthetic import synthetic_checkpoint

    if isinstance(profile, Path) or profile not in PRESETS:
        folder = Path(profile)
        if not folder.is_dir():
            raise PortError(
                f"profile {str(profile)!r}: neither a checkpoint folder nor one of {', '.join(PRESETS)}"
            )
        return folder.name, folder
    return profile, synthetic_checkpoint(profile)


def _check_memory(
    config: DeepseekV3Config, plans: Mapping[str, PortPlan], dtype: torch.dtype
) -> None:
    layouts = {(p.attention, p.experts, p.mlp) for p in plans.values()}
    weights = (
        sum(torch.Size(t.shape).numel() for t in targets(config, PortPlan.full())) * dtype.itemsize
    )
    need, there = weights * len(layouts), psutil.virtual_memory().available
    if need > there:
        raise PortError(
            f"the ladder would hold about {need / 2**30:.0f} GiB of weights ({len(layouts)} layouts), this "
            f"machine has {there / 2**30:.0f} GiB free: give fewer plans or a smaller profile"
        )


def load_variants(
    path: Path, plans: Mapping[str, PortPlan], device: str, dtype: torch.dtype
) -> dict[str, DeepseekV3]:
    """One eager model per plan. Equal parameters of different plans share their memory, as nothing
    writes to them."""
    seen: dict[tuple[str, tuple[int, ...]], list[Tensor]] = {}
    read: dict[
        tuple[tuple[str, tuple[int, ...]], ...], DeepseekV3
    ] = {}  # layout of the weights -> a model that has it
    models = {}
    config = DeepseekV3Config.from_pretrained(path)
    for name, plan in tqdm(
        plans.items(),
        desc="load",
        unit="model",
        leave=False,
        delay=2.0,
        mininterval=0.5,
        file=sys.stdout,
    ):
        eager = plan.replace(graph="eager")
        layout = tuple((t.name, t.shape) for t in targets(config, eager))
        if layout in read:
            models[name] = with_plan(read[layout], eager)
            continue
        model = load_model(path, eager, device, dtype)
        for key, parameter in model.named_parameters():
            known = seen.setdefault((key, tuple(parameter.shape)), [])
            same = next((t for t in known if torch.equal(t, parameter)), None)
            if same is None:
                known.append(parameter.data)
            else:
                parameter.data = same
        models[name] = read[layout] = model
    return models


class _Decode:
    """One cached step at a fixed context: a fresh token every call, the cache rewound in between."""

    def __init__(self, models: Mapping[str, Any], batch: int, context: int, seed: int) -> None:
        self.models, self.context = models, context
        self.ids = _tokens(models, (64, batch, 1), seed)
        self.now: dict[str, Tensor] = {}
        self.caches: dict[str, Any] = {}
        self.word = cache_argument(models[PEER]) if PEER in models else ""
        for name, model in models.items():
            if isinstance(model, DeepseekV3):
                self.caches[name] = model.new_cache(batch, context + 1)
                self.caches[name].fill_random(context, seed)
            else:
                self.caches[name] = _peer_cache(model, batch, context, seed)

    def prepare(self, name: str, call: int) -> None:
        self.now[name] = self.ids[call % len(self.ids)]
        cache = self.caches[name]
        if isinstance(cache, Cache):
            cache.rewind(self.context)
        elif (extra := cache.get_seq_length() - self.context) > 0:
            cache.crop(-extra)

    def call(self, name: str) -> Tensor:
        model, cache = self.models[name], self.caches[name]
        if isinstance(model, DeepseekV3):
            return model(self.now[name], cache=cache)
        return model(self.now[name], **{self.word: cache}).logits


class _Prefill:
    """A whole prompt into an empty cache with room for `room` positions."""

    def __init__(
        self, models: Mapping[str, Any], batch: int, length: int, room: int, seed: int
    ) -> None:
        self.models = models
        self.ids = _tokens(models, (8, batch, length), seed)
        self.now: dict[str, Tensor] = {}
        self.caches = {
            n: m.new_cache(batch, room) for n, m in models.items() if isinstance(m, DeepseekV3)
        }

    def prepare(self, name: str, call: int) -> None:
        self.now[name] = self.ids[call % len(self.ids)]
        if name in self.caches:
            self.caches[name].rewind(0)

    def call(self, name: str) -> Tensor:
        model = self.models[name]
        if isinstance(model, DeepseekV3):
            return model(self.now[name], cache=self.caches[name])
        return model(self.now[name], use_cache=True).logits


def _tokens(models: Mapping[str, Any], shape: tuple[int, ...], seed: int) -> Tensor:
    model = next(iter(models.values()))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)


def _peer_cache(peer: Any, batch: int, context: int, seed: int) -> Any:
    """transformers' dynamic cache after a prompt of `context` random tokens, fed in pieces to bound
    the memory."""
    from transformers import DynamicCache

    cache = DynamicCache(config=peer.config)
    ids = _tokens({PEER: peer}, (batch, context), seed)
    for part in ids.split(256, dim=1):
        peer(part, logits_to_keep=1, **{cache_argument(peer): cache})
    return cache


def _variants(models: Mapping[str, Any], workload: _Decode | _Prefill) -> Iterator[tuple[str, Any]]:
    for name in models:
        yield name, lambda name=name: workload.call(name)


def bench_ladder(
    profile: str | Path,
    *,
    device: str = "cpu",
    dtype: str | torch.dtype = "float32",
    context: int = 1024,
    batch: int = 1,
    prefill: int = 128,
    rounds: int = 7,
    compiled: bool = False,
    alone: bool = False,
    plans: Mapping[str, PortPlan] | None = None,
    peer: bool = False,
    phases: Sequence[str] = ("decode", "prefill"),
    seed: int = 0,
    label: str = "",
    differences: dict[str, float] | None = None,
    counted: dict[str, dict[str, float]] | None = None,
) -> Results:
    """Check equivalence, then time decode at `context` cached tokens and prefill of `prefill`
    tokens, interleaved.

    plans: name -> plan, the first of them is the reference; default `ladder_plans(compiled=,
        alone=)`.
    peer: transformers' own model beside them. phases: which of the two are timed.
    differences: receives what the equivalence check found for each variant. counted: receives
    `operators` of one call, `kv_bytes` and `peak_bytes` (count/census.py) of each eager variant.
    """
    if unknown := sorted(set(phases) - {"decode", "prefill"}):
        raise PortError(f"unknown phase {unknown[0]!r}; it can be decode or prefill")
    name, path = checkpoint_of(profile)
    where, kind = pick_device(device), pick_dtype(dtype)
    chosen = dict(plans) if plans is not None else ladder_plans(compiled=compiled, alone=alone)
    if where.type == "cpu":
        _check_memory(DeepseekV3Config.from_pretrained(path), chosen, kind)
    models: dict[str, Any] = dict(load_variants(path, chosen, str(where), kind))
    if peer:
        models[PEER] = peer_model(load_model(path, PortPlan.upstream(), where, kind))
    _compile(models, chosen, "prefill" in phases)
    room = max(
        context + 1, prefill + STEPS_CHECKED
    )  # one size throughout: a graph is compiled for each
    first: dict[str, Rows] = {}
    found = check_equivalence(
        models, batch=batch, length=prefill, room=room, seed=seed, first_calls=first
    )
    if differences is not None:
        differences.update(found)
    mode = {
        n: "compiled" if n in chosen and chosen[n].graph != "eager" else "eager" for n in models
    }
    meta = {
        "profile": name,
        "dtype": str(kind).removeprefix("torch."),
        "batch": batch,
        "mode": mode,
    }
    ids = {n: p.step_ids for n, p in chosen.items()}
    results = Results()
    for phase in phases:
        workload = (
            _Decode(models, batch, context, seed)
            if phase == "decode"
            else _Prefill(models, batch, prefill, room, seed)
        )
        if counted is not None:
            counted.update(_counts(workload, mode))
        size = {"context": context} if phase == "decode" else {"tokens": prefill}
        results += measure(
            dict(_variants(models, workload)),
            rounds=rounds,
            device=where,
            prepare=workload.prepare,
            min_seconds=DECODE_SAMPLE if phase == "decode" else 0.0,
            label=label or f"ladder {name} {phase}",
            step_ids=ids,
            meta=meta | size | {"phase": phase},
        )
    return Results(
        [
            dataclasses.replace(r, first_call_seconds=getattr(first[r.name], f"seconds_{r.phase}"))
            if r.mode == "compiled"
            else r
            for r in results
        ]
    )


def _counts(workload: _Decode | _Prefill, mode: Mapping[str, str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in workload.models:
        facts = found[name] = {}
        if isinstance(cache := workload.caches.get(name), Cache):
            facts["kv_bytes"] = float(cache.nbytes)
        if mode[name] == "eager":
            call = partial(workload.call, name)
            workload.prepare(name, 0)
            facts["operators"] = float(sum(count_ops(call).values()))
            workload.prepare(name, 0)
            facts["peak_bytes"] = float(peak_memory(call, str(workload.models[name].device)))
    return found


def _compile(models: dict[str, Any], plans: Mapping[str, PortPlan], prefill: bool) -> None:
    """Compile what its plan says; a prefill that nobody times stays eager, its compilation would
    take as long."""
    from ..count.graphs import eager_prefill
    from ..engine.graph import compile_steps

    for name, plan in plans.items():
        if plan.graph != "eager":
            models[name] = compile_steps(models[name], plan.graph)
            if not prefill:
                eager_prefill(models[name])

"""The ladder in numbers: every rung of the port timed against the upstream form, decode and prefill
apart.

Weights and cache contents are random (times do not depend on them); equivalence is checked before
anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..check.equivalence import STEPS_CHECKED, check_equivalence
from ..check.peer import peer_model
from ..config import DeepseekV3Config
from ..count.compiled import eager_prefill
from ..count.memory import peak_memory
from ..count.operators import count_ops
from ..engine import graph
from ..engine.device import pick_device, pick_dtype
from ..engine.loading import load_model
from ..errors import PortError
from ..plan import PortPlan
from .models import captures, check_memory, checkpoint_of, ladder_plans, load_variants
from .records import PEER, Results
from .workload import DECODE_SAMPLE, PHASES, Workload, modes, with_first_call

Beside = Callable[[Mapping[str, Any]], Mapping[str, Any]]


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
    phases: Sequence[str] = PHASES,
    seed: int = 0,
    label: str = "",
    count: bool = False,
    also: Beside | None = None,
) -> Results:
    """Check equivalence, then time decode at `context` cached tokens and prefill of `prefill`
    tokens, interleaved.

    plans: name -> plan, the first of them is the reference; default `ladder_plans(compiled=,
        alone=)`. peer: transformers' own model beside them. phases: which of the two are timed.
    also: from the loaded models to others that join them under names of their own, checked and timed in
    the same run (a learner's model).
    count: into `facts`, of one call of each eager variant: `operators`, `kv_bytes`, `peak_bytes`.
    """
    if unknown := sorted(set(phases) - set(PHASES)):
        raise PortError(f"unknown phase {unknown[0]!r}; it can be decode or prefill")
    name, path = checkpoint_of(profile)
    where, kind = pick_device(device), pick_dtype(dtype)
    chosen = dict(plans) if plans is not None else ladder_plans(compiled=compiled, alone=alone)
    if plans is None and compiled and where.type == "cuda" and captures(where, kind):
        chosen["aclgraph"] = PortPlan.full().plus("aclgraph")
    models = _models(path, chosen, where, kind, peer, "prefill" in phases)
    models |= also(models) if also is not None else {}
    # one size throughout: a graph is compiled for each
    room = max(context + 1, prefill + STEPS_CHECKED)
    found = check_equivalence(models, batch=batch, length=prefill, room=room, seed=seed)
    built = modes({n: m for n, m in models.items() if n in chosen and chosen[n].graph != "eager"})
    mode = {n: built.get(n, "eager") for n in models}
    results = Results(differences=dict(found))
    for phase in phases:
        decode = phase == "decode"
        size, capacity = (context, context + 1) if decode else (prefill, room)
        work = Workload(models, phase, batch=batch, size=size, capacity=capacity, seed=seed)
        if count:
            results.facts.update(_facts(work, mode))
        results += work.measure(
            name,
            mode,
            rounds=rounds,
            device=where,
            min_seconds=DECODE_SAMPLE if decode else 0.0,
            label=label or f"ladder {name} {phase}",
            step_ids={n: p.step_ids for n, p in chosen.items()},
        )
    results.records = [with_first_call(r, found.first_calls) for r in results]
    return results


def _models(
    path: Path,
    plans: Mapping[str, PortPlan],
    device: torch.device,
    dtype: torch.dtype,
    peer: bool,
    prefill: bool,
) -> dict[str, Any]:
    """Each as its plan says; a prefill that nobody times stays eager, its compilation would take as
    long."""
    if device.type == "cpu":
        check_memory(DeepseekV3Config.from_pretrained(path), plans, dtype)
    models: dict[str, Any] = dict(load_variants(path, plans, str(device), dtype))
    if peer:
        models[PEER] = peer_model(load_model(path, PortPlan.upstream(), device, dtype))
    for name, plan in plans.items():
        if plan.graph != "eager":
            models[name] = graph.compile_steps(models[name], plan.graph)
            if not prefill:
                eager_prefill(models[name])
    return models


def _facts(work: Workload, mode: Mapping[str, str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, call in work.variants().items():
        facts = found[name] = {}
        if name in work.caches:
            facts["kv_bytes"] = float(work.caches[name].nbytes)
        if mode[name] == "eager":
            work.prepare(name, 0)
            facts["operators"] = float(sum(count_ops(call).values()))
            work.prepare(name, 0)
            facts["peak_bytes"] = float(peak_memory(call, str(work.first.device)))
    return found

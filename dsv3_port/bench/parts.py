"""The parts of `ci/bench/speed.py` but the peer: each function measures one case in one interleaved run and
says what it could not run."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..engine.device import pick_device, pick_dtype
from ..engine.graph import compile_steps
from ..engine.loading import load_model, with_plan
from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..plan import PortPlan
from ..steps import STEPS, TOLERANCE
from .cases import FULL, Case, case_of, graph_name, key_of
from .ladder import bench_ladder
from .limit import decode_limit, prefill_limit
from .measure import measure
from .models import checkpoint_of, ladder_plans
from .parts_graphs import graphs_case as graphs_case
from .parts_peer import peer_case as peer_case
from .parts_prompts import LENGTHS as LENGTHS
from .parts_prompts import prompts_case as prompts_case
from .records import FAIR, UPSTREAM, Results
from .sweep import sweep

FEW = (UPSTREAM, FAIR, "mla_low_rank", FULL)  # where all rungs would not fit the memory or the time


# ---- the ladder ----------------------------------------------------------------------------------


def ladder_case(
    profile: Any,
    name: str,
    *,
    device: str,
    dtype: str,
    phase: str,
    batch: int,
    size: int,
    rounds: int,
    graph: str = "ge",
    every: bool = True,
    seed: int = 0,
) -> Case:
    """Every step cumulative and alone and the compiled full port, at one size; `every` False: the
    main rungs only.

    facts: operators of one call, bytes of its KV cache, most bytes that it held beside weights and
        cache.
    """
    plans = ladder_plans(alone=every)
    if not every:
        plans = {n: p for n, p in plans.items() if n in FEW}
    last = graph_name(graph, device)
    if last not in {s.id for s in STEPS}:
        raise PortError(
            f"part ladder times steps of the port, and {graph!r} is none: see part graphs"
        )
    plans[last] = PortPlan.full().plus(last)
    sizes: dict[str, Any] = (
        {"context": size, "prefill": 16} if phase == "decode" else {"context": 1, "prefill": size}
    )
    results = bench_ladder(
        profile,
        device=device,
        dtype=dtype,
        batch=batch,
        rounds=rounds,
        plans=plans,
        phases=[phase],
        seed=seed,
        count=True,
        label=f"bench ladder {name} {phase}",
        **sizes,
    )
    return case_of(
        key_of(name, dtype, phase, batch, size),
        rounds,
        results,
        bound=TOLERANCE[dtype],
    )


# ---- the limit -----------------------------------------------------------------------------------


def limit_case(
    profile: Any,
    name: str,
    *,
    device: str,
    dtype: str,
    phase: str,
    batch: int,
    size: int,
    rounds: int,
    graph: str = "ge",
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Case:
    """The compiled full port beside a read of memory (decode) or a large matmul (prefill) of the
    same run."""
    common: dict[str, Any] = {
        "dtype": dtype,
        "device": device,
        "batch": batch,
        "rounds": rounds,
        "seed": seed,
        "graph": graph,
        "options": options,
    }
    limit = (
        decode_limit(profile, context=size, **common)
        if phase == "decode"
        else prefill_limit(profile, tokens=size, **common)
    )
    facts = {
        "step": {
            "work": float(limit.work),
            "reached": limit.reached,
            "fraction": limit.fraction.median,
            "fraction_low": limit.fraction.low,
            "fraction_high": limit.fraction.high,
        },
        "read" if phase == "decode" else "gemm": {
            "work": float(limit.bound_work),
            "rate": limit.rate,
        },
    }
    limit.results.facts = facts
    return case_of(key_of(name, dtype, phase, batch, size), rounds, limit.results)


# ---- cost against work ---------------------------------------------------------------------------


def _scaled(
    profile: str, device: str, dtype: str, graph: str, **sizes: Any
) -> dict[str, DeepseekV3]:
    """Upstream with a fixed cache, the full port, and it compiled; sizes: of the config, weights
    kept."""
    _, path = checkpoint_of(profile)
    models = {}
    for name, plan in ((FAIR, PortPlan.upstream().replace(cache="fixed")), (FULL, PortPlan.full())):
        model = load_model(path, plan, device, pick_dtype(dtype))
        models[name] = with_plan(model, plan, **sizes) if sizes else model
    if graph != "eager":
        models[graph_name(graph, device)] = compile_steps(
            with_plan(models[FULL], models[FULL].plan), graph
        )
    return models


def scaling_case(
    curve: str,
    values: Sequence[int],
    profile: str,
    *,
    device: str,
    dtype: str,
    context: int,
    rounds: int,
    graph: str = "ge",
    seed: int = 0,
) -> Case:
    """One curve of decode over "context", "batch" or "top" (experts a token), or of prefill over
    "tokens".

    Prefill is left eager: a graph is compiled for each length, and tells nothing more about the
    exponent. So is all with graph "eager".
    """
    if curve not in ("context", "batch", "top", "tokens"):
        raise PortError(f"unknown curve {curve!r}; it can be context, batch, top or tokens")
    where = str(pick_device(device))
    results = Results()
    phase = "prefill" if curve == "tokens" else "decode"
    common: dict[str, Any] = {
        "phase": phase,
        "rounds": rounds,
        "profile": profile,
        "seed": seed,
        "label": f"bench {curve} {profile}",
    }
    models = _scaled(profile, where, dtype, "eager" if curve == "tokens" else graph)
    if curve in ("context", "tokens"):
        results += sweep(models, values, **common)
    for value in values if curve == "batch" else ():
        results += sweep(models, [context], batch=value, **common)
    for value in values if curve == "top" else ():
        found = sweep(
            _scaled(profile, where, dtype, graph, num_experts_per_tok=value), [context], **common
        )
        found.records = [dataclasses.replace(r, top=value) for r in found]
        results += found
    return case_of(
        f"{profile}-{dtype}-{phase}-over-{curve}",
        rounds,
        results,
        bound=TOLERANCE[dtype],
    )


# ---- imports -------------------------------------------------------------------------------------

IMPORTS = {
    "torch": [sys.executable, "-c", "import torch"],
    "torch, then dsv3_port": [sys.executable, "-c", "import torch, dsv3_port"],
    "torch, then a model's parts": [
        sys.executable,
        "-c",
        "import torch, dsv3_port\ndsv3_port.load_model, dsv3_port.generate, dsv3_port.build",
    ],
    "python alone": [sys.executable, "-c", "pass"],
    "dsv3_port alone": [sys.executable, "-c", "import dsv3_port"],
    "dsv3-port --help": [sys.executable, "-m", "dsv3_port", "--help"],
}


def imports_case(rounds: int = 7) -> Case:
    """Fresh processes: torch alone and with the package, and the command line's help."""

    def run(words: list[str]) -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    results = measure(
        {n: partial(run, words) for n, words in IMPORTS.items()},
        rounds=rounds,
        warmup=1,
        label="bench imports",
        meta={"phase": "start of a process"},
    )
    return case_of("start-of-a-process", rounds, results)

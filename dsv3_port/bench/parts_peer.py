"""Part peer of `ci/bench/speed.py`: our model beside every form of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..check.equivalence import random_ids
from ..engine.device import pick_device, pick_dtype
from ..engine.graph import compile_steps
from ..engine.loading import load_model, with_plan
from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..plan import PortPlan
from ..steps import TOLERANCE
from .cases import FULL, Case, case_of, graph_name, key_of
from .models import checkpoint_of
from .peer_forms import Peer, make_peer, peer_forms
from .records import FAIR, UPSTREAM
from .workload import DECODE_SAMPLE, Ours, Workload, modes

ATTEMPTS = 3  # inputs on which the logits are compared


def _contestants(
    profile: Any,
    device: str,
    dtype: torch.dtype,
    phase: str,
    capacity: int,
    graph: str,
    options: Mapping[str, Any],
) -> tuple[dict[str, DeepseekV3 | Peer], dict[str, str]]:
    """Our models and transformers' forms, and why others of those are left out."""
    _, path = checkpoint_of(profile)
    upstream = load_model(path, PortPlan.upstream(), device, dtype)
    full = load_model(path, PortPlan.full(), device, dtype)
    found: dict[str, DeepseekV3 | Peer] = {
        UPSTREAM: upstream,
        FAIR: with_plan(upstream, upstream.plan.replace(cache="fixed")),
        FULL: full,
        graph_name(graph, device): compile_steps(with_plan(full, full.plan), graph, **options),
    }
    left_out: dict[str, str] = {}
    for form in peer_forms(dtype):
        if phase == "prefill" and not form.prefill:
            continue
        try:
            found[form.name] = make_peer(form, upstream, capacity, **options)
        except PortError as error:
            left_out[form.name] = str(error)
    return found, left_out


def peer_case(
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
    """The full port, eager and compiled, and upstream, beside every form of transformers, after the
    same prompt.

    The first call of each is compared with upstream's; logits of the last position only,
    everywhere. `options` are inductor's, for both sides.
    """
    where, kind = str(pick_device(device)), pick_dtype(dtype)
    found, left_out = _contestants(profile, where, kind, phase, size + 1, graph, options or {})
    work = Workload(found, phase, batch=batch, size=size, seed=seed, filled=False)
    prompt = random_ids(work.first, (batch, size), seed) if phase == "decode" else None
    with torch.no_grad():
        differences, failed = _compared(work, prompt)
    if bad := [n for n, d in differences.items() if not d <= TOLERANCE[dtype]]:
        raise PortError(
            f"{bad[0]!r} differs from {UPSTREAM!r} by {differences[bad[0]]:.1e}; nothing was timed"
        )
    mode = modes({n: run.model for n, run in work.runs.items() if isinstance(run, Ours)})
    results = work.measure(
        name,
        {n: mode.get(n, "compiled" if n.endswith("compiled") else "eager") for n in work.runs},
        rounds=rounds,
        device=where,
        min_seconds=DECODE_SAMPLE if prompt is not None else 0.0,
        label=f"bench peer {name}",
    )
    results.differences = differences
    return case_of(
        key_of(name, dtype, phase, batch, size),
        rounds,
        results,
        bound=TOLERANCE[dtype],
        left_out=left_out | failed,
    )


def _compared(work: Workload, prompt: Tensor | None) -> tuple[dict[str, float], dict[str, str]]:
    """Relative difference of each one's logits from upstream's, the least of ATTEMPTS inputs: a
    near tie of two experts moves a row far and is no error. A form of transformers that raises is
    taken out of `work`, with its reason.
    """
    rows: dict[str, list[Tensor]] = {}
    failed: dict[str, str] = {}
    for who, run in list(work.runs.items()):
        try:
            if prompt is not None:
                run.fill(prompt)
            rows[who] = []
            for n in range(ATTEMPTS):
                work.prepare(who, n)
                rows[who].append(work.call(who)[:, -1:].float().clone())
        except Exception as error:  # another library's compiler: whatever it raises is the answer
            if isinstance(run, Ours):
                raise
            failed[who] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            del work.runs[who]
    reference = rows[UPSTREAM]
    return {
        who: min(
            float(((a - b).abs().amax(-1) / b.abs().max()).median())
            for a, b in zip(rows[who], reference, strict=True)
        )
        for who in work.runs
    }, failed

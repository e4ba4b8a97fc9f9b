"""Our model beside every form of transformers and of llama.cpp: `dsv3-port bench peer`, and part
peer of `ci/bench/speed.py`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
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
from . import llamacpp
from .cases import FULL, Case, case_of, graph_name, key_of
from .llamacpp import LlamaPeer
from .models import checkpoint_of
from .peer_forms import Peer, make_peer, peer_forms
from .records import FAIR, UPSTREAM, Results
from .workload import DECODE_SAMPLE, Ours, Workload, modes

PEERS = ("transformers", llamacpp.NAME)
ATTEMPTS = 3  # inputs on which the logits are compared


def _contestants(
    path: Path,
    device: str,
    dtype: torch.dtype,
    phase: str,
    capacity: int,
    graph: str,
    options: Mapping[str, Any],
    transformers: bool,
) -> tuple[dict[str, DeepseekV3 | Peer | LlamaPeer], dict[str, str]]:
    """Our models and, if asked, transformers' forms, and why others of those are left out."""
    upstream = load_model(path, PortPlan.upstream(), device, dtype)
    full = load_model(path, PortPlan.full(), device, dtype)
    found: dict[str, DeepseekV3 | Peer | LlamaPeer] = {
        UPSTREAM: upstream,
        FAIR: with_plan(upstream, upstream.plan.replace(cache="fixed")),
        FULL: full,
        graph_name(graph, device): compile_steps(with_plan(full, full.plan), graph, **options),
    }
    left_out: dict[str, str] = {}
    for form in peer_forms(dtype) if transformers else ():
        if phase == "prefill" and not form.prefill:
            continue
        try:
            found[form.name] = make_peer(form, upstream, capacity, **options)
        except PortError as error:
            left_out[form.name] = str(error)
    return found, left_out


@dataclass(frozen=True)
class PeerRun:
    """bounds: variant -> the difference that it may have. left_out: variant -> why it did not run."""

    results: Results
    bounds: dict[str, float]
    left_out: dict[str, str]


def peer_run(
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
    peers: Collection[str] = ("transformers",),
) -> PeerRun:
    """The full port, eager and compiled, and upstream, beside every form of the peers (PEERS), after
    the same prompt.

    The first call of each is compared with upstream's; logits of the last position only,
    everywhere. `options` are inductor's, for our side and transformers'.
    """
    where, kind = str(pick_device(device)), pick_dtype(dtype)
    check_peers(peers, where, kind)
    _, path = checkpoint_of(profile)
    with contextlib.ExitStack() as open_peers:
        # first: what cannot run says so before anything is loaded or compiled
        native, refused = (
            _llama(open_peers, path, kind, batch, size + 1) if llamacpp.NAME in peers else ({}, {})
        )
        theirs = "transformers" in peers
        found, left_out = _contestants(
            path, where, kind, phase, size + 1, graph, options or {}, theirs
        )
        work = Workload(found | native, phase, batch=batch, size=size, seed=seed, filled=False)
        prompt = random_ids(work.first, (batch, size), seed) if phase == "decode" else None
        with torch.no_grad():
            differences, failed = _compared(work, prompt)
        bounds = dict.fromkeys(differences, TOLERANCE[dtype])
        bounds |= {n: native[n].form.bound(dtype) for n in native.keys() & differences.keys()}
        if bad := [n for n, d in differences.items() if not d <= bounds[n]]:
            raise PortError(
                f"{bad[0]!r} differs from {UPSTREAM!r} by {differences[bad[0]]:.1e}; nothing was timed"
            )
        results = work.measure(
            name,
            _modes(work),
            rounds=rounds,
            device=where,
            min_seconds=DECODE_SAMPLE if prompt is not None else 0.0,
            label=f"bench peer {name}",
        )
        versions = llamacpp.llama_versions() if native else {}
        results.records = [
            dataclasses.replace(r, versions=r.versions | versions) if r.name in native else r
            for r in results
        ]
        results.differences = differences
    return PeerRun(results, bounds, left_out | refused | failed)


def peer_case(profile: Any, name: str, **options: Any) -> Case:
    """What `peer_run` measures, as a case to keep; `options` are its own."""
    run = peer_run(profile, name, **options)
    dtype, phase, batch, size = (options[k] for k in ("dtype", "phase", "batch", "size"))
    wider = {n: b for n, b in run.bounds.items() if b != TOLERANCE[dtype]}
    return case_of(
        key_of(name, dtype, phase, batch, size),
        options["rounds"],
        run.results,
        bound=TOLERANCE[dtype],
        bounds=wider,
        left_out=run.left_out,
    )


def check_peers(peers: Collection[str], device: str, dtype: torch.dtype) -> None:
    """PortError for a peer that is not known, and for llama.cpp where it cannot be compared."""
    if unknown := sorted(set(peers) - set(PEERS)):
        raise PortError(f"unknown peer {unknown[0]!r}; it can be {' or '.join(PEERS)}")
    if llamacpp.NAME not in peers:
        return
    if device != "cpu":
        raise PortError(f"llama.cpp is measured on a CPU, and this is {device}: give --device cpu")
    if dtype not in (torch.float32, torch.bfloat16):
        raise PortError(
            f"llama.cpp is measured in float32 and bfloat16, not in {str(dtype).removeprefix('torch.')}"
        )


def _llama(
    stack: contextlib.ExitStack, path: Path, dtype: torch.dtype, batch: int, capacity: int
) -> tuple[dict[str, LlamaPeer], dict[str, str]]:
    """llama.cpp's forms, which `stack` closes, and why others of those are left out."""
    model = stack.enter_context(llamacpp.llama_model(path, dtype))
    found: dict[str, LlamaPeer] = {}
    left_out: dict[str, str] = {}
    for form in llamacpp.llama_forms(dtype):
        try:
            peer = LlamaPeer(form, model, batch, capacity)
        except PortError as error:
            left_out[form.name] = str(error)
        else:
            found[form.name] = peer
            stack.callback(peer.close)
    return found, left_out


def _modes(work: Workload) -> dict[str, str]:
    found = modes({n: run.model for n, run in work.runs.items() if isinstance(run, Ours)})
    for name, run in work.runs.items():
        if isinstance(run, LlamaPeer):
            found[name] = "native"
        elif isinstance(run, Peer):
            found[name] = "compiled" if run.form.compiled else "eager"
    return found


def _compared(work: Workload, prompt: Tensor | None) -> tuple[dict[str, float], dict[str, str]]:
    """Relative difference of each one's logits from upstream's, the least of ATTEMPTS inputs: a
    near tie of two experts moves a row far and is no error. A peer's form that raises is taken out
    of `work`, with its reason.
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
        except Exception as error:  # another library: whatever it raises is the answer
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

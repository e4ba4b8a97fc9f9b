"""The parts of `ci/bench.py`: each function measures one case in one interleaved run and says what
it could not run."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..engine.device import pick_device, pick_dtype
from ..engine.graph import compile_steps
from ..engine.loading import load_model
from ..errors import PortError
from ..model.decoder import DeepseekV3, build
from ..plan import PortPlan
from ..steps import TOLERANCE
from .cases import FULL, GRAPHS, Case
from .ladder import DECODE_SAMPLE, bench_ladder, checkpoint_of, ladder_plans
from .limit import GEMM_SIZE, READ_BYTES, decode_limit, prefill_limit
from .measure import Results, measure
from .peer_forms import PIECE, Peer, make_peer, peer_forms
from .records import FAIR, UPSTREAM
from .sweep import sweep, with_plan

ATTEMPTS = 3  # inputs on which the logits are compared
FEW = (UPSTREAM, FAIR, "mla_low_rank", FULL)  # where all rungs would not fit the memory or the time


def _case(key: str, rounds: int, results: Results, **more: Any) -> Case:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    words = sys.argv[1:]
    if "--out" in words:  # where the file lay first says nothing about the numbers in it
        at = words.index("--out")
        del words[at : at + 2]
    return Case(key, now, shlex.join(["ci/bench.py", *words]), rounds, list(results), **more)


def key_of(profile: str, dtype: str, phase: str, batch: int, size: int) -> str:
    return f"{profile}-{dtype}-{phase}-b{batch}-{'c' if phase == 'decode' else 't'}{size}"


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
    plans[GRAPHS[graph]] = PortPlan.full().plus(GRAPHS[graph])
    sizes: dict[str, Any] = (
        {"context": size, "prefill": 16} if phase == "decode" else {"context": 1, "prefill": size}
    )
    found: dict[str, float] = {}
    counted: dict[str, dict[str, float]] = {}
    results = bench_ladder(
        profile,
        device=device,
        dtype=dtype,
        batch=batch,
        rounds=rounds,
        plans=plans,
        phases=[phase],
        seed=seed,
        differences=found,
        counted=counted,
        label=f"bench ladder {name} {phase}",
        **sizes,
    )
    return _case(
        key_of(name, dtype, phase, batch, size),
        rounds,
        results,
        bound=TOLERANCE[dtype],
        differences=found,
        facts=counted,
    )


# ---- the peer ------------------------------------------------------------------------------------


class _Ours:
    """One of our models with the interface of peer_forms.Peer."""

    now: Tensor  # the next input

    def __init__(self, model: DeepseekV3, batch: int, room: int) -> None:
        self.model, self.cache = model, model.new_cache(batch, room)

    def clear(self) -> None:
        self.cache.rewind(0)

    def fill(self, ids: Tensor) -> None:
        """The prompt in pieces, operator by operator: a graph for each size of piece is not what is
        timed."""
        compiled, self.model.run_step = self.model.run_step, self.model.forward_step
        self.clear()
        for piece in ids.split(PIECE, dim=1):
            self.model(piece.contiguous(), cache=self.cache)
        self.model.run_step = compiled

    def prefill(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(ids, cache=self.cache)
        return logits[:, -1:]

    step = prefill

    def rewind(self, length: int) -> None:
        self.cache.rewind(length)


def _contestants(
    profile: Any,
    device: str,
    dtype: torch.dtype,
    phase: str,
    batch: int,
    room: int,
    graph: str,
    options: Mapping[str, Any],
) -> tuple[dict[str, _Ours | Peer], dict[str, str]]:
    _, path = checkpoint_of(profile)
    upstream = load_model(path, PortPlan.upstream(), device, dtype)
    full = load_model(path, PortPlan.full(), device, dtype)
    models = {
        UPSTREAM: upstream,
        FAIR: with_plan(upstream, upstream.plan.replace(cache="fixed")),
        FULL: full,
        GRAPHS[graph]: compile_steps(with_plan(full, full.plan), graph, **options),
    }
    found: dict[str, _Ours | Peer] = {n: _Ours(m, batch, room) for n, m in models.items()}
    left_out: dict[str, str] = {}
    for form in peer_forms(dtype):
        if phase == "prefill" and not form.prefill:
            continue
        try:
            found[form.name] = make_peer(form, upstream, batch, room, **options)
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
    decode = phase == "decode"
    found, left_out = _contestants(
        profile, where, kind, phase, batch, size + 1, graph, options or {}
    )
    vocab = _vocabulary(profile)
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(vocab, (ATTEMPTS, batch, size), generator=generator).to(where)
    tokens = torch.randint(vocab, (32, batch, 1), generator=generator).to(where)
    inputs = tokens if decode else prompts

    def prepare(who: str, n: int) -> None:
        found[who].now = inputs[n % len(inputs)]
        found[who].rewind(size) if decode else found[who].clear()

    def call(who: str) -> Tensor:
        return found[who].step(found[who].now) if decode else found[who].prefill(found[who].now)

    with torch.no_grad():
        differences, failed = _compared(found, prompts[0] if decode else None, prepare, call)
    if bad := [n for n, d in differences.items() if not d <= TOLERANCE[dtype]]:
        raise PortError(
            f"{bad[0]!r} differs from {UPSTREAM!r} by {differences[bad[0]]:.1e}; nothing was timed"
        )
    mode = {
        n: "compiled" if n == GRAPHS[graph] or n.endswith("compiled") else "eager" for n in found
    }
    meta = {
        "profile": name,
        "dtype": dtype,
        "batch": batch,
        "phase": phase,
        "mode": mode,
        "context" if decode else "tokens": size,
    }
    results = measure(
        {n: partial(call, n) for n in found},
        rounds=rounds,
        device=where,
        prepare=prepare,
        min_seconds=DECODE_SAMPLE if decode else 0.0,
        label=f"bench peer {name}",
        meta=meta,
    )
    return _case(
        key_of(name, dtype, phase, batch, size),
        rounds,
        results,
        bound=TOLERANCE[dtype],
        differences=differences,
        left_out=left_out | failed,
    )


def _compared(
    found: dict[str, _Ours | Peer],
    prompt: Tensor | None,
    prepare: Callable[[str, int], None],
    call: Callable[[str], Tensor],
) -> tuple[dict[str, float], dict[str, str]]:
    """Relative difference of each one's logits from upstream's, the least of ATTEMPTS inputs: a
    near tie of two experts moves a row far and is no error. A form of transformers that raises is
    taken out of `found`, with its reason.
    """
    rows: dict[str, list[Tensor]] = {}
    failed: dict[str, str] = {}
    for who in list(found):
        try:
            if prompt is not None:
                found[who].fill(prompt)
            rows[who] = []
            for n in range(ATTEMPTS):
                prepare(who, n)
                rows[who].append(call(who).float().clone())
        except Exception as error:  # another library's compiler: whatever it raises is the answer
            if isinstance(found[who], _Ours):
                raise
            failed[who] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            del found[who]
    reference = rows[UPSTREAM]
    return {
        who: min(
            float(((a - b).abs().amax(-1) / b.abs().max()).median())
            for a, b in zip(rows[who], reference, strict=True)
        )
        for who in found
    }, failed


def _vocabulary(profile: Any) -> int:
    from ..config import DeepseekV3Config

    return DeepseekV3Config.from_pretrained(checkpoint_of(profile)[1]).vocab_size


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
            "work": float(READ_BYTES if phase == "decode" else 2 * GEMM_SIZE**3),
            "rate": limit.rate,
        },
    }
    return _case(key_of(name, dtype, phase, batch, size), rounds, limit.results, facts=facts)


# ---- cost against work ---------------------------------------------------------------------------


def _scaled(
    profile: str, device: str, dtype: str, graph: str, **changes: Any
) -> dict[str, DeepseekV3]:
    """Upstream with a fixed cache, the full port, and it compiled; changes: of the config, weights
    kept."""
    _, path = checkpoint_of(profile)
    models = {}
    for name, plan in ((FAIR, PortPlan.upstream().replace(cache="fixed")), (FULL, PortPlan.full())):
        model = load_model(path, plan, device, pick_dtype(dtype))
        if changes:
            twin = build(
                model.config.replace(**changes),
                plan,
                model.parallel,
                model.device,
                model.dtype,
                model.gmm,
            )
            twin.load_state_dict(model.state_dict(), assign=True)
            model = twin
        models[name] = model
    if graph != "eager":
        models[GRAPHS[graph]] = compile_steps(with_plan(models[FULL], models[FULL].plan), graph)
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
    differences: dict[str, float] = {}
    phase = "prefill" if curve == "tokens" else "decode"
    common: dict[str, Any] = {
        "phase": phase,
        "rounds": rounds,
        "profile": profile,
        "seed": seed,
        "label": f"bench {curve} {profile}",
        "differences": differences,
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
        results += Results([dataclasses.replace(r, top=value) for r in found])
    return _case(
        f"{profile}-{dtype}-{phase}-over-{curve}",
        rounds,
        results,
        bound=TOLERANCE[dtype],
        differences=differences,
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

    variants: Mapping[str, Callable[[], object]] = {
        n: partial(run, words) for n, words in IMPORTS.items()
    }
    results = measure(
        variants,
        rounds=rounds,
        warmup=1,
        label="bench imports",
        meta={"phase": "start of a process"},
    )
    return _case("start-of-a-process", rounds, results)

"""How close a step comes to this machine's own limit: bytes over bandwidth in decode, FLOPs over
GEMM rate in prefill.

Both rates are measured in the same interleaved run as the step, so the fractions are ratios within
one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..check.equivalence import STEPS_CHECKED, check_equivalence, random_ids
from ..count.compiled import eager_prefill
from ..count.flops import count_flops
from ..engine.device import pick_device, pick_dtype
from ..engine.graph import compile_steps, eagerly
from ..engine.loading import load_model, with_plan
from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..model.gate import Gate
from ..plan import PortPlan
from .measure import measure
from .models import checkpoint_of
from .records import Ratio, Results
from .workload import DECODE_SAMPLE, Workload, modes

READ_BYTES = 256 << 20  # far beyond any cache
GEMM_SIZE = 2048
PROMPT = 4  # tokens of the check's prompt where prefill is not what is timed


@dataclass(frozen=True)
class DecodeBytes:
    """What one decode step has to read at least once."""

    dense: int  # all weights but embedding and routed experts
    experts: int  # routed experts that some token of the batch chose
    cache: int  # rows of the cached positions, all layers

    @property
    def total(self) -> int:
        return self.dense + self.experts + self.cache


@dataclass(frozen=True)
class Limit:
    """A phase beside its bound: `work` in bytes or FLOPs, `rate` a second as measured, `fraction`
    of it reached."""

    phase: str
    work: int
    unit: str
    rate: float
    reached: float
    fraction: Ratio
    results: Results


def decode_bytes(
    model: DeepseekV3, context: int, batch: int = 1, steps: int = 8, seed: int = 0
) -> DecodeBytes:
    """Counted on an eager step: chosen experts are seen at the gates, mean of `steps` random
    tokens; a ported model.

    Embedding rows, activations and what a step writes are left out: they are small beside the rest.
    """
    chosen: list[int] = []
    gates = [m for m in model.modules() if isinstance(m, Gate)]
    hooks = [
        g.register_forward_hook(lambda _m, _i, out: chosen.append(out[0].unique().numel()))
        for g in gates
    ]
    cache = model.new_cache(batch, context + steps)
    cache.fill_random(context, seed)
    try:
        with eagerly(model):
            for token in random_ids(model, (steps, batch, 1), seed):
                model(token, cache=cache)
    finally:
        for hook in hooks:
            hook.remove()
    expert = dense = 0
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            expert += (
                parameter.nbytes // model.config.n_routed_experts
            )  # one expert of one layer, summed over layers
        elif "embed_tokens" not in name.split("."):
            dense += parameter.nbytes
    used = sum(chosen) / steps  # experts a step, over all layers
    rows = sum(heads * width for heads, width in cache.widths) * model.config.num_hidden_layers
    return DecodeBytes(
        dense,
        round(expert * used / max(1, len(gates))),
        rows * batch * context * model.dtype.itemsize,
    )


def decode_limit(
    profile: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    context: int = 1024,
    batch: int = 1,
    rounds: int = 7,
    seed: int = 0,
    graph: str = "ge",
    options: Mapping[str, Any] | None = None,
) -> Limit:
    """The compiled full port's decode step, a fresh token each time, against one pass over
    READ_BYTES of memory.

    graph, options: of engine.graph.compile_steps.
    """
    model, name = _model(profile, dtype, device, graph, options, batch=batch, room=context + 1)
    work = Workload({"step": model}, "decode", batch=batch, size=context, seed=seed)
    memory = torch.ones(READ_BYTES // 4, device=model.device)
    nbytes = decode_bytes(model, context, batch, seed=seed).total
    results = work.measure(
        name,
        {"step": "compiled", "read": "eager"},
        {"read": lambda: memory.sum()},
        rounds=rounds,
        min_seconds=DECODE_SAMPLE,
        label=f"limit {name} decode",
    )
    return _limit("decode", nbytes, "bytes", READ_BYTES, results, "read")


def prefill_limit(
    profile: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    tokens: int = 1024,
    batch: int = 1,
    rounds: int = 7,
    seed: int = 0,
    compiled: bool = True,
    graph: str = "ge",
    options: Mapping[str, Any] | None = None,
) -> Limit:
    """The full port's prefill against a matmul of GEMM_SIZE cubed in the same dtype."""
    room = tokens + STEPS_CHECKED
    mode = graph if compiled else None
    model, name = _model(
        profile, dtype, device, mode, options, batch=batch, room=room, length=tokens
    )
    prompt = Workload(
        {"step": model}, "prefill", batch=batch, size=tokens, capacity=room, seed=seed
    )

    def call() -> Tensor:
        prompt.prepare("step", 0)
        return prompt.call("step")

    a, b = (
        torch.randn(GEMM_SIZE, GEMM_SIZE, device=model.device).to(model.dtype) for _ in range(2)
    )
    plain = with_plan(model, model.plan.replace(graph="eager"))
    fresh = plain.new_cache(batch, tokens)
    flops = sum(count_flops(lambda: plain(prompt.inputs[0], cache=fresh)).values())
    # both repeated within a sample, as nothing is prepared between the calls
    results = measure(
        {"step": call, "gemm": lambda: a @ b},
        rounds=rounds,
        device=model.device,
        label=f"limit {name} prefill",
        meta=prompt.meta(name, modes({"step": model}) | {"gemm": "eager"}),
    )
    return _limit("prefill", flops, "FLOP", 2 * GEMM_SIZE**3, results, "gemm")


def _model(
    profile: str | Path,
    dtype: str,
    device: str,
    graph: str | None,
    options: Mapping[str, Any] | None,
    *,
    batch: int,
    room: int,
    length: int = 0,
) -> tuple[DeepseekV3, str]:
    """The full port, compiled and checked at the sizes that are timed; length 0: prefill is left
    eager."""
    name, path = checkpoint_of(profile)
    where = pick_device(device)
    if where.type == "npu":
        raise PortError("the limit is measured on cpu and cuda; on an NPU use its profiler")
    model = load_model(path, PortPlan.full(), where, pick_dtype(dtype))
    if graph is not None:
        twin = compile_steps(with_plan(model, model.plan), graph, **(options or {}))
        if not length:
            eager_prefill(twin)
        check_equivalence(
            {"eager": model, "compiled": twin}, batch=batch, length=length or PROMPT, room=room
        )
        model = twin
    return model, name


def _limit(phase: str, work: int, unit: str, unit_work: int, results: Results, bound: str) -> Limit:
    ratio = results.ratio(bound, "step", phase)  # time of the bound over time of the step
    scale = work / unit_work
    fraction = Ratio(
        ratio.median * scale,
        ratio.low * scale,
        ratio.high * scale,
        [r * scale for r in ratio.samples],
    )
    return Limit(
        phase,
        work,
        unit,
        unit_work / results.get(bound, phase).median,
        work / results.get("step", phase).median,
        fraction,
        results,
    )

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
from .bounds import Bound, gemm_bound, read_bound
from .measure import measure
from .models import checkpoint_of
from .records import Ratio, Results
from .workload import DECODE_SAMPLE, Workload, modes

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
    """A phase beside its bound: `work` in bytes or FLOPs, that of the bound's own call, `rate` a
    second as measured, `fraction` of it reached."""

    phase: str
    work: int
    unit: str
    bound_work: int
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
    """The compiled full port's decode step, a fresh token each time, against one pass over memory.

    graph, options: of engine.graph.compile_steps.
    """
    model, name = _model(profile, dtype, device, graph, options, batch=batch, room=context + 1)
    work = Workload({"step": model}, "decode", batch=batch, size=context, seed=seed)
    bound = read_bound(model.device)
    nbytes = decode_bytes(model, context, batch, seed=seed).total
    results = work.measure(
        name,
        modes({"step": model}) | {bound.name: "eager"},
        {bound.name: bound.call},
        rounds=rounds,
        min_seconds=DECODE_SAMPLE,
        label=f"limit {name} decode",
    )
    return _limit("decode", nbytes, bound, results)


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
    """The full port's prefill against a large matmul in the same dtype."""
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

    bound = gemm_bound(model.device, model.dtype)
    # both repeated within a sample, as nothing is prepared between the calls
    results = measure(
        {"step": call, bound.name: bound.call},
        rounds=rounds,
        device=model.device,
        label=f"limit {name} prefill",
        meta=prompt.meta(name, modes({"step": model}) | {bound.name: "eager"}),
    )
    return _limit("prefill", prefill_flops(model, prompt.inputs[0]), bound, results)


def prefill_flops(model: DeepseekV3, ids: Tensor) -> int:
    """What an eager run of the prompt [B, S] needs: its products as counted; of fused attention only
    the S (S + 1) / 2 pairs that causality leaves, at the true widths of K and V."""
    eager, c = with_plan(model, model.plan.replace(graph="eager")), model.config
    cache = eager.new_cache(*ids.shape)
    counted = count_flops(lambda: eager(ids, cache=cache))
    kernels = [op for op in counted if "attention" in op]
    total = sum(n for op, n in counted.items() if op not in kernels)
    if kernels:
        batch, tokens = ids.shape
        pairs = batch * c.num_hidden_layers * c.num_attention_heads * tokens * (tokens + 1) // 2
        total += 2 * pairs * (c.qk_head_dim + c.v_head_dim)
    return total


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


def fraction_of(results: Results, name: str, phase: str, work: int, bound: Bound) -> Ratio:
    """Share of the bound's rate that a step with this work reached, round by round."""
    ratio = results.ratio(bound.name, name, phase)  # time of the bound over time of the step
    scale = work / bound.work
    return Ratio(
        ratio.median * scale,
        ratio.low * scale,
        ratio.high * scale,
        [r * scale for r in ratio.samples],
    )


def _limit(phase: str, work: int, bound: Bound, results: Results) -> Limit:
    return Limit(
        phase,
        work,
        bound.unit,
        bound.work,
        bound.work / results.get(bound.name, phase).median,
        work / results.get("step", phase).median,
        fraction_of(results, "step", phase, work, bound),
        results,
    )

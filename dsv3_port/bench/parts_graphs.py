"""Part graphs of `ci/bench/speed.py`: the full port's step in four ways, beside the device's bound.

Eager, each kernel is launched by the host; captured, the very same kernels are launched at once;
compiled, fewer kernels are launched by the host; compiled and captured, those at once. What is left
to the bound is the kernels' own. A decode step is timed in the last way once more with an attention
that reads only what is filled (PortPlan.decode_attention "split").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..check.equivalence import STEPS_CHECKED, check_equivalence
from ..count.compiled import eager_prefill
from ..engine.device import pick_device, pick_dtype
from ..engine.graph import compile_steps
from ..engine.loading import load_model, with_plan
from ..errors import PortError
from ..messages import N_
from ..model.decoder import DeepseekV3
from ..plan import PortPlan
from ..steps import TOLERANCE
from .bounds import Bound, gemm_bound, read_bound
from .cases import Case, case_of, key_of
from .limit import PROMPT, decode_bytes, fraction_of, prefill_flops
from .models import checkpoint_of
from .records import Results
from .workload import DECODE_SAMPLE, Workload, modes

EAGER, CAPTURED = N_("eager"), N_("captured")
# name -> engine.graph's mode
RUNGS = {
    CAPTURED: "captured",
    N_("compiled"): "ge",
    N_("compiled and captured"): "compiled-captured",
}
SPLIT = N_("compiled and captured, split attention")  # of decode, beside "compiled and captured"


def graphs_case(
    profile: Any,
    name: str,
    *,
    device: str,
    dtype: str,
    phase: str,
    batch: int,
    size: int,
    rounds: int,
    buffer: int = 1,
    seed: int = 0,
) -> Case:
    """One phase at one size; `left_out` says which rungs this device does not have, and why.

    buffer: of decode, how many times as long as what is filled the cache's buffer is.

    facts: of each rung its work (bytes or FLOPs), how much a second, and the share of the bound's
    rate; of the bound its work and rate. PortError where the captured step, which has the eager
    one's kernels, differs from it by a single bit.
    """
    where = pick_device(device)
    if where.type == "npu":
        raise PortError("part graphs runs on cpu and cuda; on an NPU use its profiler")
    decode = phase == "decode"
    if buffer < 1 or buffer > 1 and not decode:
        raise PortError(
            f"a buffer {buffer} times as long as what is filled: it is 1 or more, and more in decode alone"
        )
    room = size * buffer + (1 if decode else STEPS_CHECKED)
    models, left_out = _rungs(profile, where, dtype, decode)
    length = PROMPT if decode else size
    differences = check_equivalence(models, batch=batch, length=length, room=room, seed=seed)
    if differences.get(CAPTURED):
        raise PortError(
            f"the captured step differs from the eager one by {differences[CAPTURED]:.1e}, with the same "
            "kernels: nothing was timed"
        )
    work = Workload(models, phase, batch=batch, size=size, capacity=room, seed=seed)
    model = models[EAGER]
    bound = read_bound(where) if decode else gemm_bound(where, model.dtype)
    results = work.measure(
        name,
        modes(models) | {bound.name: "eager"},
        {bound.name: bound.call},
        rounds=rounds,
        min_seconds=DECODE_SAMPLE,
        label=f"graphs {name} {phase}",
    )
    todo = (
        decode_bytes(model, size, batch, seed=seed).total
        if decode
        else prefill_flops(model, work.inputs[0])
    )
    results.differences = dict(differences)
    results.facts = _facts(results, models, phase, todo, bound)
    key = key_of(name, dtype, phase, batch, size)
    return case_of(key, rounds, results, bound=TOLERANCE[dtype], left_out=left_out)


def _facts(
    results: Results, rungs: Iterable[str], phase: str, todo: int, bound: Bound
) -> dict[str, dict[str, float]]:
    rate = bound.work / results.get(bound.name, phase).median
    facts = {bound.name: {"work": float(bound.work), "rate": rate}}
    for rung in rungs:
        fraction = fraction_of(results, rung, phase, todo, bound)
        facts[rung] = {
            "work": float(todo),
            "reached": todo / results.get(rung, phase).median,
            "fraction": fraction.median,
            "fraction_low": fraction.low,
            "fraction_high": fraction.high,
        }
    return facts


def _rungs(
    profile: Any, where: Any, dtype: str, decode: bool
) -> tuple[dict[str, DeepseekV3], dict[str, str]]:
    """The rungs that this device has, on one set of weights, and why the others are left out."""
    path = checkpoint_of(profile)[1]
    model = load_model(path, PortPlan.full(), where, pick_dtype(dtype))
    found, left_out = {EAGER: model}, {}
    rungs = {name: (mode, model.plan) for name, mode in RUNGS.items()}
    if decode:
        split = model.plan.replace(decode_attention="split")
        rungs[SPLIT] = ("compiled-captured", split)
    for rung, (mode, plan) in rungs.items():
        try:
            twin = compile_steps(with_plan(model, plan), mode)
        except PortError as error:
            left_out[rung] = str(error)
            continue
        # a prompt that is not timed would be a compilation more
        found[rung] = eager_prefill(twin) if decode else twin
    return found, left_out

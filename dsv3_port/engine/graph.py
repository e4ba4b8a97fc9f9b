"""Graph modes: the only file that calls torch.compile.

EXE_MODE=eager runs the model operator by operator. EXE_MODE=dynamo compiles its step: on cpu and cuda by inductor,
where ENABLE_ACLGRAPH=1 adds CUDA graphs on cuda (on cpu it changes nothing). torchair's backends belong to npu.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..steps import PortPlan, step


def run_eager(model: DeepseekV3) -> DeepseekV3:
    """Upstream: every operator is launched by the host on its own."""
    model.run_step = model.step
    return model


def compile_steps(model: DeepseekV3, mode: str = "ge", **options: Any) -> DeepseekV3:
    """Ported: `model.step` becomes one graph for prefill of each length and one for decode; returns the model.

    Shapes are static: pad prompts to a fixed length. The first call of each shape compiles (seconds). `options` are
    inductor's. Raises PortError where the plan cannot be one graph.
    """
    if mode == "eager":
        return run_eager(model)
    blockers = graph_blockers(model.plan)
    if blockers:
        raise PortError("this plan cannot be captured as one graph: " + "; ".join(blockers))
    kind = model.device.type
    if kind not in ("cpu", "cuda"):
        raise PortError(f"graph mode {mode!r} for device {kind!r} is not in this version; EXE_MODE=eager runs there")
    # every model compiled in a process shares one code object, and each counts as a recompile of it
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    torch._dynamo.config.accumulated_recompile_limit = max(torch._dynamo.config.accumulated_recompile_limit, 2048)
    # weights stay in place; checking every one of them before each step cost a sixth of it (W1, batch 1, cpu)
    settings: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_inbuilt_nn_modules_unsafe}
    if mode == "aclgraph" and kind == "cuda":
        settings["triton.cudagraphs"] = True
    settings |= options
    model.run_step = torch.compile(model.step, fullgraph=True, dynamic=False, options=settings)
    return model


def graph_blockers(plan: PortPlan) -> list[str]:
    """Why a plan cannot run as one static graph, each with the step that removes the reason."""
    reasons = []
    if plan.experts == "loop":
        reasons.append(f"the expert loop reads counts on the host (step {step('gmm_routing').id!r} removes it)")
    if plan.cache == "growing":
        reasons.append(f"the growing cache has a new shape each step (step {step('fixed_kv_cache').id!r} removes it)")
    return reasons

"""Graph modes: torch.compile on cpu and cuda; what is torchair's is in torchair.py, and nobody else
calls either.

EXE_MODE=eager runs the model operator by operator. EXE_MODE=dynamo compiles its step. On npu that
is torchair's GE graph ("ge"), or with ENABLE_ACLGRAPH=1 a captured graph ("aclgraph"): backend
npugraph_ex where torch_npu has it, else torchair's older mode reduce-overhead. On cpu and cuda
inductor compiles it, where "aclgraph" adds CUDA graphs on cuda (on cpu it changes nothing).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..ops.table import torch_npu
from ..plan import graph_blockers
from .torchair import (
    backend_options,
    compile_for_npu,
    converted_graphs,
    export_graph,
    npu_backend,
)

__all__ = [
    "RECOMPILE_LIMITS",
    "compile_peer",
    "compile_steps",
    "converted_graphs",
    "eagerly",
    "export_graph",
    "graph_blockers",
    "is_compiled",
    "run_eager",
]

# every model compiled in a process shares one code object, and each counts as a recompile of it
RECOMPILE_LIMITS = {"recompile_limit": 256, "accumulated_recompile_limit": 2048}
# inductor's checks of every weight's strides before each step: they cost 0.2 ms of W1's 2.2, and
# nothing moves weights
UNASSERTED = {"size_asserts": False, "alignment_asserts": False}


def run_eager(model: DeepseekV3) -> DeepseekV3:
    """Upstream: every operator is launched by the host on its own."""
    model.run_step = model.forward_step
    return model


def is_compiled(model: DeepseekV3) -> bool:
    return bool(model.run_step != model.forward_step)


@contextlib.contextmanager
def eagerly(model: DeepseekV3) -> Iterator[None]:
    """Within it the model runs operator by operator, with its modules' hooks, whatever it was
    compiled to."""
    compiled, model.run_step = model.run_step, model.forward_step
    try:
        yield
    finally:
        model.run_step = compiled


def compile_steps(
    model: DeepseekV3, mode: str = "ge", *, dynamic: bool = False, **options: Any
) -> DeepseekV3:
    """Ported: `model.forward_step` becomes one graph for prefill of each length and one for decode; returns
    the model.

    mode: a PortPlan.graph ("eager", "ge", "aclgraph"), on npu also "npugraph_ex" and
    "reduce-overhead" by name. Shapes are static, so pad prompts to a fixed length. dynamic=True
    makes sizes symbols: one decode graph for all lengths, but still a prefill graph for each,
    because npu_moe_init_routing takes its number of tokens as a plain int (not with
    npu_routing_kernel=False). The first call of each shape compiles (seconds). `options` are the
    backend's own, by its names (npu: OPTIONS; cpu and cuda: inductor's). PortError where the plan
    cannot be one graph.
    """
    if mode == "eager":
        return run_eager(model)
    blockers = graph_blockers(model.plan)
    if blockers:
        raise PortError("this plan cannot be captured as one graph: " + "; ".join(blockers))
    for name, limit in RECOMPILE_LIMITS.items():
        setattr(torch._dynamo.config, name, max(getattr(torch._dynamo.config, name), limit))
    kind = model.device.type
    if kind == "npu":
        chosen = npu_backend(mode)
        # now: imported while Dynamo traces, it would make the first graph's guards fail later
        torch_npu()
        if (
            dynamic
        ):  # else epsilons and scales become inputs on the host, which torchair 2.13.0 cannot copy
            torch._dynamo.config.specialize_float = True
        model.run_step = compile_for_npu(
            model.forward_step, chosen, backend_options(chosen, options), dynamic
        )
    elif kind in ("cpu", "cuda") and mode in ("ge", "aclgraph"):
        # a torch that cannot keep the graphs of two models apart needs the guards that tell them
        # apart
        apart: dict[str, Any] = {"isolate_recompiles": True} if _isolates() else {}
        settings: dict[str, Any] = {
            "guard_filter_fn": _argument_guards
            if apart
            else torch.compiler.skip_guard_on_inbuilt_nn_modules_unsafe,
            **UNASSERTED,
        }
        if mode == "aclgraph" and kind == "cuda":
            settings["triton.cudagraphs"] = True
        model.run_step = torch.compile(
            model.forward_step, fullgraph=True, dynamic=dynamic, options=settings | options, **apart
        )
    else:
        raise PortError(
            f"graph mode {mode!r} does not exist on device {kind!r}; on cpu and cuda it can be ge or "
            "aclgraph"
        )
    return model


def _argument_guards(entries: Sequence[Any]) -> list[bool]:
    """Which guards to keep: all but those on the model (`self`) and on globals of the package.

    Neither changes between steps; checking 1,500 modules, weights and functions before each of them
    cost 0.15 to 0.3 ms on cpu, a tenth of a step of W1. What the step is called with, and torch's
    own state, is checked.
    """
    return [not entry.name.startswith(("self", "G[")) for entry in entries]


def _isolates() -> bool:
    return "isolate_recompiles" in inspect.signature(torch.compile).parameters


def compile_peer(forward: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Another library's decode step under torch.compile, shapes static, for comparison
    (bench/peer_forms.py); `options` are inductor's."""
    for name, limit in RECOMPILE_LIMITS.items():
        setattr(torch._dynamo.config, name, max(getattr(torch._dynamo.config, name), limit))
    compiled: Callable[..., Any] = torch.compile(forward, dynamic=False, options=options or None)
    return compiled

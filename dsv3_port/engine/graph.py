"""Graph modes: torch.compile on cpu and cuda; what is torchair's is in torchair.py, and nobody else
calls either. Capture by hand is in capture.py.

EXE_MODE=eager runs the model operator by operator. EXE_MODE=dynamo makes one call of its step:

| mode | npu | cuda | cpu |
|---|---|---|---|
| ge | torchair's GE graph | inductor's kernels, launched by the host | inductor's kernels |
| aclgraph (ENABLE_ACLGRAPH=1) | npugraph_ex, or in an older torch_npu reduce-overhead | captured | as ge: a CPU \
captures nothing, and `made` says so |
| captured | the eager kernels in one NPUGraph | the eager kernels in one CUDAGraph | refused |
| compiled-captured | refused: npugraph_ex is that | inductor's kernels in one CUDAGraph | refused |
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from ..errors import PortError
from ..model.cache import Cache
from ..model.decoder import DeepseekV3
from ..ops.table import torch_npu
from ..plan import graph_blockers
from .capture import CapturedStep, Step, require_graphs
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
    "graphs_made",
    "is_compiled",
    "label",
    "made",
    "run_eager",
]

CAPTURED = ("captured", "compiled-captured")  # beside "aclgraph" on cuda

# every model compiled in a process shares one code object, and each counts as a recompile of it
RECOMPILE_LIMITS = {"recompile_limit": 256, "accumulated_recompile_limit": 2048}
# inductor's checks of every weight's strides before each step: they cost 0.2 ms of W1's 2.2, and
# nothing moves weights
UNASSERTED = {"size_asserts": False, "alignment_asserts": False}


def run_eager(model: DeepseekV3) -> DeepseekV3:
    """Upstream: every operator is launched by the host on its own."""
    for name, step in model.steps.items():
        setattr(model, name, step)
    return model


def is_compiled(model: DeepseekV3) -> bool:
    """Whether a step is one call: compiled, captured, or replaced by hand."""
    return bool(model.run_step != model.forward_step)


def made(model: DeepseekV3) -> str:
    """What a step of the model really is, whatever was asked for: "eager", "ge" (torchair's graph),
    "inductor", "aclgraph" (torchair's), "captured" or "compiled-captured"."""
    return model.made if is_compiled(model) else "eager"


def label(model: DeepseekV3) -> str:
    """The mode for a report: "aclgraph" only where something was captured, "ge" for a compiled step."""
    names = {"inductor": "ge", "captured": "aclgraph", "compiled-captured": "ge in aclgraph"}
    return names.get(made(model), made(model))


def graphs_made(model: DeepseekV3, cache: Cache) -> int:
    """How many graphs there are: captured ones over this cache, else those that Dynamo made in this
    process; 0 where the model runs eagerly."""
    if isinstance(model.run_step, CapturedStep):
        return len(model.run_step.of_cache.get(cache, {}))
    if not is_compiled(model):
        return 0
    return int(importlib.import_module("torch._dynamo.utils").counters["stats"]["unique_graphs"])


@contextlib.contextmanager
def eagerly(model: DeepseekV3) -> Iterator[None]:
    """Within it the model runs operator by operator, with its modules' hooks, whatever it was
    compiled to."""
    compiled = {name: getattr(model, name) for name in model.steps}
    run_eager(model)
    try:
        yield
    finally:
        for name, step in compiled.items():
            setattr(model, name, step)


def compile_steps(
    model: DeepseekV3, mode: str = "ge", *, dynamic: bool = False, **options: Any
) -> DeepseekV3:
    """Ported: `model.forward_step` becomes one graph for prefill of each length and one for decode; returns
    the model.

    mode: a PortPlan.graph ("eager", "ge", "aclgraph"), one of CAPTURED, on npu also "npugraph_ex" and
    "reduce-overhead". Shapes are static, so pad prompts to a fixed length. dynamic=True
    makes sizes symbols: one decode graph for all lengths, but still a prefill graph for each,
    because npu_moe_init_routing takes its number of tokens as a plain int (not with
    npu_routing_kernel=False). The first call of each shape compiles (seconds). `options` are the
    backend's own, by its names (npu: OPTIONS; cpu and cuda: inductor's; captured: clone_output, and
    captures, how many graphs at most). PortError where the plan cannot be one graph, or where the
    device has no such mode.
    """
    if mode == "eager":
        return run_eager(model)
    blockers = graph_blockers(model.plan)
    if blockers:
        raise PortError("this plan cannot be captured as one graph: " + "; ".join(blockers))
    kind = model.device.type
    if model.plan.quant != "none" and kind != "npu":
        raise PortError(f"w8a8 runs eagerly on {kind}: its graphs are an NPU's; set EXE_MODE=eager")
    captured = mode == "captured" or mode == "aclgraph" and kind == "cuda"
    wrap: Callable[[Step], Step]
    if captured:
        made, wrap = "captured", partial(_captured, model, options)
    elif mode == "compiled-captured" and kind in ("cpu", "cuda"):
        require_graphs(kind)
        own: dict[str, Any] = {
            n: options.pop(n) for n in ("clone_output", "captures") if n in options
        }
        made, wrap = mode, partial(_captured_by_inductor, model, own, dynamic, options)
    elif kind == "npu" and mode != "compiled-captured":
        made, wrap = _by_torchair(model, mode, dynamic, options)
    elif kind in ("cpu", "cuda") and mode in ("ge", "aclgraph"):
        made, wrap = "inductor", partial(_by_inductor, dynamic=dynamic, options=options)
    else:
        raise PortError(
            f"graph mode {mode!r} does not exist on device {kind!r}; "
            + (
                "npugraph_ex compiles and captures there"
                if kind == "npu"
                else "on cpu and cuda it can be ge or aclgraph, on cuda captured or compiled-captured"
            )
        )
    wrapped = {name: wrap(step) for name, step in model.steps.items()}
    model.made = made
    for name, step in wrapped.items():
        setattr(model, name, step)
    # a paged cache's lengths: host numbers in a capture on npu, which updates them; else a tensor
    model.device_lengths = kind != "npu" or model.made == "ge"
    return model


def _by_torchair(
    model: DeepseekV3, mode: str, dynamic: bool, options: dict[str, Any]
) -> tuple[str, Callable[[Step], Step]]:
    chosen = npu_backend(mode)
    if chosen != "ge" and model.mtp is not None:
        raise PortError(
            f"graph mode {chosen!r} does not take the steps of the MTP layer yet: set ENABLE_ACLGRAPH=0 (GE graph) "
            "or EXE_MODE=eager, or NUM_SPECULATIVE_TOKENS=0"
        )
    _raise_limits()
    # now: imported while Dynamo traces, it would make the first graph's guards fail later
    torch_npu()
    if dynamic:
        # else epsilons and scales become inputs on the host, which torchair 2.13.0 cannot copy
        torch._dynamo.config.specialize_float = True
    settings = backend_options(chosen, options)
    # a paged cache's lengths become symbols when they change; all other sizes stay what they are
    sizes = None if model.plan.cache == "paged" and chosen != "ge" and not dynamic else dynamic
    wrap = partial(compile_for_npu, backend=chosen, options=settings, dynamic=sizes)
    return "ge" if chosen == "ge" else "aclgraph", wrap


def _by_inductor(step: Step, dynamic: bool, options: dict[str, Any]) -> Step:
    _raise_limits()
    # a torch that cannot keep the graphs of two models apart needs the guards that tell them apart
    apart: dict[str, Any] = {"isolate_recompiles": True} if _isolates() else {}
    settings: dict[str, Any] = {
        "guard_filter_fn": _argument_guards
        if apart
        else torch.compiler.skip_guard_on_inbuilt_nn_modules_unsafe,
        **UNASSERTED,
    }
    compiled: Step = torch.compile(
        step, fullgraph=True, dynamic=dynamic, options=settings | options, **apart
    )
    return compiled


def _captured(model: DeepseekV3, options: dict[str, Any], step: Step) -> Step:
    return CapturedStep(model, step, **options)


def _captured_by_inductor(
    model: DeepseekV3, own: dict[str, Any], dynamic: bool, options: dict[str, Any], step: Step
) -> Step:
    return _captured(model, own, _by_inductor(step, dynamic, options))


def _raise_limits() -> None:
    for name, limit in RECOMPILE_LIMITS.items():
        setattr(torch._dynamo.config, name, max(getattr(torch._dynamo.config, name), limit))


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
    _raise_limits()
    compiled: Callable[..., Any] = torch.compile(forward, dynamic=False, options=options or None)
    return compiled

"""What torch.compile makes of a step: FX graphs, their operators, graph breaks, recompilations.

Nothing here times anything. The graphs are recorded with the operators of `ops` as single
nodes, which is how torchair receives them on an NPU (torch_npu's operators are opaque to Dynamo).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..engine.graph import RECOMPILE_LIMITS
from ..errors import PortError
from ..model.cache import Cache
from ..model.decoder import DeepseekV3
from .operators import each_operator

_MATMULS = {"linear", "matmul", "head_matmul", "shared_scores", "bmm", "mm"}
# no kernel behind them: views and metadata
_VIEWS = {
    "getitem",
    "view",
    "view_as",
    "reshape",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "transpose",
    "t",
    "permute",
    "expand",
    "split",
    "chunk",
    "as_strided",
    "detach",
    "numel",
    "size",
    "dim",
    "narrow",
}


def _counters() -> Any:
    """Dynamo's. Imported at use: Dynamo takes as long as the rest of torch, and who times eager
    models needs none of it."""
    from torch._dynamo.utils import counters

    return counters


@dataclass
class Watched:
    """What was seen: one entry of `graphs` for every compilation, `runs` for every execution of one
    of them."""

    graphs: list[GraphModule] = field(default_factory=list)
    runs: int = 0
    _before: Counter[str] = field(default_factory=Counter, repr=False)

    def __post_init__(self) -> None:
        self._before = Counter(_counters()["graph_break"])

    @property
    def breaks(self) -> dict[str, int]:
        """Dynamo's reasons for graph breaks since this began, first line of each, with how often."""
        new = Counter(_counters()["graph_break"]) - self._before
        return dict(Counter({reason.splitlines()[0]: n for reason, n in new.items()}).most_common())

    def backend(self, graph: GraphModule, example_inputs: Any) -> Callable[..., Any]:
        """A torch.compile backend: keep the graph, run it operator by operator."""
        self.graphs.append(graph)

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


def _as_node(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Dynamo puts the operator into the graph as one node and does not look inside."""

    @functools.wraps(function, updated=())
    def node(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    del node.__wrapped__  # Dynamo would trace what it finds there
    allowed: Callable[..., Any] = torch.compiler.allow_in_graph(node)
    return allowed


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """Without Dynamo's lines on stderr at a break, which is counted."""
    log = logging.getLogger("torch._dynamo.variables.tensor")

    def refuse(_: logging.LogRecord) -> bool:
        return False

    log.addFilter(refuse)
    try:
        yield
    finally:
        log.removeFilter(refuse)


@contextlib.contextmanager
def watch(model: DeepseekV3, *, fullgraph: bool = True, dynamic: bool = False) -> Iterator[Watched]:
    """Within it the model's step goes through Dynamo, and its graphs are kept and run eagerly;
    values stay the same.

    Cheap (no code is generated): for counting graphs, breaks and recompilations. With fullgraph a
    graph break raises.
    """
    seen = Watched()
    before = model.run_step

    def step(input_ids: Tensor, pad: Tensor, cache: Cache | None, first: bool) -> Tensor:
        return model.forward_step(
            input_ids, pad, cache, first
        )  # in a function of its own: not counted for model.forward_step

    compiled = torch.compile(step, backend=seen.backend, fullgraph=fullgraph, dynamic=dynamic)
    limits: dict[str, Any] = dict(RECOMPILE_LIMITS)
    products = ("linear", "head_matmul", "shared_scores", "attention")
    with each_operator(_as_node, *products), torch._dynamo.config.patch(limits), _no_advice():
        model.run_step = compiled
        try:
            yield seen
        finally:
            model.run_step = before


@dataclass(frozen=True)
class StepGraphs:
    """Of a prompt and cached steps through Dynamo: graphs compiled after each call so far, pieces that
    the last step ran in, reasons of its breaks."""

    after: list[int]
    pieces: int
    breaks: dict[str, int]


def step_graphs(model: DeepseekV3, steps: int = 3, prompt: int = 16) -> StepGraphs:
    """Count them for one prompt and `steps` cached steps of one sequence, breaks allowed."""
    ids = torch.arange(3, 3 + prompt + steps, device=model.device).unsqueeze(0)
    cache, after, before = model.new_cache(1, 4 * (prompt + steps)), [], 0
    with watch(model, fullgraph=False) as seen:
        for part in ids.split([prompt] + [1] * steps, dim=1):
            before = seen.runs
            model(part, cache=cache)
            after.append(len(seen.graphs))
    return StepGraphs(after, seen.runs - before, seen.breaks)


def first_break(model: DeepseekV3, step: Callable[[], Any]) -> str:
    """The line at which a graph of the model's step breaks while `step()` runs it, as "in visible:
    if bool(pad.any()):"; empty if the step is one graph."""
    try:
        with watch(model):
            step()
    except torch._dynamo.exc.TorchDynamoException as error:
        frames = re.findall(r'File "[^"]*", line \d+, in (\w+)\n\s+(.+)', str(error))
        return "in {}: {}".format(*frames[-1]) if frames else str(error).splitlines()[0]
    return ""


def eager_prefill(model: DeepseekV3) -> DeepseekV3:
    """Leave the decode step as it is compiled and run prefill operator by operator, so that any
    prompt length works."""
    compiled = model.run_step

    def run_step(input_ids: Tensor, pad: Tensor, cache: Cache | None, first: bool) -> Tensor:
        step = model.forward_step if first else compiled
        return step(input_ids, pad, cache, first)

    model.run_step = run_step
    return model


def compilations() -> int:
    """Graphs that Dynamo has compiled in this process so far; the difference over some calls is
    what they compiled."""
    return int(_counters()["stats"]["unique_graphs"])


def operator_name(node: Node) -> str:
    """`npu_rms_norm` for an NPU operator, otherwise aten's name, as count/operators.py counts them."""
    name = (
        node.target
        if isinstance(node.target, str)
        else getattr(node.target, "__name__", str(node.target))
    )
    if name.startswith(("npu_", "scatter_update")):
        return name
    return "aten.mm" if name in _MATMULS else f"aten.{name}"


def operators(graph: GraphModule, module: str = "") -> dict[str, int]:
    """Operators of an FX graph (or of one module in it, "layers.1"), most frequent first; no
    inputs, no views."""
    names = [
        operator_name(n)
        for n in graph.graph.nodes
        if n.op.startswith("call_") and _within(n, module)
    ]
    return dict(Counter(n for n in names if n.removeprefix("aten.") not in _VIEWS).most_common())


def inputs(graph: GraphModule) -> dict[str, int]:
    """Tensors that a graph of `watch` is called with: weights, what the cache holds, and the call's
    own arguments."""
    found: Counter[str] = Counter()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            owner = node.name.removeprefix("l_").split("_")[0]
            found[{"model": "weights", "cache": "cache"}.get(owner, "arguments")] += 1
    return {kind: found[kind] for kind in ("weights", "cache", "arguments")}


def module_nodes(graph: GraphModule, module: str) -> list[dict[str, str]]:
    """The nodes that the forward of one module ("layers.1.mlp") made, in order: name, operator,
    inputs, shape."""
    rows = [
        {
            "node": f"%{node.name}",
            "operator": operator_name(node),
            "shape": _shape(node),
            "inputs": ", ".join(f"%{_short(i.name)}" for i in node.all_input_nodes),
        }
        for node in graph.graph.nodes
        if node.op.startswith("call_") and _within(node, module)
    ]
    if not rows:
        raise PortError(f"no node of this graph belongs to a module {module!r}")
    return rows


def _within(node: Node, module: str) -> bool:
    paths = (str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values())
    return not module or any(f".{_dotted(p)}".endswith(f".{module}") for p in paths)


def _dotted(path: str) -> str:
    """L['model'].model.layers[1].mlp or ..._modules['layers']... -> model.layers.1.mlp."""
    path = re.sub(r"\._modules\['(\w+)'\]", r".\1", path)
    return re.sub(r"\[(\w+)\]", r".\1", path)


def _short(name: str) -> str:
    """A weight's name without the path to its layer; the checkpoint's names are unique within one."""
    name = re.sub(r"_modules_|_parameters_", "_", name).removeprefix("l_").strip("_")
    return re.sub(r"^model_model_layers_\d+_(?:mlp_|self_attn_)?", "", name)


def _shape(node: Node) -> str:
    value = node.meta.get("example_value")
    values = value if isinstance(value, (tuple, list)) else [value]
    return ", ".join(str(list(v.shape)) for v in values if isinstance(v, Tensor))

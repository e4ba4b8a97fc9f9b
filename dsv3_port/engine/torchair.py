"""torchair: its options as a sourced table, its backends, and the GE graphs that it converts. The
only file below hostnpu's that imports it."""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ..errors import PortError
from ..model.cache import Cache
from ..model.decoder import DeepseekV3
from ..plan import graph_blockers

NPU_BACKENDS = ("ge", "npugraph_ex", "reduce-overhead")


@dataclass(frozen=True)
class Option:
    """A setting of torchair: its name for each backend ("" where that has none), our value, why,
    and the source."""

    ge: str
    npugraph_ex: str
    reduce_overhead: str
    value: Any
    why: str
    source: str


# Not used: torchair.inference.cache_compile, which keeps compiled graphs on disk. A second process
# finds the port's decode graph there (GE and reduce-overhead, host NPU); prefill is compiled anew,
# and again with every new cache.
OPTIONS: tuple[Option, ...] = (
    Option(
        "experimental_config.frozen_parameter",
        "frozen_parameter",
        "experimental_config.frozen_parameter",
        True,
        "weights keep their address: none is handed over or compared again before a step",
        "Ascend/torchair: docs/zh/ascend_ir",
    ),
    Option(
        "experimental_config.tiling_schedule_optimize",
        "",
        "",
        True,
        "static shapes: tiling is computed when the graph is compiled, not before each run",
        "Ascend/torchair: docs/zh/ascend_ir",
    ),
    Option(
        "experimental_config.enable_view_optimize",
        "",
        "",
        False,
        "True (torchair's own value) merges chains of views; in 2.13.0 it loses the Transpose before head_matmul in "
        "absorbed prefill, and with one expert a card it makes a Transpose kernel of a weight's view",
        "tests/hostnpu/inside/check_ge.py; hicann/cann-learning-hub: blogs/inference/"
        "vllm_ascend_inference_optimization",
    ),
    Option(
        "",
        "clone_output",
        "debug.aclgraph.enable_output_clone",
        True,
        "logits are copied out of the graph's memory, which the next replay overwrites",
        "Ascend/torchair: docs/zh/npugraph_ex/api/npugraph_ex/compiler_config.md",
    ),
    Option(
        "",
        "static_kernel_compile",
        "experimental_config.aclgraph._aclnn_static_shape_kernel",
        False,
        "True compiles kernels for the very shapes: slow at first, faster after; it needs CANN's compiler, and "
        "LOCAL_WORLD_SIZE with several cards",
        "Ascend/torchair: docs/zh/npugraph_ex/basic",
    ),
    Option(
        "",
        "capture_limit",
        "debug.aclgraph.static_capture_size_limit",
        64,
        "captures of one graph (one for every new address of a cache); beyond it torchair silently runs eagerly",
        "Ascend/torchair: docs/zh/npugraph_ex/api/npugraph_ex/compiler_config.md",
    ),
)


def npu_backend(mode: str) -> str:
    """The backend, one of NPU_BACKENDS, that a mode means with the installed torch_npu."""
    if mode == "aclgraph":
        return (
            "npugraph_ex"
            if "npugraph_ex" in torch._dynamo.list_backends(exclude_tags=())
            else "reduce-overhead"
        )
    if mode not in NPU_BACKENDS:
        raise PortError(
            f"graph mode {mode!r}; on npu it can be aclgraph, {', '.join(NPU_BACKENDS)}"
        )
    return mode


def backend_options(backend: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """OPTIONS in the spelling of one backend, with `changes` applied."""
    rows = {getattr(o, backend.replace("-", "_")): o.value for o in OPTIONS}
    rows.pop("", None)
    return rows | (changes or {})


def compile_for_npu(
    function: Callable[..., Any], backend: str, options: dict[str, Any], dynamic: bool | None
) -> Callable[..., Any]:
    if backend == "npugraph_ex":
        return torch.compile(
            function, backend=backend, options=options, fullgraph=True, dynamic=dynamic
        )
    import torchair

    # registers the form with lengths as tensors, which otherwise its first call does
    importlib.import_module("torchair.ops._npu_fused_infer_attention_score_v2")
    compiler = torchair.get_npu_backend(compiler_config=compiler_config(backend, options))
    return torch.compile(function, backend=compiler, fullgraph=True, dynamic=dynamic)


def compiler_config(backend: str, options: dict[str, Any]) -> Any:
    """torchair's CompilerConfig for "ge" or "reduce-overhead". PortError names an option that it
    does not have."""
    import torchair

    config = torchair.CompilerConfig()
    config.mode = "max-autotune" if backend == "ge" else backend
    for name, value in options.items():
        owner, *parts = config, *name.split(".")
        try:
            for part in parts[:-1]:
                owner = getattr(owner, part)
            if not hasattr(owner, parts[-1]):
                raise AttributeError(name)
            setattr(owner, parts[-1], value)
        except (AttributeError, ValueError, TypeError) as error:
            raise PortError(
                f"torchair cannot be given {name} = {value!r} in mode {backend}: {error}"
            ) from error
    return config


@contextlib.contextmanager
def converted_graphs() -> Iterator[list[Any]]:
    """Collects torchair's GeGraph (`.op`: the operators of its GraphDef) of every GE graph first
    run within it."""
    import torchair  # noqa: F401  # the next line finds nothing before torchair is loaded
    from torchair.core import _backend

    graphs: list[Any] = []
    load = _backend.TorchNpuGraph.load

    def keep(self: Any, ge_graph: Any, options: Any = None) -> Any:
        graphs.append(ge_graph)
        return load(self, ge_graph, options)

    with mock.patch.object(_backend.TorchNpuGraph, "load", keep):
        yield graphs


class _StepModule(torch.nn.Module):
    """The step as a module of tensors, as dynamo_export wants it."""

    def __init__(self, model: DeepseekV3, cache: Cache, first: bool) -> None:
        super().__init__()
        self.model, self.cache, self.first = model, cache, first

    def forward(self, input_ids: Tensor, pad: Tensor) -> Tensor:
        return self.model.forward_step(input_ids, pad, self.cache, self.first)


def export_graph(
    model: DeepseekV3,
    folder: str | Path,
    *,
    length: int = 1,
    batch: int = 1,
    max_length: int = 64,
    first: bool = False,
) -> dict[str, Path]:
    """Write a model's converted GE graph for offline use and for reading; nothing of the model
    runs.

    length, first: of the step ([batch, length] tokens, first=True for prefill); max_length: of the
        cache. Returns the
    files in `folder` by name: step.air (for CANN's tools), graph.pbtxt and graph.py (its operators
    as text and as Python calls, torchair's graph_dump), options.json. On npu only. Steps compiled
    before in this process compile
    anew afterwards: dynamo_export resets Dynamo.
    """
    if model.device.type != "npu":
        raise PortError(
            f"export_graph: the model is on {model.device.type}; a GE graph is made of a model on npu"
        )
    blockers = graph_blockers(model.plan)
    if blockers:
        raise PortError("this plan cannot be exported as one graph: " + "; ".join(blockers))
    if not first and length >= max_length:
        raise PortError(
            f"export_graph: a cache of {max_length} positions has no room for {length} more"
        )
    import torchair

    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    cache = model.new_cache(batch, max_length)
    if not first:
        cache.fill_random(max_length - length)
    inputs = (torch.zeros(batch, length, dtype=torch.int64, device=model.device), cache.pad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in ("py", "pbtxt"):
            config = compiler_config("ge", backend_options("ge"))
            config.debug.graph_dump.type, config.debug.graph_dump.path = kind, str(where)
            torchair.dynamo_export(
                *inputs,
                model=_StepModule(model, cache, first),
                export_path=str(where),
                export_name="step",
                dynamic=False,
                config=config,
            )
            for dumped in where.glob(f"dynamo_optimized_graph_*_pid_{os.getpid()}_*.{kind}"):
                dumped.replace(where / f"graph.{kind}")
    (where / "dynamo.pbtxt").unlink(
        missing_ok=True
    )  # the graph once more, its constants as text: three times step.air
    files = {name: where / name for name in ("step.air", "graph.pbtxt", "graph.py", "options.json")}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise PortError(f"torchair wrote no {', '.join(missing)} into {where}: its log says why")
    return files

"""torchair on the host NPU: everything of it is real but the engine.

Input processing, storage formats, references between outputs and inputs, dumps and export are
torchair's own. In the engine's place, by DSV3_GE_ENGINE: "fx" (default) runs the FX graph after
torchair's passes, from which the GE graph was converted; "interpret" executes the converted GE
graph itself (ge_run.py) and so finds a wrong conversion (a transpose flag, an attribute), which the
FX graph cannot show.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import PortError
from . import formats, ge, ge_run, kernels, operators, registry

ENGINE_VARIABLE = "DSV3_GE_ENGINE"
ENGINES = ("fx", "interpret")

_current = threading.local()  # .call: (GeConcreteGraph, its arguments) of the call that is running


def engine() -> str:
    """What runs GE graphs in this process, one of ENGINES."""
    name = os.environ.get(ENGINE_VARIABLE) or ENGINES[0]
    if name not in ENGINES:
        raise PortError(f"{ENGINE_VARIABLE} is {name!r}; it can be {' or '.join(ENGINES)}")
    return name


class HostGraph:
    """In the place of torchair's wrapper of a native GE graph
    (torchair.core._backend.TorchNpuGraph)."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.ge: Any = None  # torchair's GeGraph, with the protobuf message GraphDef in it
        self.options: dict[str, str] = {}
        self.interpreted: ge.Graph | None = None

    def load(self, ge_graph: Any, options: dict[str, str] | None = None) -> None:
        ge_graph.SerializeToString()  # what the engine would be handed
        self.ge, self.options, self.interpreted = ge_graph, dict(options or {}), None

    def compile(self) -> None:
        if self.ge is None:
            raise RuntimeError("torchair compiles a graph that it has not loaded")

    def auto_tune(self, example_inputs: Sequence[Any] = (), stream: Any = None) -> None:
        raise PortError(
            "aoe_config: the host stand-in cannot tune a graph; take the option out, or use an NPU"
        )

    def run(
        self, inputs: Sequence[Any], assigned_outputs: Sequence[Any] = (), stream: Any = None
    ) -> list[Any]:
        """Outputs in the GE graph's order. assigned_outputs: for each output the input that it is,
        or None."""
        if engine() == "interpret":
            return self._interpret(inputs, assigned_outputs)
        owner, args = getattr(_current, "call", None) or (None, ())
        if owner is None or owner.graph._executor is not self or owner.fx_graph is None:
            raise PortError(
                "this GE graph comes from torchair's cache (cache_compile), which keeps no FX graph, and "
                f"the host stand-in runs FX graphs: set {ENGINE_VARIABLE}=interpret, compile it in this "
                "process, or use npugraph_ex's cache_compile, which works here"
            )
        with torch.no_grad():
            results = owner.fx_graph(*args)
        outputs = self._slots(assigned_outputs)
        for fx_index, ge_index in owner._fx_outputs_mapping.items():
            if outputs[ge_index] is None:
                outputs[ge_index] = results[fx_index]
        return outputs

    def _slots(self, assigned: Sequence[Any]) -> list[Any]:
        """One for each output of the GE graph."""
        return [*assigned] + [None] * (len(self.ge.attr["_output_dtypes"].list.i) - len(assigned))

    def _interpret(self, inputs: Sequence[Any], assigned_outputs: Sequence[Any]) -> list[Any]:
        if self.interpreted is None:
            self.interpreted = ge.read(self.ge)
        kernels.recorder.flush()
        found = ge_run.run(self.interpreted, [_input(t) for t in inputs]).outputs
        outputs = self._slots(assigned_outputs)
        if len(found) != len(outputs):
            raise PortError(
                f"{self.interpreted.name}: NetOutput gives {len(found)} outputs, torchair waits for "
                f"{len(outputs)}"
            )
        for i, (value, destination) in enumerate(zip(found, outputs, strict=True)):
            if destination is None:
                outputs[i] = value.contiguous().to("npu")
            elif (
                value.data_ptr() != destination.data_ptr()
            ):  # otherwise the graph wrote it there itself
                kernels.alias(destination).copy_(value)
        return outputs


def _input(x: Any) -> Any:
    """An input of a graph on the host, in plain order: GE converts where an operator does not read
    FRACTAL_NZ."""
    on_npu = isinstance(x, torch.Tensor) and x.device.type == "npu"
    return formats.host(x) if on_npu and formats.layout_of(x) else kernels.to_host(x)


def _export(model: bytes, options: dict[str, str]) -> None:
    """dynamo_export: CANN would call ge::Graph::SaveToFile; the file holds the same serialised
    model."""
    Path(options["export_path_dir"], options["export_name"]).write_bytes(model)


def _any_cann(operator: str, inputs: Any, attributes: Any) -> str:
    """ "Does the installed CANN know this operator with these inputs and attributes?" "" says yes
    to all."""
    return ""


def _check_names(backend: Any, fx2ge: Any) -> None:
    """The hook uses private names; another version of torchair may have others."""
    import torch_npu

    native = getattr(backend, "_torchair", None)
    wanted = [
        (backend, "TorchNpuGraph"),
        (native, "InitializeGraphEngine"),
        (native, "FinalizeGraphEngine"),
        (native, "check_cann_compat"),
        (native, "export"),
        (fx2ge.GeConcreteGraph, "fx_graph"),
        (fx2ge.GeConcreteGraph, "__call__"),
    ]
    missing = [name for owner, name in wanted if not hasattr(owner, name)]
    if missing:
        raise PortError(
            f"torch_npu {torch_npu.__version__}: its torchair has no {', '.join(missing)}, which the host "
            "stand-in replaces; versions known to work: 2.13.0"
        )


def install() -> None:
    """Import torchair and put HostGraph in the engine's place; without it torchair's native part
    ends the process."""
    from . import own_signals

    with own_signals():
        from torchair._ge_concrete_graph import fx2ge_converter as fx2ge
        from torchair.core import _backend
    _check_names(_backend, fx2ge)
    native = _backend._torchair
    native.InitializeGraphEngine = lambda options: None
    native.FinalizeGraphEngine = lambda: None
    native.check_cann_compat = _any_cann
    native.export = _export
    _backend.TorchNpuGraph = HostGraph
    _install_attention()
    original = fx2ge.GeConcreteGraph.__call__

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        before, _current.call = getattr(_current, "call", None), (self, args)
        try:
            return original(self, *args, **kwargs)
        finally:
            _current.call = before

    fx2ge.GeConcreteGraph.__call__ = call


def _install_attention() -> None:
    """A kernel behind torchair.ops.npu_fused_infer_attention_score_v2, which has none: GE alone runs
    it, and here an FX graph may."""
    importlib.import_module("torchair.ops._npu_fused_infer_attention_score_v2")
    name = "air::npu_fused_infer_attention_score_v2"
    registry.register([(name, kernels.Kernel(name, lambda _: operators.attention_by_tensor))])

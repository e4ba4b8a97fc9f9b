"""Converted GE graphs, interpreted: equal to eager on the host NPU; a changed graph is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchair
from torch import Tensor

from dsv3_port import PortPlan, load_model
from dsv3_port.hostnpu import ge, graphs, kernels
from dsv3_port.hostnpu.ge_ops import GraphError

TINY = Path(__file__).parents[3] / "data" / "tiny-dsv3"
PLANS = {"full": PortPlan.full(), "absorbed prefill": PortPlan.full().replace(prefill_attention="absorbed"),
         "two steps": PortPlan.with_steps("gmm_routing", "fixed_kv_cache"),
         "split": PortPlan.full().replace(mlp="split", group_mask="scatter")}
# head_matmul of several queries: x.transpose(0, 1).reshape(...) is in the GraphDef as a Reshape of SplitV's output
# alone, while the FX graph's result is right. Cause not found yet (torchair's conversion or a pass of it).
LOST_TRANSPOSE = pytest.mark.xfail(strict=True, raises=AssertionError,
                                   reason="absorbed prefill: no Transpose before head_matmul's Reshape")
Change = Callable[[ge.Graph], None]


def steps(plan: PortPlan, dtype: str, monkeypatch: pytest.MonkeyPatch, compiled: bool, change: Change | None = None,
          count: int = 4) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of a prefill and `count` decode steps by the greedy token, and the caches after them."""
    model = load_model(TINY, plan, "npu", dtype=dtype)
    if compiled:
        torch._dynamo.reset()
        monkeypatch.setattr(graphs.HostGraph, "run", interpreter(change))
        model.run_step = torch.compile(model.step, fullgraph=True, dynamic=False, backend=torchair.get_npu_backend())
    cache, ids = model.new_cache(2, 8 + count), torch.arange(12).view(2, 6).npu()
    logits = []
    for _ in range(count + 1):
        logits.append(model(ids, None, cache).cpu())
        ids = logits[-1][:, -1:].argmax(-1).npu()
    return logits, [t.cpu() for layer in cache.buffers for t in layer]


def interpreter(change: Change | None) -> Any:
    read: dict[int, ge.Graph] = {}

    def run(self: Any, inputs: Any, assigned_outputs: Any = (), stream: Any = None) -> list[Tensor]:
        if id(self) not in read:
            read[id(self)] = ge.read(self.ge)
            if change:
                change(read[id(self)])
        found = ge.run(read[id(self)], [kernels.alias(t) for t in inputs]).outputs
        given = [*assigned_outputs] + [None] * (len(found) - len(assigned_outputs))
        for value, destination in zip(found, given, strict=True):
            if destination is not None and value.data_ptr() != destination.data_ptr():
                kernels.alias(destination).copy_(value)
        return [v.clone().npu() if d is None else d for v, d in zip(found, given, strict=True)]

    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("plan", [pytest.param(p, marks=LOST_TRANSPOSE) if p == "absorbed prefill" else p
                                  for p in PLANS])
def test_equal_to_eager(plan: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, cache = steps(PLANS[plan], dtype, monkeypatch, False)
    got, written = steps(PLANS[plan], dtype, monkeypatch, True)
    limit = 1e-5 if dtype == "float32" else 5e-2
    for a, b in zip(got + written, wanted + cache, strict=True):
        assert (a.float() - b.float()).abs().max() <= limit * b.float().abs().max()


def node(graph: ge.Graph, kind: str) -> ge.Node:
    return next(n for n in graph.nodes if n.type == kind)


def set_attribute(kind: str, key: str, value: Any) -> Change:
    def change(graph: ge.Graph) -> None:
        node(graph, kind).attributes[key] = value

    return change


def swap(graph: ge.Graph) -> None:
    inputs = node(graph, "RotaryMul").inputs
    inputs[1], inputs[2] = inputs[2], inputs[1]


MUTATIONS: dict[str, Change] = {
    "transpose flag": set_attribute("MatMul", "transpose_x2", True), "swapped cos and sin": swap,
    "epsilon": set_attribute("AddRmsNorm", "epsilon", 1e-2), "axis": set_attribute("SwiGlu", "dim", 0),
    "group_list_type": set_attribute("GroupedMatmul", "group_list_type", 1),
    "unknown attribute": set_attribute("RmsNorm", "mode", 1), "unknown operator": lambda g: setattr(
        node(g, "RmsNorm"), "type", "LayerNorm")}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_conversion_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, _ = steps(PLANS["full"], "float32", monkeypatch, False, count=0)
    try:
        got, _ = steps(PLANS["full"], "float32", monkeypatch, True, MUTATIONS[name], count=0)
    except GraphError as error:
        assert "node " in str(error)
        return
    assert not (got[0] - wanted[0]).abs().max() <= 1e-5 * wanted[0].abs().max()

"""The whole model as a graph on device npu: GE graph, reduce-overhead and npugraph_ex, against device cpu.

With the CPU's own faster kernels set aside both devices compute with the same ones, and everything is equal to the
last bit: logits, greedy tokens and caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from dsv3_port import PortPlan, load_model
from dsv3_port.engine.graph import NPU_BACKENDS, compile_steps, converted_graphs, npu_backend
from dsv3_port.hostnpu import graphs, tape
from dsv3_port.model.decoder import DeepseekV3
from tests.hostnpu.inside import check_ge, check_model

TINY = Path(__file__).parents[3] / "data" / "tiny-dsv3"
FULL = PortPlan.full()
LENGTH = 10
NEEDED = ("gmm_routing", "fixed_kv_cache")  # without these no graph
FREE = ("mla_low_rank", "one_hot_gate", "merged_mlp", "rope_once", "add_rms_norm", "last_token_head")
PLANS = {"least": PortPlan.with_steps(*NEEDED),
         **{f"with {i}": PortPlan.with_steps(*NEEDED, i) for i in FREE},
         **{f"without {i}": FULL.minus(i) for i in FREE},
         "tensor parallel of 1": PortPlan.with_steps(*NEEDED, "tensor_parallel"),
         "torch routing": FULL.replace(npu_routing_kernel=False),
         "torch routing, split": FULL.minus("merged_mlp").replace(npu_routing_kernel=False),
         "absorbed prefill": FULL.replace(prefill_attention="absorbed"), "mask 0": FULL.replace(group_mask_value=0.0)}

same_kernels = check_model.same_kernels  # an autouse fixture


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


@dataclass
class Run:
    logits: list[Tensor]
    tokens: Tensor  # [steps, B]
    cache: list[Tensor]
    graphs: list[int]  # compiled so far, after prefill, after the first decode step and at the end


def run(model: DeepseekV3, batch: int, steps: int, length: int = LENGTH, cache: Any = None) -> Run:
    """Greedy decoding after a prompt whose first row is padded."""
    ids = torch.randint(3, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(7))
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, :4] = 0
    cache = cache or model.new_cache(batch, length + steps)
    before, seen = counters["stats"]["unique_graphs"], []
    logits, tokens = [model(ids.to(model.device), mask.to(model.device), cache)], []
    for _ in range(steps):
        seen.append(counters["stats"]["unique_graphs"] - before)
        tokens.append(logits[-1][:, -1].argmax(-1))
        logits.append(model(tokens[-1].unsqueeze(1), cache=cache))
    seen.append(counters["stats"]["unique_graphs"] - before)
    return Run([x.cpu() for x in logits], torch.stack(tokens).cpu(),
               [t.cpu() for layer in cache.buffers for t in layer], [*seen[:2], seen[-1]])


def assert_equal(got: Run, want: Run) -> None:
    assert torch.equal(got.tokens, want.tokens)
    for a, b in zip(got.logits + got.cache, want.logits + want.cache, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mode", NPU_BACKENDS)
def test_full_port(mode: str, dtype: str, batch: int) -> None:
    steps = 64 if dtype == "bfloat16" else 6
    want = run(load_model(TINY, FULL, "cpu", dtype), batch, steps)
    assert tape.tapes is not None
    replayed, breaks = tape.tapes.replayed, dict(counters["graph_break"])
    got = run(compile_steps(load_model(TINY, FULL, "npu", dtype), mode), batch, steps)
    assert_equal(got, want)
    assert got.graphs == [1, 2, 2]  # one for prefill, one for decode, none later
    assert dict(counters["graph_break"]) == breaks
    assert tape.tapes.replayed - replayed == (0 if mode == "ge" else steps + 1)


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_converts(name: str) -> None:
    """GE conversion of prefill and decode; the GE graphs themselves, interpreted, give what eager gives."""
    plan = PLANS[name]
    want = run(load_model(TINY, plan, "npu", "float32"), 2, 2)
    with converted_graphs() as found:
        got = run(compile_steps(load_model(TINY, plan, "npu", "float32"), "ge"), 2, 2)
    assert_equal(got, want)
    assert len(found) == 2 and all(len(graph.op) > 100 for graph in found)


def interpreted(plan: PortPlan, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Run:
    monkeypatch.setattr(graphs.HostGraph, "run", check_ge.interpreter(None))
    return run(compile_steps(load_model(TINY, plan, "npu", "float32"), "ge", **options), 2, 2)


@pytest.mark.parametrize("name", ["least", "without merged_mlp", "absorbed prefill"])
def test_the_ge_graph_itself_is_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = run(load_model(TINY, PLANS[name], "npu", "float32"), 2, 2)
    assert_equal(interpreted(PLANS[name], monkeypatch), want)


def test_torchairs_view_optimisation_converts_absorbed_prefill_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why OPTIONS turns it off. When this fails torchair has been repaired, and the option can go back to True."""
    plan = PLANS["absorbed prefill"]
    want = run(load_model(TINY, plan, "npu", "float32"), 2, 2)
    got = interpreted(plan, monkeypatch, **{"experimental_config.enable_view_optimize": True})
    assert (got.logits[0] - want.logits[0]).abs().max() > 0.1


@pytest.mark.parametrize("kernel", [True, False], ids=["npu routing", "torch routing"])
@pytest.mark.parametrize("mode", NPU_BACKENDS)
def test_dynamic_sizes(mode: str, kernel: bool) -> None:
    plan = FULL.replace(npu_routing_kernel=kernel)
    model = compile_steps(load_model(TINY, plan, "npu", "float32"), mode, dynamic=True)
    new = []
    for length in (9, 14, 21):
        got = run(model, 2, 2, length)
        assert_equal(got, run(load_model(TINY, plan, "cpu", "float32"), 2, 2, length))
        new.append(got.graphs)
    assert new[0] == [1, 2, 2]
    # npu_moe_init_routing's active_num is an int: a prefill graph for each length, one decode graph for all
    assert new[1:] == ([[1, 1, 1]] * 2 if kernel else [[0, 0, 0]] * 2)


@pytest.mark.parametrize("mode", ["npugraph_ex", "reduce-overhead"])
def test_another_cache_is_captured_again_and_a_known_one_is_not(mode: str) -> None:
    model, tapes = compile_steps(load_model(TINY, FULL, "npu", "float32"), mode), tape.tapes
    assert tapes is not None
    want = run(load_model(TINY, FULL, "cpu", "float32"), 2, 3)
    cache = model.new_cache(2, LENGTH + 3)
    captured = []
    for here in (cache, cache, model.new_cache(2, LENGTH + 3)):
        here.reset()
        before = tapes.captured
        assert_equal(run(model, 2, 3, cache=here), want)
        captured.append(tapes.captured - before)
    assert captured[0] >= 2 and captured[1] == 0 and captured[2] >= 2


def test_aclgraph_means_npugraph_ex_here() -> None:
    assert npu_backend("aclgraph") == "npugraph_ex"

"""Graphs, breaks and recompilations as Dynamo makes them, counted without generating code."""

from __future__ import annotations

import logging

import pytest
import torch

from dsv3_port.count import compiled as graphs
from dsv3_port.count import inductor
from dsv3_port.count.captured import first_layers
from dsv3_port.count.operators import count_ops
from dsv3_port.engine.graph import compile_steps, graph_blockers
from dsv3_port.errors import PortError
from dsv3_port.model.visible import visible_keys
from dsv3_port.plan import PortPlan

from ..random_models import CONFIG, SHORT, random_model


def run(model, steps=3, prompt=5, cache=None):
    ids = torch.randint(
        CONFIG.vocab_size, (1, prompt + steps), generator=torch.Generator().manual_seed(1)
    )
    cache = cache or model.new_cache(1, 16)
    rows = [model(ids[:, :prompt], cache=cache)]
    return torch.cat(
        rows + [model(ids[:, i : i + 1], cache=cache) for i in range(prompt, prompt + steps)], 1
    )


def test_full_plan_is_two_graphs_and_equal():
    model = random_model(PortPlan.full())
    eager = run(model)
    with graphs.watch(model) as seen:
        assert torch.equal(run(model), eager)
    assert (len(seen.graphs), seen.runs, seen.breaks) == (2, 4, {})
    assert model.run_step == model.forward_step
    with graphs.watch(model) as again:
        run(model, steps=5)
    assert len(again.graphs) == 2  # of its own: not found in an earlier watch's cache


def test_step_graphs_counts_what_a_question_and_a_number_cost():
    """One layer tells it; and Dynamo's lines about a break, which is counted, do not reach a page."""
    model = first_layers(random_model(PortPlan.full()), 1)
    found = graphs.step_graphs(model)
    assert (found.after, found.pieces, found.breaks) == ([1, 2, 2, 2], 1, {})
    log, lines = logging.getLogger("torch._dynamo.variables.tensor"), []
    handler = logging.Handler()
    handler.emit = lines.append
    log.addHandler(handler)
    try:
        model.visible = lambda slot, new, keys, pad: visible_keys(
            slot * 0 + int(slot[0]), new, keys, pad
        )
        found = graphs.step_graphs(model)
    finally:
        log.removeHandler(handler)
    assert found.after[-1] > 2 and found.pieces > 1 and len(found.breaks) == 1 and not lines
    held = [0]

    def counted(slot, new, keys, pad):
        start = 0 if new == keys else held[0]
        held[0] = start + new
        return visible_keys(slot * 0 + start, new, keys, pad)

    model.visible = counted
    found = graphs.step_graphs(model)
    assert (found.after, found.pieces, found.breaks) == ([1, 2, 3, 4], 1, {})


def test_operators_are_those_of_the_census():
    model = random_model(PortPlan.full())
    cache = model.new_cache(1, 16)
    with graphs.watch(model) as seen:
        run(model, cache=cache)
    found = graphs.operators(seen.graphs[-1])
    counted = count_ops(lambda: model(torch.zeros(1, 1, dtype=torch.int64), cache=cache))
    npu = {op: n for op, n in counted.items() if op.startswith(("npu_", "scatter_update"))}
    assert npu and npu == {op: n for op, n in found.items() if op in npu}
    assert found["aten.mm"] == counted["aten.mm"] + counted["aten.bmm"]
    assert "aten.view" not in found and "aten.getitem" not in found


def test_inputs_and_module_nodes():
    model = random_model(PortPlan.full())
    with graphs.watch(model) as seen:
        run(model)
    layers = CONFIG.num_hidden_layers
    found = graphs.inputs(seen.graphs[-1])
    assert (
        found["cache"] == layers + 1 and found["arguments"] == 2 and found["weights"] > 10 * layers
    )
    rows = graphs.module_nodes(seen.graphs[-1], "layers.1.mlp.experts")
    assert [r["operator"] for r in rows if r["operator"].startswith("npu_")] == [
        "npu_moe_init_routing",
        "npu_moe_compute_expert_tokens",
        "npu_grouped_matmul",
        "npu_swiglu",
        "npu_grouped_matmul",
        "npu_moe_finalize_routing",
    ]
    whole, layer = (sum(graphs.operators(seen.graphs[-1], m).values()) for m in ("", "layers.1"))
    assert (
        0 < CONFIG.num_hidden_layers * layer - whole < layer
    )  # layer 0 is dense, head and mask are outside
    assert any("experts_group_w2" in r["inputs"] for r in rows) and all(
        "l_model" not in r["inputs"] for r in rows
    )
    with pytest.raises(PortError, match="layers.9"):
        graphs.module_nodes(seen.graphs[-1], "layers.9")


def test_growing_cache_recompiles_every_step():
    model = random_model(PortPlan.upto("merged_mlp"))
    assert graph_blockers(model.plan)
    with graphs.watch(model) as seen:
        run(model, steps=4)
    assert len(seen.graphs) == 5


def test_expert_loop_breaks_the_graph():
    model = random_model(PortPlan.full().minus("gmm_routing"))
    eager = run(model, steps=1)
    with graphs.watch(model, fullgraph=False) as seen:
        assert torch.allclose(run(model, steps=1), eager)
    assert len(seen.graphs) > 2 and seen.runs > 2 * (CONFIG.num_hidden_layers - 1)
    assert any("Data dependent" in reason for reason in seen.breaks)
    with graphs.watch(model) as seen, pytest.raises(Exception, match="[Dd]ata.dependent"):
        run(model)
    assert model.run_step == model.forward_step


def test_prompt_lengths_recompile_unless_padded():
    model = random_model(PortPlan.full())
    with graphs.watch(model) as seen:
        for length in (4, 5, 6):
            model(
                torch.zeros(1, length, dtype=torch.int64),
                torch.ones(1, length),
                model.new_cache(1, 16),
            )
    assert len(seen.graphs) == 3
    with graphs.watch(model) as seen:
        for length in (4, 5, 6):
            mask = torch.arange(8).unsqueeze(0) >= 8 - length
            model(torch.zeros(1, 8, dtype=torch.int64), mask, model.new_cache(1, 16))
    assert len(seen.graphs) == 1


def test_generated_kernels_of_a_text():
    code = """
cpp_fused_add_0 = async_compile.cpp_pybinding(['const float*'])
def call(args):
        buf0 = empty_strided_cpu((1, 1), (1, 1), torch.float32)
        cpp_fused_add_0(arg0, buf0)
        extern_kernels.bmm(a, b, out=buf1)
        buf2 = torch.ops.aten.topk.default(buf1, 2)
        triton_poi_fused_add_0.run(arg0, buf0, 4)
"""
    assert inductor.generated_kernels(code) == {"fused kernel": 2, "bmm": 1, "aten.topk": 1}


def test_generated_code_of_a_compiled_step():
    """A chunk as tests/model/test_prefill.py compiles it: inductor finds what it made for one of the
    two."""
    torch._dynamo.reset()
    model = compile_steps(random_model(PortPlan.full(), SHORT))
    cache = model.new_cache(1, 16)
    cache.fill_random(2)
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    with inductor.generated_code() as texts:
        model(tokens, cache=cache)
    assert len(texts) == 1
    launched = sum(inductor.generated_kernels(texts[0]).values())
    model.run_step = model.forward_step
    assert 0 < launched < sum(count_ops(lambda: model(tokens, cache=cache)).values())


def test_eager_prefill_compiles_the_decode_step_only():
    model = random_model(PortPlan.full())
    eager = run(model)
    with graphs.watch(model) as seen:
        graphs.eager_prefill(model)
        before = graphs.compilations()
        assert torch.equal(run(model), eager) and torch.equal(run(model, prompt=5), eager)
    assert len(seen.graphs) == 1 and seen.runs == 6 and graphs.compilations() - before == 1

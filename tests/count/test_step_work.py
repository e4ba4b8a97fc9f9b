"""What a step asks of a device, counted on meta, against a run with values and against formulas."""

from __future__ import annotations

import pytest
import torch

from dsv3_port import ops
from dsv3_port.config import DeepseekV3Config
from dsv3_port.count.operators import count_ops
from dsv3_port.count.step_counter import experts_met
from dsv3_port.count.step_work import step_work
from dsv3_port.count.traffic import count_traffic
from dsv3_port.errors import PortError
from dsv3_port.forecast.planner import active_params, kv_bytes_per_token, weight_bytes
from dsv3_port.ops import plain
from dsv3_port.plan import PortPlan
from dsv3_port.steps import STEPS
from tests.random_models import CONFIG, random_model

V3 = DeepseekV3Config.preset("v3-671b")
RUNGS = [s.id for s in STEPS if s.field != "graph"]


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("tokens", [1, 9])
def test_launches_are_those_of_a_run_with_values(rung, tokens, monkeypatch):
    """With the expert loop the number of experts that are met differs by chance."""
    plan = PortPlan.upto(rung).minus("tensor_parallel")
    # a CPU has attention as one operator, an NPU has not
    monkeypatch.setattr(ops, "prompt_without_mask", lambda device: False)
    monkeypatch.setattr(ops, "attention", plain.plain_attention)
    model = random_model(plan)
    cache = model.new_cache(2, 9)
    cache.fill_random(9 - tokens)
    ids = torch.arange(2 * tokens).view(2, tokens)
    ran = count_ops(lambda: model(ids, cache=cache))
    counted: dict[str, int] = {}
    for w in step_work(CONFIG, plan, batch=2, tokens=tokens, context=9, dtype=torch.float32).work:
        counted[w.op] = counted.get(w.op, 0) + w.times
    by_chance = {"aten.mm", "aten.silu", "aten.mul"} if plan.experts == "loop" else set()
    assert {op: n for op, n in ran.items() if op not in by_chance} == {
        op: n for op, n in counted.items() if op not in by_chance
    }


def test_products_are_two_operations_for_each_active_parameter():
    short = step_work(V3, PortPlan.full(), batch=1, tokens=1, context=2).flops
    assert short / (2 * active_params(V3)) == pytest.approx(
        1, abs=0.02
    )  # w_k and w_v instead of kv_b_proj
    per_position = (
        V3.num_hidden_layers
        * V3.num_attention_heads
        * 2
        * (2 * V3.kv_lora_rank + V3.qk_rope_head_dim)
    )
    longer = step_work(V3, PortPlan.full(), batch=1, tokens=1, context=1026).flops
    assert longer - short == 1024 * per_position


def test_bytes_grow_with_the_cache_and_not_with_experts_that_nobody_met():
    plan, cached = PortPlan.full(), 4096
    near, far = (
        step_work(V3, plan, world_size=32, tokens=1, context=n) for n in (cached, 2 * cached)
    )
    extra = far.nbytes - near.nbytes
    rows = cached * kv_bytes_per_token(V3, plan)
    assert (
        rows < extra < 4 * rows
    )  # rows are read as keys and as values, and scores are written besides
    met = experts_met(V3, 1)
    grouped = sum(w.nbytes * w.times for w in near.work if w.op == "npu_grouped_matmul")
    weights = weight_bytes(V3, plan, 32, "bfloat16")["experts"] * met / V3.n_routed_experts
    assert met == 8 and weights < grouped < 1.05 * weights


def test_even_routing():
    assert experts_met(V3, 10_000) == 256 and experts_met(V3, 2) in (15, 16)


def test_ranks_share_products_and_send_what_count_traffic_says():
    whole, part = (
        step_work(V3, PortPlan.full(), world_size=w, batch=2, tokens=1, context=64) for w in (1, 32)
    )
    assert (
        whole.flops / 32 < part.flops < whole.flops / 4
    )  # q_a, kv_a and the gate are on every rank
    calls = [call for call, times in part.collectives for _ in range(times)]
    want = count_traffic(V3, PortPlan.full(), 32, batch=2)
    assert sorted((c.kind, c.nbytes) for c in calls) == sorted((c.kind, c.nbytes) for c in want)
    assert not whole.collectives and whole.sent == 0 < part.sent


def test_upstream_waits_for_the_device_once_an_expert_layer():
    assert step_work(V3, PortPlan.upto("mla_low_rank"), world_size=32, context=64).syncs == 58
    assert step_work(V3, PortPlan.upto("gmm_routing"), world_size=32, context=64).syncs == 0


@pytest.mark.parametrize("dense", [0, 1, 2, 3])
def test_every_mixture_of_layers(dense):
    config = CONFIG.replace(first_k_dense_replace=dense)
    one = step_work(config.replace(num_hidden_layers=4), PortPlan.full(), context=9).launches
    two = step_work(config.replace(num_hidden_layers=5), PortPlan.full(), context=9).launches
    three = step_work(config.replace(num_hidden_layers=6), PortPlan.full(), context=9).launches
    assert three - two == two - one > 0


def test_refusals():
    with pytest.raises(PortError, match="do not fit a context of 4"):
        step_work(CONFIG, PortPlan.full(), tokens=5, context=4)
    with pytest.raises(PortError, match="48 ranks"):
        step_work(V3, PortPlan.full(), world_size=48)

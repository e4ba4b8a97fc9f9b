"""Counted operations and bytes are those of the formulas in notebook 02."""

from __future__ import annotations

import pytest
import torch

from dsv3_port.config import DeepseekV3Config
from dsv3_port.count.flops import FORMS, attention_cost, count_flops
from dsv3_port.errors import PortError
from dsv3_port.forecast.planner import kv_bytes_per_token
from dsv3_port.plan import PortPlan


def formula(c: DeepseekV3Config, form: str, queries: int, context: int) -> int:
    turn = c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)
    pair = c.qk_head_dim + c.v_head_dim
    sizes = {
        "expanded": queries * turn + queries * context * pair,
        "latent, absorbed": queries * turn
        + queries * context * (2 * c.kv_lora_rank + c.qk_rope_head_dim),
        "latent, expanded again": context * turn + queries * context * pair,
    }
    return 2 * c.num_attention_heads * sizes[form]


@pytest.mark.parametrize("preset", ["v3-671b", "tiny"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("queries", "context"), [(1, 131072), (1, 300), (64, 300), (256, 256)])
def test_operations(preset, form, queries, context):
    c = DeepseekV3Config.preset(preset)
    cost = attention_cost(c, form, queries, context)
    assert cost.flops == formula(c, form, queries, context)
    plan = PortPlan.upstream() if form == "expanded" else PortPlan.full()
    assert cost.cache_bytes * c.num_hidden_layers == context * kv_bytes_per_token(c, plan)
    assert cost.weight_bytes == 2 * c.num_attention_heads * c.kv_lora_rank * (
        c.qk_nope_head_dim + c.v_head_dim
    )


def test_crossover_of_the_exercise():
    from dsv3_port.course.exercises.mla_low_rank import CONTEXT, _crossover

    c, at = DeepseekV3Config.preset("v3-671b"), _crossover()

    def absorbing_costs_more(queries: int) -> bool:
        return (
            attention_cost(c, "latent, absorbed", queries, CONTEXT).flops
            > attention_cost(c, "latent, expanded again", queries, CONTEXT).flops
        )

    assert absorbing_costs_more(at) and not absorbing_costs_more(at - 1)


def test_count_flops():
    a, b = torch.rand(3, 4), torch.rand(4, 5)
    assert count_flops(lambda: a @ b) == {"mm": 2 * 3 * 4 * 5}


def test_the_fused_attention_of_a_cpu_is_counted():
    q, k = torch.rand(2, 3, 8, 16), torch.rand(2, 3, 8, 16)
    counted = count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k))
    assert list(counted.values()) == [2 * 2 * 3 * 8 * 8 * (16 + 16)]


def test_refusals():
    c = DeepseekV3Config.preset("tiny")
    with pytest.raises(PortError, match="unknown form"):
        attention_cost(c, "compressed")
    with pytest.raises(PortError, match="queries"):
        attention_cost(c, "expanded", 5, 4)

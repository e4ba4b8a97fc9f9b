"""Bytes and FLOPs of the bound, against sums made by hand; the fraction is theirs and not the
clock's."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3_port import PortPlan, load_model
from dsv3_port.bench.limit import decode_bytes, decode_limit, prefill_flops, prefill_limit
from dsv3_port.check.equivalence import random_ids
from dsv3_port.engine.loading import with_plan
from dsv3_port.errors import PortError
from dsv3_port.model.gate import Gate

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"


@pytest.fixture(scope="module")
def model():
    return load_model(TINY, PortPlan.full(), "cpu", "float32")


def test_one_token_reads_its_k_experts_and_every_other_weight_once(model):
    c = model.config
    found = decode_bytes(model, context=100)
    one_expert = 3 * c.hidden_size * c.moe_intermediate_size * 4
    moe_layers = sum(isinstance(m, Gate) for m in model.modules())
    assert found.experts == moe_layers * c.num_experts_per_tok * one_expert
    everything = sum(p.nbytes for p in model.parameters())
    routed = moe_layers * c.n_routed_experts * one_expert
    assert found.dense == everything - routed - c.vocab_size * c.hidden_size * 4
    assert found.cache == c.num_hidden_layers * 100 * (c.kv_lora_rank + c.qk_rope_head_dim) * 4


def test_a_batch_reads_each_chosen_expert_once(model):
    one, many = decode_bytes(model, 16), decode_bytes(model, 16, batch=32)
    c = model.config
    assert one.experts < many.experts <= one.experts * c.n_routed_experts / c.num_experts_per_tok
    assert many.dense == one.dense and many.cache == 32 * one.cache


def test_the_model_runs_as_before_after_counting(model):
    before = model.run_step
    decode_bytes(model, 16, steps=1)
    assert model.run_step == before and not any(
        g._forward_hooks for g in model.modules() if isinstance(g, Gate)
    )


def test_fraction_is_work_over_time_over_rate():
    limit = prefill_limit(TINY, tokens=32, rounds=3, compiled=False)
    step, bound = (limit.results.get(n, "prefill").samples for n in ("step", "gemm"))
    by_hand = sorted(limit.work / s / (2 * 2048**3 / b) for s, b in zip(step, bound, strict=True))
    assert limit.fraction.median == pytest.approx(by_hand[1])
    assert limit.unit == "FLOP" and limit.work > 32 * 2 * 256 * 96


def test_a_prompt_needs_half_of_its_pairs_whatever_computes_them(model):
    """The plain formula multiplies all pairs, the fused kernels those that causality leaves."""
    ids = random_ids(model, (2, 24), 0)
    plain = with_plan(model, model.plan.replace(prefill_attention="plain"))
    c = model.config
    pair = 2 * 2 * c.num_hidden_layers * c.num_attention_heads * (c.qk_head_dim + c.v_head_dim)
    masked = 24 * 24 - 24 * 25 // 2
    assert prefill_flops(plain, ids) - prefill_flops(model, ids) == masked * pair


def test_unknown_profile_is_a_sentence():
    with pytest.raises(PortError, match="neither a checkpoint folder"):
        decode_limit("w9")

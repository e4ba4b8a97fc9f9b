"""Every plan against the oracle: transformers' DeepseekV3ForCausalLM with the same weights."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsv3_port import STEPS, DeepseekV3Config, PortPlan, load_model
from dsv3_port.config import RopeScaling
from dsv3_port.engine.tokenizer import encode, load_tokenizer
from dsv3_port.weights.synthetic import synthetic_checkpoint
from tests.oracle import hf_model

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
MODEL_STEPS = [s.id for s in STEPS if s.field != "graph"]
LADDER = [PortPlan.upstream(), *(PortPlan.upto(i) for i in MODEL_STEPS)]
ALONE = [PortPlan.with_steps(i) for i in MODEL_STEPS[1:]]
OPTIONS = [
    PortPlan.full().replace(npu_routing_kernel=False),
    PortPlan.full().replace(prefill_attention="absorbed"),
    PortPlan.full().replace(prefill_attention="plain"),
    PortPlan.full().replace(decode_attention="split"),
    PortPlan.upto("mla_low_rank").replace(decode_attention="split"),
    PortPlan.full().minus("merged_mlp"),
    PortPlan.full().minus("merged_mlp").replace(npu_routing_kernel=False),
]


def plan_name(plan: PortPlan) -> str:
    return "+".join(plan.step_ids) or "upstream"


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def oracle_logits(hf, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return hf(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits.float()


def check_plan(
    path: Path,
    plan: PortPlan,
    hf,
    *,
    lengths=(13,),
    new: int = 4,
    dtype=torch.float32,
    bound: float = 1e-5,
) -> None:
    """Prefill of a left-padded batch, then `new` cached steps, every logit row against one uncached
    oracle pass."""
    model = load_model(path, plan, "cpu", dtype)
    generator = torch.Generator().manual_seed(sum(lengths))
    width = max(lengths)
    ids = torch.randint(
        3, model.config.vocab_size, (len(lengths), width + new), generator=generator
    )
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        mask[row, : width - length] = 0
    want = oracle_logits(hf, ids, mask)
    cache = model.new_cache(len(lengths), width + new)
    first = model(ids[:, :width], mask[:, :width], cache)
    rows = [first[:, -1:]] + [
        model(ids[:, width + i : width + i + 1], cache=cache) for i in range(new)
    ]
    assert relative(torch.cat(rows, 1), want[:, width - 1 :]) <= bound
    assert cache.length == width + new
    if plan.lm_head == "all":
        real = mask[:, :width].bool()
        assert relative(first[real], want[:, :width][real]) <= bound
        assert relative(model(ids, mask)[mask.bool()], want[mask.bool()]) <= bound


@pytest.fixture(scope="module")
def tiny_hf():
    return hf_model(TINY)


@pytest.mark.parametrize("plan", LADDER + ALONE + OPTIONS, ids=plan_name)
def test_tiny_model_equals_transformers(plan, tiny_hf):
    check_plan(TINY, plan, tiny_hf, lengths=(17, 5, 11))


@pytest.mark.parametrize("seed", range(12))
def test_any_combination_of_steps(seed, tiny_hf):
    rng = random.Random(seed)
    chosen = [s for s in MODEL_STEPS if rng.random() < 0.5]
    plan = PortPlan.with_steps(*chosen).replace(
        npu_routing_kernel=rng.random() < 0.5,
        prefill_attention=rng.choice(["expanded", "plain", "absorbed"]),
    )
    check_plan(TINY, plan, tiny_hf, lengths=(9, 3), new=2)


@st.composite
def configs(draw) -> DeepseekV3Config:
    """Small models of odd sizes; dims that are not multiples of 128, with and without groups,
    q_lora, yarn, shared."""
    groups = draw(st.sampled_from([1, 2, 4]))
    per_group = draw(st.integers(2, 4))
    topk_group = draw(st.integers(1, groups))
    yarn = draw(
        st.sampled_from(
            [
                None,
                RopeScaling(4, 64, mscale=1.0, mscale_all_dim=1.0),
                RopeScaling(8, 32, mscale=0.7, mscale_all_dim=1.3),
            ]
        )
    )
    return DeepseekV3Config(
        vocab_size=draw(st.sampled_from([67, 160])),
        hidden_size=draw(st.sampled_from([48, 130, 144])),
        intermediate_size=draw(st.sampled_from([40, 132])),
        moe_intermediate_size=draw(st.sampled_from([24, 136])),
        num_hidden_layers=2,
        num_attention_heads=draw(st.sampled_from([1, 3, 4])),
        kv_lora_rank=draw(st.sampled_from([20, 132])),
        q_lora_rank=draw(st.sampled_from([None, 28])),
        qk_nope_head_dim=draw(st.sampled_from([8, 20])),
        qk_rope_head_dim=draw(st.sampled_from([4, 6])),
        v_head_dim=draw(st.sampled_from([8, 18])),
        n_routed_experts=groups * per_group,
        num_experts_per_tok=draw(st.integers(1, per_group * topk_group)),
        n_group=groups,
        topk_group=topk_group,
        n_shared_experts=draw(st.integers(1, 2)),
        first_k_dense_replace=draw(st.integers(0, 1)),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5])),
        norm_topk_prob=draw(st.booleans()),
        rope_scaling=yarn,
        rope_interleave=draw(st.booleans()),
        max_position_embeddings=256,
        fp8=True,
    )


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(config=configs(), length=st.integers(1, 19), full=st.booleans())
def test_random_configs(config, length, full, tmp_path_factory):
    path = synthetic_checkpoint(config, seed=length, cache_dir=tmp_path_factory.mktemp("random"))
    plan = PortPlan.full() if full else PortPlan.upstream()
    check_plan(path, plan, hf_model(path), lengths=(length, max(1, length // 2)), new=2)


def test_no_shared_experts(tmp_path):
    """transformers always builds a shared MLP; with none the definition is the routed sum alone."""
    config = dataclasses.replace(
        DeepseekV3Config.preset("small"), num_hidden_layers=2, vocab_size=128, n_shared_experts=0
    )
    path = synthetic_checkpoint(config, cache_dir=tmp_path)
    ids = torch.arange(3, 20).unsqueeze(0)
    want = load_model(path, PortPlan.upstream(), "cpu", "float32")(ids)
    got = load_model(path, PortPlan.full(), "cpu", "float32")(ids)
    assert relative(got, want[:, -1:]) <= 1e-5


def test_bfloat16_stays_within_its_bound(tiny_hf):
    """bf16 against the float32 oracle, root mean square over the logits of all prompts.

    Rounding flips an expert's choice here and there, so single logits move far, transformers' own
    in bf16 just as far (its largest error is 2 to 8 % of the largest logit): ours may not be twice
    as wrong, nor beyond the registry.
    """
    tokenizer = load_tokenizer(TINY)
    prompts = json.loads((TINY.parent / "prompts.json").read_text(encoding="utf-8"))["completion"]
    texts = [torch.tensor([row]) for row in encode(tokenizer, prompts)]
    want = [oracle_logits(tiny_hf, ids) for ids in texts]

    def error(logits_of) -> float:
        errors = torch.cat(
            [(logits_of(ids).float() - w).flatten() for ids, w in zip(texts, want, strict=True)]
        )
        return (
            float(errors.square().mean() / torch.cat([w.flatten() for w in want]).square().mean())
            ** 0.5
        )

    peer = copy.deepcopy(tiny_hf).to(torch.bfloat16)
    allowed = min(STEPS[0].tolerance["bfloat16"], 2 * error(lambda ids: oracle_logits(peer, ids)))
    for plan in (PortPlan.upstream(), PortPlan.full().replace(lm_head="all")):
        model = load_model(TINY, plan, "cpu", torch.bfloat16)
        assert 0 < error(model) < allowed, plan_name(plan)


def expert_indices(model, ids) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hooks = [
        m.register_forward_hook(lambda _m, _i, out: seen.append(out[0].sort(-1)[0]))
        for name, m in model.named_modules()
        if name.endswith(".mlp.gate")
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


def test_expert_indices_are_identical(tiny_hf):
    ids = torch.randint(3, 900, (2, 40), generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    hooks = [
        m.register_forward_hook(lambda _m, _i, out: seen.append(out[2].sort(-1)[0]))
        for name, m in tiny_hf.named_modules()
        if name.endswith(".mlp.gate")
    ]
    oracle_logits(tiny_hf, ids)
    for hook in hooks:
        hook.remove()
    want = torch.stack(seen)
    for plan in LADDER:
        assert torch.equal(expert_indices(load_model(TINY, plan, "cpu", "float32"), ids), want), (
            plan_name(plan)
        )


def test_gate_with_negative_biases_follows_the_minus_infinity_rule(tmp_path):
    """Where biased scores are negative, a mask of 0.0 chooses from rejected groups; -inf
    (DeepSeek's) does not."""
    config = dataclasses.replace(
        DeepseekV3Config.preset("small"), num_hidden_layers=2, vocab_size=128
    )
    path = synthetic_checkpoint(config, cache_dir=tmp_path)
    hf = hf_model(path)
    models = {
        value: load_model(path, PortPlan.full().replace(group_mask_value=value), "cpu", "float32")
        for value in (-math.inf, 0.0)
    }
    for layer in [hf.model.layers[1], *(m.model.layers[1] for m in models.values())]:
        layer.mlp.gate.e_score_correction_bias.data.sub_(2.0)
    ids = torch.arange(3, 40).unsqueeze(0)
    want = oracle_logits(hf, ids)[:, -1:]
    assert relative(models[-math.inf](ids), want) <= 1e-5
    assert relative(models[0.0](ids), want) > 1e-3


def test_cache_forms_hold_what_they_should():
    config = DeepseekV3Config.from_pretrained(TINY)
    ids = torch.arange(3, 13).unsqueeze(0)
    sizes = {}
    for attention, cache in itertools.product(("expanded", "low_rank"), ("growing", "fixed")):
        model = load_model(
            TINY, PortPlan().replace(attention=attention, cache=cache), "cpu", "float32"
        )
        kept = model.new_cache(1, 10)
        model(ids, cache=kept)
        sizes[attention, cache] = kept.nbytes
    row = config.num_hidden_layers * 10 * 4
    assert (
        sizes["low_rank", "growing"]
        == sizes["low_rank", "fixed"]
        == row * (config.kv_lora_rank + config.qk_rope_head_dim)
    )
    assert (
        sizes["expanded", "growing"]
        == sizes["expanded", "fixed"]
        == row * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    )


def test_a_prompt_in_two_chunks_equals_one(tiny_hf):
    ids = torch.randint(3, 900, (1, 21), generator=torch.Generator().manual_seed(1))
    want = oracle_logits(tiny_hf, ids)[:, -1:]
    for plan in (
        PortPlan.upstream(),
        PortPlan.full(),
        PortPlan.full().replace(prefill_attention="absorbed"),
    ):
        model = load_model(TINY, plan, "cpu", "float32")
        cache = model.new_cache(1, 32)
        model(ids[:, :8], cache=cache)
        assert relative(model(ids[:, 8:], cache=cache)[:, -1:], want) <= 1e-5


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_latent_norms_keep_their_own_epsilon(eps, tmp_path):
    """transformers' q_a_layernorm and kv_a_layernorm take 1e-6 whatever config.json says."""
    config = DeepseekV3Config.preset("small").replace(rms_norm_eps=eps, num_hidden_layers=2)
    folder = synthetic_checkpoint(config, fp8=False, cache_dir=tmp_path)
    ids = torch.arange(3, 40).unsqueeze(0)
    want = oracle_logits(hf_model(folder), ids)[:, -1]
    for plan in (PortPlan.upstream(), PortPlan.full()):
        assert relative(load_model(folder, plan, "cpu")(ids)[:, -1], want) < 1e-5

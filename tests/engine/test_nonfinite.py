"""Logits that are not finite end the text and name the layer; odd temperatures and seeds."""

from __future__ import annotations

import pytest
import torch

from dsv3_port import PortError, PortPlan, load_model, load_tokenizer
from dsv3_port.engine.generate import generate
from dsv3_port.engine.launch import run_ranks
from dsv3_port.parallel import TensorParallel
from dsv3_port.paths import tiny

TEXT = ["Once upon a time", "The"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(tiny())


@pytest.mark.parametrize("plan", [PortPlan.full(), PortPlan.upstream()], ids=["full", "upstream"])
@pytest.mark.parametrize(
    "spoilt,named",
    [
        (
            "model.layers.2.post_attention_layernorm.weight",
            "layer.* is model.layers.2, in model.layers.2",
        ),
        (
            "model.layers.1.self_attn.o_proj.weight",
            "layer.* is model.layers.1, in model.layers.1.self_attn",
        ),
        ("model.embed_tokens.weight", "is model.embed_tokens"),
        ("lm_head.weight", "is lm_head"),
    ],
)
def test_the_layer_that_had_them_first_is_named(spoilt, named, plan, tokenizer):
    model = load_model(tiny(), plan, "cpu")
    with torch.no_grad():
        dict(model.named_parameters())[spoilt].mul_(3e38)
    with pytest.raises(PortError, match=f"logits after .* tokens are not finite.*{named}"):
        generate(model, tokenizer, TEXT, 4)


def test_it_is_seen_in_a_decode_step_too(tokenizer):
    model = load_model(tiny(), device="cpu")
    count = iter(range(10**6))
    real = model.run_step

    def step(*args):
        return real(*args) * (float("nan") if next(count) == 4 else 1)

    model.run_step = step
    with pytest.raises(PortError, match="those of an eager pass over the same tokens are"):
        generate(model, tokenizer, TEXT, 8)


def _spoilt_rank(parallel: TensorParallel) -> str:
    model = load_model(tiny(), device="cpu", parallel=parallel)
    with torch.no_grad():
        model.model.layers[2].post_attention_layernorm.weight.mul_(3e38)
    try:
        generate(model, load_tokenizer(tiny()), TEXT[:1], 2)
    except PortError as error:
        return str(error)
    return "spoke"


def test_every_rank_ends_with_the_same_sentence():
    said = run_ranks(_spoilt_rank, 2, device="cpu", timeout_seconds=60)
    assert said[0] == said[1] and "model.layers.2" in said[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, -float("inf")])
def test_a_temperature_that_is_none(value, tokenizer):
    with pytest.raises(PortError, match="temperature must be 0"):
        generate(load_model(tiny(), device="cpu"), tokenizer, TEXT, 2, temperature=value)


def test_a_temperature_close_to_0_is_greedy(tokenizer):
    model = load_model(tiny(), device="cpu")
    greedy = generate(model, tokenizer, TEXT, 6)
    cold = generate(model, tokenizer, TEXT, 6, temperature=1e-44)
    assert [g.token_ids for g in greedy] == [g.token_ids for g in cold]


def test_seeds_out_of_range(tokenizer):
    model = load_model(tiny(), device="cpu")
    for seed in (2**64, -(2**63) - 1, 2**64 - 1):  # the second prompt's seed is one higher
        with pytest.raises(PortError, match="seed must be within"):
            generate(model, tokenizer, TEXT, 2, temperature=1.0, seed=seed)
    assert generate(model, tokenizer, TEXT, 2, temperature=1.0, seed=2**63)

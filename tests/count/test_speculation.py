"""What drafts give and cost: counts alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsv3_port import PortPlan, generate, load_model, load_tokenizer
from dsv3_port.config import DeepseekV3Config
from dsv3_port.count.speculation import drafts_right, speculation, speculation_work
from dsv3_port.errors import PortError

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
PROMPTS = ["Once upon a time", "7 plus 5 is"]


@pytest.mark.parametrize("plan", [PortPlan.full().plus("mtp"), PortPlan.upto("10")])
def test_steps_and_tokens(plan) -> None:
    model, tokenizer = load_model(TINY, plan, "cpu", "float32"), load_tokenizer(TINY)
    found = speculation(model, [tokenizer.encode(p) for p in PROMPTS], 32)
    for one, want in zip(found, generate(model, tokenizer, PROMPTS, 32), strict=True):
        assert (one.tokens, one.accepted) == (want.token_ids, want.accepted)
        spare = 1 + one.steps + sum(one.accepted) - len(one.tokens)
        assert spare in (0, 1), "a second token behind the last one wanted is not emitted"
        assert 1 <= one.tokens_per_step <= 2 and one.steps < 31


def test_over_a_given_text_drafts_are_those_of_decoding() -> None:
    """Teacher-forced over its own greedy text, a draft is right where decoding accepted it."""
    model, tokenizer = load_model(TINY, PortPlan.full().plus("mtp"), "cpu"), load_tokenizer(TINY)
    prompt = tokenizer.encode(PROMPTS[0])
    (one,) = speculation(model, [prompt], 32)
    right = drafts_right(model, torch.tensor([prompt + one.tokens]))[0].tolist()
    at = len(prompt) + 1  # of the token that the first step's draft stands for
    for accepted in one.accepted[:-1]:
        assert right[at - 2] == bool(accepted)
        at += 1 + accepted


def test_the_work_of_a_step() -> None:
    """DeepSeek-V3 at batch 1: a pair reads the weights once, and up to twice the routed experts; the
    MTP layer is one layer of 61, with its projection and the head."""
    work = speculation_work(DeepseekV3Config.preset("v3-671b"), context=4096)
    plain, verify, draft = (work[n] for n in ("decode", "verify", "draft"))
    assert 1.0 < verify.nbytes / plain.nbytes < 2.0
    assert verify.flops / plain.flops == pytest.approx(2, rel=0.02)
    assert draft.nbytes < plain.nbytes / 10
    assert plain.launches <= verify.launches < 1.1 * plain.launches
    assert {w.part for w in draft.work} >= {"attention", "experts", "head", "embedding"}


def test_bad_input() -> None:
    model = load_model(TINY, PortPlan.full(), "cpu")
    with pytest.raises(PortError, match="step 'mtp'"):
        speculation(model, [[1, 2]])

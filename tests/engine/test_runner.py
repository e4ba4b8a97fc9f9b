"""Loading, generating and graph modes on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dsv3_port import PortError, PortPlan, generate, load_model, load_tokenizer
from dsv3_port.count.captured import first_layers
from dsv3_port.engine.device import pick_device, pick_dtype
from dsv3_port.engine.graph import compile_steps, graph_blockers
from dsv3_port.engine.tokenizer import encode, pad_left
from tests.oracle import hf_model

DATA = Path(__file__).parents[2] / "data"
TINY = DATA / "tiny-dsv3"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY)


@pytest.fixture(scope="module")
def prompts():
    return json.loads((DATA / "prompts.json").read_text())["completion"][:4]


def hf_greedy(hf, ids: list[int], count: int, stop: set[int]) -> list[int]:
    out: list[int] = []
    with torch.no_grad():
        while len(out) < count and not (out and out[-1] in stop):
            out.append(int(hf(torch.tensor([ids + out]), use_cache=False).logits[0, -1].argmax()))
    return out


def test_greedy_text_equals_transformers_over_64_tokens(tokenizer, prompts):
    """A batch of ragged prompts through every rung of interest against the oracle one prompt at a
    time."""
    hf = hf_model(TINY)
    stop = set(load_model(TINY, device="cpu").config.eos_token_ids)
    rows = encode(tokenizer, prompts[:2])
    want = [hf_greedy(hf, r, 64, stop) for r in rows]
    assert max(len(w) for w in want) == 64
    for plan in (PortPlan.upstream(), PortPlan.upto("merged_mlp"), PortPlan.full()):
        model = load_model(TINY, plan, "cpu", "float32")
        got = generate(model, tokenizer, prompts[:2], 64)
        assert [g.token_ids for g in got] == want
        assert [g.prompt_tokens for g in got] == [len(r) for r in rows]


def test_compiled_steps_give_the_same_tokens_without_recompiling(tokenizer, prompts):
    model = first_layers(load_model(TINY, PortPlan.full(), "cpu", "float32"), 2)
    want = [g.token_ids for g in generate(model, tokenizer, prompts[:2], 24, pad_to=48)]
    compile_steps(model, "ge")
    torch._dynamo.utils.counters.clear()
    got = [g.token_ids for g in generate(model, tokenizer, prompts[:2], 24, pad_to=48)]
    assert got == want
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2  # prefill and decode


def test_plans_that_cannot_be_one_graph_say_why():
    assert graph_blockers(PortPlan.full()) == []
    model = load_model(TINY, PortPlan.upstream(), "cpu", "float32")
    with pytest.raises(PortError, match="expert loop reads counts on the host.*growing cache"):
        compile_steps(model, "ge")


def test_sampling_is_seeded_and_streams_the_same_text(tokenizer, prompts):
    model = load_model(TINY, device="cpu", dtype="float32")
    pieces = ["", ""]

    def hear(row: int, text: str) -> None:
        pieces[row] += text

    first = generate(model, tokenizer, prompts[:2], 20, temperature=0.9, seed=3, on_token=hear)
    again = generate(model, tokenizer, prompts[:2], 20, temperature=0.9, seed=3)
    other = generate(model, tokenizer, prompts[:2], 20, temperature=0.9, seed=4)
    assert (
        [g.token_ids for g in first] == [g.token_ids for g in again] != [g.token_ids for g in other]
    )
    assert pieces == [g.text for g in first]


def test_a_batch_gives_each_prompt_what_it_gets_alone(tokenizer, prompts):
    model = load_model(TINY, device="cpu", dtype="float32")
    together = generate(model, tokenizer, prompts, 16)
    assert [g.token_ids for g in together] == [
        generate(model, tokenizer, [p], 16)[0].token_ids for p in prompts
    ]


def test_chat_mode_uses_the_template(tokenizer):
    plain, chat = encode(tokenizer, ["hello"]), encode(tokenizer, ["hello"], chat=True)
    assert len(chat[0]) > len(plain[0])
    assert encode(tokenizer, [[{"role": "user", "content": "hello"}]]) == chat


def test_bad_input_is_a_sentence(tokenizer, tmp_path):
    model = load_model(TINY, device="cpu", dtype="float32")
    with pytest.raises(PortError, match="no such file"):
        load_model(tmp_path, device="cpu")
    with pytest.raises(PortError, match="unknown device"):
        pick_device("gpu9")
    with pytest.raises(PortError, match="dtype 'int4'"):
        pick_dtype("int4")
    with pytest.raises(PortError, match="max_new_tokens"):
        generate(model, tokenizer, ["a"], 0)
    with pytest.raises(PortError, match="INPUT_MAX_LEN = 2"):
        pad_left([[1, 2, 3]], 0, 2)
    with pytest.raises(PortError, match="left of the tokens"):
        model(torch.ones(1, 3, dtype=torch.int64), torch.tensor([[1, 1, 0]]))
    with pytest.raises(PortError, match="left of the tokens"):
        model(torch.ones(1, 2, dtype=torch.int64), torch.tensor([[0, 0]]))
    cache = model.new_cache(1, 3)
    model(torch.ones(1, 3, dtype=torch.int64), cache=cache)
    with pytest.raises(
        PortError, match="the cache holds 3 positions; 3 are used and 1 more do not fit"
    ):
        model(torch.ones(1, 1, dtype=torch.int64), cache=cache)
    with pytest.raises(PortError, match="batch size 1, input_ids has 2"):
        model(torch.ones(2, 1, dtype=torch.int64), cache=cache)

"""Multi-token prediction on device npu: a token and its draft through the fused attention (sparse_mode
3) over the paged cache, eager, captured and as GE graphs."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import PortPlan, generate, load_tokenizer
from dsv3_port.engine.graph import compile_steps, converted_graphs
from dsv3_port.errors import PortError
from dsv3_port.hostnpu import tape
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.model.paged_cache import Paging
from tests.hostnpu.inside import short
from tests.hostnpu.inside.short import TINY

MTP = PortPlan.upto("10")
PROMPT, PAIRS = 13, 5  # row 1 crosses into its second block in the second pair


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def load(mode: str = "eager", dtype: str = "float32", plan: PortPlan = MTP) -> DeepseekV3:
    model = short.load(plan, dtype=dtype)
    model.paging = Paging(16, poison=math.nan)
    return compile_steps(model, mode)


def run(model: DeepseekV3) -> list[Tensor]:
    """Logits of the model and of its MTP layer, over a prompt and pairs of which row 0 gives its
    second position back every time, row 1 every other time."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 900, (2, PROMPT + 2 * PAIRS + 1), generator=generator).npu()
    cache = model.new_cache(2, PROMPT + 2 * PAIRS)
    cache.pad.copy_(torch.tensor([9, 0]))
    found, start = [], 0
    with torch.no_grad():
        for number in range(1 + PAIRS):
            new = 2 if number else PROMPT
            cache.require_capacity(new)
            cache.expect(new)  # type: ignore[attr-defined]
            given: Any = cache.pad, cache, number == 0
            now, after = (ids[:, at : at + new].contiguous() for at in (start, start + 1))
            logits, hidden = model.run_verify(now, *given)
            found += [logits.cpu(), model.run_draft(after, *given, hidden).cpu()]
            cache.advance(new)
            start += new
            if number:
                cache.retract([1, number % 2])
    return found


@functools.cache
def ran(mode: str, dtype: str) -> tuple[list[Tensor], list[Any]]:
    """What `run` gives, and the GE graphs that were converted: compiling is what takes time here, so a
    mode runs once."""
    model = load(mode, dtype)
    with converted_graphs() as graphs:
        return run(model), graphs


def captures() -> int:
    assert tape.tapes is not None
    return tape.tapes.captured


@pytest.mark.parametrize(
    ("mode", "dtype"), [("captured", "float32"), ("captured", "bfloat16"), ("ge", "float32")]
)
def test_graphs_are_the_eager_model_bit_for_bit(mode: str, dtype: str) -> None:
    """Rows whose lengths part: catches lengths of the capture, a slot that is not rewound in place, a
    table that is another one after a block went back. GE in bfloat16: with drafts in check_prolog.py."""
    for n, (a, b) in enumerate(zip(ran("eager", dtype)[0], ran(mode, dtype)[0], strict=True)):
        assert torch.equal(a, b), n


@pytest.mark.parametrize("mode", ["npugraph_ex", "reduce-overhead"])
def test_aclgraph_by_torchair_is_refused_by_name(mode: str) -> None:
    with pytest.raises(PortError, match=f"'{mode}' does not take the steps of the MTP layer"):
        load(mode)


def test_a_pair_is_one_capture_more() -> None:
    model, before = load("captured"), captures()
    run(model)
    assert captures() == before + 4, "prompt and pair, each for the model and for its MTP layer"


def test_the_ge_graph_of_a_pair_holds_the_fused_attention() -> None:
    graphs, layers = ran("ge", "float32")[1], load().config.num_hidden_layers
    counts = [[op.type for op in graph.op].count("FusedInferAttentionScore") for graph in graphs]
    assert sorted(counts) == [0, 0, 1, layers]


@pytest.mark.parametrize("mode", ["eager", "captured", "ge"])
def test_text(mode: str) -> None:
    tokenizer, prompts = load_tokenizer(TINY), ["Once upon a time", "7 plus 5 is"]
    plain = short.load(PortPlan.full(), "cpu")
    want = [g.token_ids for g in generate(plain, tokenizer, prompts, 24, pad_to=16)]
    found = generate(load(mode), tokenizer, prompts, 24, pad_to=16)
    assert [g.token_ids for g in found] == want
    assert all(g.accepted for g in found)


def test_text_over_the_fixed_cache() -> None:
    tokenizer, prompts = load_tokenizer(TINY), ["Once upon a time"]
    plan = PortPlan.full().plus("mtp")
    want = generate(short.load(PortPlan.full(), "cpu"), tokenizer, prompts, 16)[0].token_ids
    assert generate(load("captured", plan=plan), tokenizer, prompts, 16)[0].token_ids == want

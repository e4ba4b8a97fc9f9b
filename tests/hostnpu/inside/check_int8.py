"""W8A8 on device npu: eager, in one NPUGraph, as a GE graph and by both aclgraph backends; torch_npu's
own operators, schemas, shape functions and converters."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
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
from tests.model.int8_calls import held_to_the_definition

FULL = PortPlan.full().replace(quant="w8a8")
MODES = ("captured", "ge", "npugraph_ex", "reduce-overhead")
PROMPT, STEPS_MADE = 9, 4
NEW, WIDTH = 12, 16  # of the texts
PROMPTS = ["Once upon a time", "7 plus 5 is"]
TEXTS = ("eager", "captured", "ge")
ROOM = WIDTH + NEW  # of the cache that texts are decoded in: its decode graph is that of `run`


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def load(mode: str = "eager", plan: PortPlan = FULL, dtype: str = "bfloat16") -> DeepseekV3:
    model = short.load(plan, dtype=dtype)
    model.paging = Paging(16)
    return compile_steps(model, mode)


def run(model: DeepseekV3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 900, (2, PROMPT + STEPS_MADE), generator=generator).npu()
    mask = torch.ones(2, PROMPT, dtype=torch.int64)
    mask[0, :5] = 0
    cache = model.new_cache(2, ROOM)
    logits = [model(ids[:, :PROMPT].contiguous(), mask.npu(), cache)]
    for at in range(PROMPT, PROMPT + STEPS_MADE):
        logits.append(model(ids[:, at : at + 1].contiguous(), cache=cache))
    return [x.cpu() for x in logits]


def texts(model: DeepseekV3) -> list[list[int]]:
    found = generate(model, load_tokenizer(TINY), PROMPTS, NEW, pad_to=WIDTH)
    return [g.token_ids for g in found]


@dataclass
class Ran:
    logits: list[Tensor]
    captured: int  # captures that `run` made
    graphs: list[Any]  # of GE, as converted
    texts: list[list[int]]  # of bfloat16 and the fixed cache; else none


def ran(mode: str, dtype: str = "bfloat16", plan: PortPlan = FULL) -> Ran:
    """Compiling is what takes time here: a mode runs once, and tests look at what it gave."""
    return _ran(mode, dtype, plan)


@functools.cache
def _ran(mode: str, dtype: str, plan: PortPlan) -> Ran:
    assert tape.tapes is not None
    model, before = load(mode, plan, dtype), tape.tapes.captured
    with converted_graphs() as graphs:
        logits = run(model)
    captured = tape.tapes.captured - before
    written = (dtype, plan) == ("bfloat16", FULL) and mode in TEXTS
    return Ran(logits, captured, graphs, texts(model) if written else [])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_layer_is_its_definition(dtype: str) -> None:
    model = load(dtype=dtype)
    with held_to_the_definition() as seen:
        run(model)
    assert seen["Linear"] and seen["MLP"] and seen["experts"]


def assert_equal(got: Ran, want: Ran) -> None:
    for n, (a, b) in enumerate(zip(want.logits, got.logits, strict=True)):
        assert torch.equal(a, b), n


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [*((m, "bfloat16") for m in MODES), ("captured", "float16"), ("ge", "float16")],
)
def test_graphs_are_the_eager_model_bit_for_bit(mode: str, dtype: str) -> None:
    """float16 by hand and through GE's converters, which write the dtype down; by npugraph_ex in
    check_nz.py. reduce-overhead has it in check_graphs.py."""
    assert_equal(ran(mode, dtype), ran("eager", dtype))


@pytest.mark.parametrize("mode", MODES)
def test_over_the_paged_cache(mode: str) -> None:
    plan = FULL.plus("paged_cache")
    assert_equal(ran(mode, plan=plan), ran("eager", plan=plan))


@pytest.mark.parametrize("plan", [FULL.minus("merged_mlp"), FULL.replace(npu_routing_kernel=False)])
@pytest.mark.parametrize("mode", ["captured", "ge"])
def test_other_forms(mode: str, plan: PortPlan) -> None:
    assert_equal(ran(mode, plan=plan), ran("eager", plan=plan))


def test_what_the_ge_graph_of_a_decode_step_holds() -> None:
    """Of two layers, one dense and one of experts: the products of attention, MLP and shared expert; two
    grouped ones; SwiGLU for dense, shared and routed."""
    counts = [Counter(op.type for op in graph.op) for graph in ran("ge").graphs]
    assert len(counts) == 2
    for count in counts:
        assert count["QuantBatchMatmulV3"] == 2 * 4 + 2 * 2
        assert count["GroupedMatmul"] == 2 and count["DequantSwigluQuant"] == 3
        # a token's scale for each product's input: attention 4 a layer, one for each of three MLPs
        assert count["DynamicQuant"] == 2 * 4 + 3
        assert not count["SwiGlu"]


def test_one_capture_for_decode() -> None:
    assert ran("captured").captured == 2


@pytest.mark.parametrize("mode", TEXTS)
def test_text(mode: str) -> None:
    assert ran(mode).texts == texts(load())


def test_with_drafts() -> None:
    """As GE graphs, over an int8 cache at that: check_prolog.py."""
    tokenizer, plan = load_tokenizer(TINY), PortPlan.production().replace(quant="w8a8")
    want = generate(load(plan=plan), tokenizer, ["Once upon a time"], 12, pad_to=16)[0]
    found = generate(load("captured", plan), tokenizer, ["Once upon a time"], 12, pad_to=16)[0]
    assert found.token_ids == want.token_ids and found.accepted == want.accepted


def test_float32_is_refused_by_name() -> None:
    with pytest.raises(PortError, match="w8a8 on an NPU has bfloat16 or float16"):
        load(dtype="float32")

"""The paged cache on device npu: eager, in one NPUGraph, as a GE graph and by both aclgraph backends,
against the fixed cache on device cpu and against one another.

The operators are torch_npu's own, with their schemas, shape functions and converters; their meanings
are those of ops/, so eager and graphs must agree to the last bit.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import PortPlan, generate, load_tokenizer, ops
from dsv3_port.check.gate import strict_gate
from dsv3_port.engine.capture import CapturedStep
from dsv3_port.engine.graph import compile_steps, converted_graphs
from dsv3_port.errors import PortError
from dsv3_port.hostnpu import tape
from dsv3_port.model import paged_attention
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.model.paged_cache import PagedCache, Paging
from tests.hostnpu.inside import short
from tests.hostnpu.inside.short import TINY

PAGED = PortPlan.upto("9")
MODES = ("captured", "ge", "npugraph_ex", "reduce-overhead")
PROMPT, STEPS_MADE = 13, 8  # row 1 crosses into its second block at step 3, row 0 never does


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def load(mode: str = "eager", dtype: str = "float32", **options: Any) -> DeepseekV3:
    model = short.load(PAGED.replace(**options), dtype=dtype)
    model.paging = Paging(16, poison=math.nan)
    return compile_steps(model, mode)


def text() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 900, (2, PROMPT + STEPS_MADE), generator=generator)
    mask = torch.ones(2, PROMPT, dtype=torch.int64)
    mask[0, :9] = 0
    return ids, mask


def run(
    model: DeepseekV3, cache: Any = None, captures: list[int] | None = None
) -> tuple[list[Tensor], Any]:
    """Logits of the prompt and of each step, and the cache; `captures` gets the count after each call."""
    ids, mask = (x.to(model.device) for x in text())
    cache, logits = cache or model.new_cache(2, PROMPT + STEPS_MADE), []
    for n, part in enumerate(ids.split([PROMPT, *[1] * STEPS_MADE], 1)):
        logits.append(model(part.contiguous(), None if n else mask, cache))
        if captures is not None:
            captures.append(counts()[0])
    return [x.cpu() for x in logits], cache


def counts() -> tuple[int, int]:
    assert tape.tapes is not None
    return tape.tapes.captured, tape.tapes.replayed


@dataclass
class Ran:
    logits: list[Tensor] = field(default_factory=list)
    cache: Any = None
    captures: list[int] = field(default_factory=list)  # after each call
    graphs: list[Any] = field(default_factory=list)  # of GE, as converted


@functools.cache
def ran(mode: str, dtype: str) -> Ran:
    """Compiling is what takes time here: a mode runs once, and tests look at what it gave."""
    found, model = Ran(), load(mode, dtype)
    with converted_graphs() as found.graphs:
        found.logits, found.cache = run(model, captures=found.captures)
    return found


def test_eager_is_the_fixed_cache_on_the_cpu() -> None:
    """With float64's bound out of reach on a device: float32, every stage."""
    assert strict_gate(short.load(PortPlan.full(), "cpu"), load())


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [*((m, "float32") for m in MODES), ("captured", "bfloat16"), ("ge", "bfloat16")],
)
def test_graphs_are_the_eager_model_bit_for_bit(mode: str, dtype: str) -> None:
    """Over a block's boundary: catches lengths, slots or a table that were frozen in the graph. bfloat16
    over this cache has every mode in check_int8.py and check_prolog.py."""
    want, got = ran("eager", dtype), ran(mode, dtype)
    for n, (a, b) in enumerate(zip(want.logits, got.logits, strict=True)):
        assert torch.equal(a, b), n
    eager, cache = want.cache, got.cache
    for one, other in zip(eager.buffers, cache.buffers, strict=True):
        for x, y in zip(one, other, strict=True):
            for row in range(2):
                end = PROMPT + STEPS_MADE - (9 if row == 0 else 0)
                rows = (
                    t[c.owned[row]].flatten(0, 1)[:end].cpu() for t, c in ((x, eager), (y, cache))
                )
                assert torch.equal(*rows)
    assert [len(row) for row in cache.owned] == [1, 2]


def test_one_capture_for_decode_whatever_the_lengths_and_the_blocks() -> None:
    model = load("captured")
    before = counts()
    _, cache = run(model)
    assert isinstance(model.run_step, CapturedStep)
    assert counts() == (before[0] + 2, before[1] + 1 + STEPS_MADE)
    cache.reset()
    first, _ = run(model, cache)
    assert counts()[0] == before[0] + 2, "another text through the same cache captures nothing"
    for a, b in zip(first, ran("eager", "float32").logits, strict=True):
        assert torch.equal(a, b)


def test_a_replay_without_the_update_keeps_the_old_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that the update of host numbers prevents: lengths of the capture for ever."""
    model = load("captured")
    assert isinstance(model.run_step, CapturedStep)
    right, _ = run(model)
    model = load("captured")
    assert isinstance(model.run_step, CapturedStep)
    expect = PagedCache.expect

    def frozen(self: PagedCache, new: int) -> None:
        if new > 1 or not any(self.kv_lengths) or self.length == PROMPT:
            expect(self, new)

    monkeypatch.setattr(PagedCache, "expect", frozen)
    wrong, _ = run(model)
    assert torch.equal(right[1], wrong[1]) and not torch.equal(right[2], wrong[2])


def test_a_captured_table_at_another_address_is_named() -> None:
    model = load("captured")
    _, cache = run(model)
    cache.rewind(PROMPT)
    cache.table = cache.table.clone()
    with pytest.raises(PortError, match="cache's block table lies at another address"):
        model(text()[0][:, :1].npu(), cache=cache)


def test_the_first_form_of_the_cache_update_is_lost_in_a_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Why the model takes npu_kv_rmsnorm_rope_cache_v2: the schema of the first form declares neither
    cache as written, and what a compiled prompt writes is not there in the next step."""

    def first_form(*tensors: Tensor, **given: Any) -> Any:
        return ops.npu_kv_rmsnorm_rope_cache(*tensors, **given)[2:]

    want = ran("eager", "float32").logits
    monkeypatch.setattr(paged_attention.ops, "npu_kv_rmsnorm_rope_cache_v2", first_form)
    assert torch.equal(run(load())[0][1], want[1]), "run one by one it writes"
    got, _ = run(load("npugraph_ex"))
    assert torch.equal(got[0], want[0]) and not torch.equal(got[1], want[1])


def test_the_ge_graph_holds_the_operators() -> None:
    kinds = [[op.type for op in graph.op] for graph in ran("ge", "float32").graphs]
    layers = len(ran("ge", "float32").cache.buffers)
    assert len(kinds) == 2, "a graph for the prompt, one for all cached steps"
    assert [k.count("FusedInferAttentionScore") for k in kinds] == [0, layers]
    assert [k.count("KvRmsNormRopeCache") for k in kinds] == [layers] * 2
    assert [k.count("TransposeBatchMatMul") for k in kinds] == [0, 2 * layers]


@pytest.mark.parametrize("mode", ["eager", "ge"])
def test_chunks_of_a_prompt_absorbed(mode: str) -> None:
    """Several queries through the fused operator, with padding before them: sparse_mode 3."""
    ids, mask = text()
    want = ran("eager", "float32").logits[0]
    model = load(mode, prefill_attention="absorbed")
    cache = model.new_cache(2, PROMPT)
    got = model.prefill(ids[:, :PROMPT].npu(), mask.npu(), cache, 5).cpu()
    assert float((got - want).abs().max() / want.abs().max()) <= 1e-5


@pytest.mark.parametrize("mode", ["captured", "npugraph_ex"])
def test_chunks_of_a_prompt_expanded(mode: str) -> None:
    """Chunks gather the blocks with lengths of the device: catches host numbers frozen in the graph of
    a chunk, which the second and third one share."""
    ids, mask = (x.npu() for x in text())
    plain, model = load(), load(mode)
    caches = [m.new_cache(2, PROMPT) for m in (plain, model)]
    want = plain(ids[:, :PROMPT].contiguous(), mask, caches[0]).cpu()
    got = model.prefill(ids[:, :PROMPT], mask, caches[1], 4).cpu()
    assert float((got - want).abs().max() / want.abs().max()) <= 1e-5


def test_npugraph_ex_captures_no_more_once_lengths_are_symbols() -> None:
    captured = ran("npugraph_ex", "float32").captures
    assert len(captured) == 1 + STEPS_MADE and captured[3] == captured[-1], captured


@pytest.mark.parametrize("mode", ["eager", "captured", "npugraph_ex"])
def test_text(mode: str) -> None:
    tokenizer, prompts = load_tokenizer(TINY), ["Once upon a time", "7 plus 5 is"]
    fixed = short.load(PortPlan.full(), "cpu")
    want, got = (
        [g.token_ids for g in generate(m, tokenizer, prompts, 24, pad_to=16)]
        for m in (fixed, load(mode))
    )
    assert got == want

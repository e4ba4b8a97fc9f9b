"""Cached steps that begin with npu_mla_prolog_v3, on device npu: eager, in one NPUGraph, as a GE graph
and by both aclgraph backends. The operator is torch_npu's own, with its schema, shape function and
converter; it takes bfloat16 only."""

from __future__ import annotations

import functools
import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch_npu
from torch import Tensor

from dsv3_port import PortPlan, generate, load_tokenizer, ops
from dsv3_port.engine.calibrate import calibrate
from dsv3_port.engine.continuous import ContinuousBatch, Request, run_requests
from dsv3_port.engine.graph import compile_steps, converted_graphs
from dsv3_port.engine.loading import with_plan
from dsv3_port.errors import PortError
from dsv3_port.hostnpu import kernels, tape
from dsv3_port.hostnpu.operators import CANN
from dsv3_port.model.c8 import set_kv_scales
from dsv3_port.model.decoder import DeepseekV3, build
from dsv3_port.model.mla_prolog import PrologAttention
from dsv3_port.model.paged_cache import Paging
from dsv3_port.ops.checks import CardLimit
from dsv3_port.steps import TOLERANCE
from tests.hostnpu.inside import short
from tests.hostnpu.inside.short import TINY
from tests.model.test_paged import V3_ATTENTION
from tests.random_models import SHORT, fill, random_sources

PAGED = PortPlan.upto("9")
PLAN = PAGED.replace(mla_prolog=True)
INT8 = PLAN.replace(quant="w8a8")
PLANS = {"none": PLAN, "w8a8": INT8, "c8": INT8.replace(kv_cache_dtype="int8")}
MODES = ("captured", "ge", "npugraph_ex", "reduce-overhead")
PROMPT, STEPS_MADE = 13, 8  # row 1 crosses into its second block at step 3, row 0 never does
pytestmark = pytest.mark.filterwarnings("ignore::dsv3_port.ops.checks.CardLimit")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def load(mode: str = "eager", plan: PortPlan = PLAN, device: str = "npu") -> DeepseekV3:
    model = short.load(plan.replace(kv_cache_dtype="model"), device, "bfloat16")
    if plan.kv_cache_dtype == "int8":
        model = with_plan(model, plan)
        set_kv_scales(model, kv_scales())
    model.paging = Paging(16, poison=math.nan)
    return compile_steps(model, mode)


@functools.cache
def kv_scales() -> dict[str, float]:
    """Of both layers, and of the MTP layer behind them."""
    plan = PortPlan.production().replace(quant="w8a8")
    return calibrate(short.load(plan, "cpu"), [list(range(3, 60))])


def run(model: DeepseekV3) -> tuple[list[Tensor], Any]:
    """Logits of the prompt and of each step, and the cache."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 900, (2, PROMPT + STEPS_MADE), generator=generator).to(model.device)
    mask = torch.ones(2, PROMPT, dtype=torch.int64)
    mask[0, :9] = 0
    cache, logits = model.new_cache(2, PROMPT + STEPS_MADE), []
    for n, part in enumerate(ids.split([PROMPT, *[1] * STEPS_MADE], 1)):
        logits.append(model(part.contiguous(), None if n else mask.to(model.device), cache))
    return [x.cpu() for x in logits], cache


@functools.cache
def ran(mode: str, quant: str) -> tuple[list[Tensor], Any, list[Any]]:
    """Logits, the cache, and the GE graphs: of the prompt, and of a cached step."""
    with converted_graphs() as graphs:
        logits, cache = run(load(mode, PLANS[quant]))
    return logits, cache, list(graphs)


def test_eager_is_the_single_operators_bit_for_bit() -> None:
    """Each product, norm and rotation rounds where its own operator does. A cpu multiplies in other
    forms: within bfloat16's tolerance."""
    got, want, cpu = (run(m)[0] for m in (load(), load(plan=PAGED), load(device="cpu")))
    for a, b, c in zip(got, want, cpu, strict=True):
        assert torch.equal(a, b)
        assert float((a - c).abs().max() / c.abs().max()) <= TOLERANCE["bfloat16"]


# (2, 0, 0) and (2, 1, 1) go through npugraph_ex and reduce-overhead alike: the latter stands for both
@pytest.mark.parametrize(
    ("mode", "quant"),
    [(m, q) for m in MODES for q in PLANS if q != "w8a8" or m in ("captured", "ge")],
)
def test_graphs_are_the_eager_model_bit_for_bit(mode: str, quant: str) -> None:
    """Over a block's boundary: catches writes that a graph loses, slots that were frozen in it."""
    want, got = ran("eager", quant), ran(mode, quant)
    for n, (a, b) in enumerate(zip(want[0], got[0], strict=True)):
        assert torch.equal(a, b), n
    eager, cache = want[1], got[1]
    for one, other in zip(eager.buffers, cache.buffers, strict=True):
        for x, y in zip(one, other, strict=True):
            for row in range(2):
                end = PROMPT + STEPS_MADE - (9 if row == 0 else 0)
                rows = (
                    t[c.owned[row]].flatten(0, 1)[:end].cpu() for t, c in ((x, eager), (y, cache))
                )
                assert torch.equal(*rows)


@pytest.mark.parametrize("quant", PLANS)
def test_the_ge_graph_of_a_cached_step(quant: str) -> None:
    """One MlaPrologV3 a layer, and none of what it stands for."""
    _, cache, graphs = ran("ge", quant)
    prompt, step = (Counter(op.type for op in graph.op) for graph in graphs)
    layers = len(cache.buffers)
    assert step["MlaPrologV3"] == layers and not prompt["MlaPrologV3"]
    assert prompt["KvRmsNormRopeCache"] == layers and not step["KvRmsNormRopeCache"]
    assert step["TransposeBatchMatMul"] == layers and not step["InterleaveRope"]
    assert step["FusedInferAttentionScore"] == layers


def test_the_modes_that_a_ge_graph_of_an_int8_cache_has() -> None:
    """The converters' own: PyTorch's scales of key and value are GE's antiquant ones."""
    graphs = ran("ge", "c8")[2]
    step = {op.type: op for op in graphs[1].op}

    def mode(kind: str, name: str) -> int:
        return int(step[kind].attr[name].i)

    names = "weight_quant_mode", "kv_cache_quant_mode", "query_quant_mode"
    assert [mode("MlaPrologV3", n) for n in names] == [2, 1, 1]
    names = "query_quant_mode", "key_antiquant_mode", "value_antiquant_mode"
    assert [mode("FusedInferAttentionScore", n) for n in names] == [3, 0, 0]

    def fed(op: Any) -> set[str]:
        return {d.name for d, edge in zip(op.input_desc, op.input, strict=True) if edge}

    scales = {"dequant_scale_query", "key_antiquant_scale", "value_antiquant_scale"}
    assert scales <= fed(step["FusedInferAttentionScore"])
    prompt = next(op for op in graphs[0].op if op.type == "KvRmsNormRopeCache")
    assert "c_kv_scale" in fed(prompt) and "k_rope_scale" not in fed(prompt)


def test_an_int8_cache_on_a_cpu_and_here() -> None:
    """Integers of both, within what bfloat16's order of additions moves."""
    here, cpu = (run(load(plan=PLANS["c8"], device=d)) for d in ("npu", "cpu"))
    for a, b in zip(here[0], cpu[0], strict=True):
        assert float((a - b).abs().max() / b.abs().max()) <= TOLERANCE["bfloat16"]
    assert {b.dtype for layer in here[1].buffers for b in layer} == {torch.bfloat16, torch.int8}


def test_one_capture_for_all_cached_steps() -> None:
    assert tape.tapes is not None
    model, before = load("captured"), tape.tapes.captured
    run(model)
    assert tape.tapes.captured == before + 2


def test_launches_of_a_cached_step() -> None:
    """What the eager step launches, by the host NPU's own count."""
    counts = []
    for plan in (PAGED, PLAN):
        model = load(plan=plan)
        cache = model.new_cache(2, 20)
        model(torch.full((2, 9), 3, device="npu"), cache=cache)
        before = kernels.calls["kernel"]
        model(torch.full((2, 1), 3, device="npu"), cache=cache)
        counts.append(kernels.calls["kernel"] - before)
    assert counts[1] == counts[0] - 2 * 12, counts


def test_its_three_matrices_are_in_fractal_nz() -> None:
    model = load()
    model.new_cache(1, 20)
    for layer in model.modules():
        if isinstance(layer, PrologAttention):
            formats = [torch_npu.get_npu_format(x) for x in (layer.dq, layer.uq_qr, layer.dkv_kr)]
            assert formats == [29] * 3 and torch_npu.get_npu_format(layer.uk) != 29


def test_a_size_that_a_card_refuses_is_warned_of() -> None:
    model = load()
    cache = model.new_cache(1, 20)
    with pytest.warns(CardLimit, match="token_x is 256 wide; it must be one of .* on a card"):
        model(torch.full((1, 1), 3, device="npu"), cache=cache)


def test_the_third_result_is_torch_npus() -> None:
    """No cache, and as empty as torch_npu's shape function says."""
    f = functools.partial(torch.ones, dtype=torch.bfloat16)
    shapes = (2, 8), (8, 4), (4, 2 * 6), (2, 4, 16), (8, 18), (4,), (16,), (2, 2), (2, 2)
    tensors = [f(s).npu() for s in shapes]
    caches = [torch.zeros(2, 16, 1, n, dtype=torch.bfloat16).npu() for n in (16, 2)]
    index = torch.tensor([3, -1]).npu()
    results = torch_npu.npu_mla_prolog_v3(*tensors, *caches, cache_index=index)
    assert [tuple(x.shape) for x in results[2:]] == [(0 if CANN >= (8, 5) else 1,)] * 3
    meta = [x.to("meta") for x in (*tensors, *caches)]
    promised = torch.ops.npu.npu_mla_prolog_v3(*meta, cache_index=index.to("meta"))
    assert [(x.shape, x.dtype) for x in results] == [(x.shape, x.dtype) for x in promised]
    written = caches[0].cpu().flatten(0, 2).any(-1).nonzero().flatten().tolist()
    assert written == [3]


def test_text() -> None:
    """As GE graphs: with drafts, below."""
    tokenizer, prompts = load_tokenizer(TINY), ["Once upon a time", "7 plus 5 is"]
    want, got = (
        [g.token_ids for g in generate(m, tokenizer, prompts, 24, pad_to=16)]
        for m in (load(), load("captured"))
    )
    assert got == want


@pytest.mark.parametrize(("mode", "kind"), [("captured", "bfloat16"), ("ge", "c8")])
def test_with_drafts(mode: str, kind: str) -> None:
    tokenizer, plan = load_tokenizer(TINY), PortPlan.production().replace(mla_prolog=True)
    if kind == "c8":
        plan = plan.replace(quant="w8a8", kv_cache_dtype="int8")
    want = generate(load(plan=plan), tokenizer, ["Once upon a time"], 12, pad_to=16)[0]
    found = generate(load(mode, plan), tokenizer, ["Once upon a time"], 12, pad_to=16)[0]
    assert found.token_ids == want.token_ids and found.accepted == want.accepted


def test_in_slots_with_one_captured_step() -> None:
    """Rows that are done have slot -1."""
    requests = [Request((5, 6, 7), 4), Request((8, 9), 2), Request(tuple(range(3, 19)), 5)]
    found = []
    for mode in ("eager", "captured"):
        model = load(mode)
        batch = ContinuousBatch(model, 2, 24)
        found.append([r.token_ids for r in run_requests(batch, requests)])
        assert not any(bool(b[0].any()) for layer in batch.cache.buffers for b in layer)
    assert found[0] == found[1]


def test_other_dtypes_are_refused_by_name() -> None:
    for dtype in ("float32", "float16"):
        with pytest.raises(PortError, match="computes in bfloat16, not float"):
            short.load(PLAN, dtype=dtype)
    assert ops.npu_mla_prolog_v3.__doc__


@functools.cache
def at_published_widths(mode: str) -> list[Tensor]:
    config = SHORT.replace(**V3_ATTENTION)
    model = fill(build(config, PLAN, device="npu", dtype=torch.bfloat16), random_sources(config))
    model.paging = Paging(16)
    compile_steps(model, mode)
    ids = torch.randint(3, 90, (2, 14), generator=torch.Generator().manual_seed(0)).npu()
    cache = model.new_cache(2, 20)
    layer = next(m for m in model.modules() if isinstance(m, PrologAttention))
    assert (
        layer.dq.data_ptr() == layer.q_a_proj.weight.data_ptr() and layer.q_a_proj.laid is layer.dq
    )
    return [model(x.contiguous(), cache=cache).cpu() for x in ids.split([9, *[1] * 5], 1)]


@pytest.mark.parametrize("mode", ["captured", "ge", "npugraph_ex"])
def test_matrices_with_one_memory(mode: str) -> None:
    """At 512 and 64 nothing is widened: prompts multiply by the operator's own matrices. reduce-overhead
    captures what npugraph_ex does."""
    want, got = at_published_widths("eager"), at_published_widths(mode)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("mode", ["eager", "captured", "ge"])
def test_over_matrices_in_fractal_nz(mode: str) -> None:
    """weight_format 'nz': no number changes, and the operator reads what the loader has cast."""
    plan = PLAN.replace(quant="w8a8", weight_format="nz")
    for a, b in zip(ran("eager", "w8a8")[0], run(load(mode, plan))[0], strict=True):
        assert torch.equal(a, b)

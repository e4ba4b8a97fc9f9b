"""Part II: an int8 cache (C8). Integers are held to their definition to the last bit, the attention over
them to float64, what the rounding costs to a bound; `test_the_mutations` holds the wrong forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from dsv3_port import PortPlan, generate, load_model, load_tokenizer, ops
from dsv3_port.engine.calibrate import calibrate
from dsv3_port.engine.continuous import ContinuousBatch, Request, run_requests
from dsv3_port.engine.launch import run_ranks
from dsv3_port.engine.loading import with_plan
from dsv3_port.errors import PortError
from dsv3_port.model.c8 import C8Attention, int8_attentions, set_kv_scales
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.model.paged_attention import PagedAttention
from dsv3_port.model.paged_cache import PagedCache, Paging
from dsv3_port.parallel import TensorParallel
from dsv3_port.weights.write import write_checkpoint
from tests.model.test_mla_prolog import with_changed
from tests.model.test_paged import NAN, V3_ATTENTION, follow, ragged
from tests.random_models import CONFIG, random_sources

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
W8A8 = PortPlan.upto("9").replace(quant="w8a8", mla_prolog=True)
C8 = W8A8.replace(kv_cache_dtype="int8")
F32 = np.float32
PROMPTS = ["Once upon a time there was a little", "7 plus 5 is", "The cat sat on", "A"]


@pytest.fixture(scope="module")
def floats() -> DeepseekV3:
    """W8A8 over a cache of its own dtype."""
    model = load_model(TINY, W8A8, "cpu", "float32")
    model.paging = NAN
    return model


@pytest.fixture(scope="module")
def scales(floats) -> dict[str, float]:
    return calibrate(floats, PROMPTS, load_tokenizer(TINY))


def int8(model: DeepseekV3, scales: dict[str, float], **options: Any) -> DeepseekV3:
    twin = with_plan(model, C8.replace(**options))
    set_kv_scales(twin, scales)
    return twin


def off(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference over b's."""
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


# ---- integers, and the attention over them -------------------------------------------------------


@contextmanager
def seen(name: str) -> Iterator[list[tuple[dict[str, Any], Any]]]:
    """Calls of an operator within, as (arguments, result); the caches as they were before."""
    real, calls = getattr(ops, name), []

    def call(*args: Any, **given: Any) -> Any:
        kept = [a.clone() if isinstance(a, Tensor) else a for a in args]
        result = real(*args, **given)
        calls.append(({"args": kept, "now": args} | given, result))
        return result

    with mock.patch.object(ops, name, call):
        yield calls


@pytest.fixture(scope="module", params=[{}, V3_ATTENTION], ids=["widened", "published widths"])
def small(request, tmp_path_factory) -> DeepseekV3:
    """Random values, quantised while they are loaded."""
    config = CONFIG.replace(**request.param)
    folder = tmp_path_factory.mktemp("c8") / "model"
    values = random_sources(config).items()
    write_checkpoint(folder, config, values, fp8=False, dtype=torch.float32)
    model = load_model(folder, W8A8, "cpu", "float32")
    model.paging = NAN
    return int8(model, calibrate(model, [list(range(3, 60)), [9, 8, 7]]))


def steps(model: DeepseekV3, seed: int = 3) -> tuple[Tensor, PagedCache]:
    ids, mask, prompt = ragged(seed)
    return follow(model, ids, mask, prompt)


def test_each_integer_is_its_definitions_to_the_last_bit(small) -> None:
    """The query's codes and scale, its rotary part and the row that is written, from what the operator
    gives for a float cache: numpy's float32, one rounding each. Catches a scale for its reciprocal, a
    rotary part that is scaled twice or not at all, another rounding."""
    with seen("npu_mla_prolog_v3") as calls:
        steps(small)
    assert len(calls) == 6 * small.config.num_hidden_layers
    for given, (query, query_rope, of_query, *_) in calls[:: len(calls) // 7]:
        args, scale = given.pop("args"), given["quant_scale_ckv"].numpy()
        now = given.pop("now")
        plain = [torch.zeros_like(args[9], dtype=torch.float32), args[10].clone()]
        given |= {"quant_scale_ckv": None, "kv_cache_quant_mode": 0, "query_quant_mode": 0}
        q, rope, *_ = ops.npu_mla_prolog_v3(*args[:9], *plain, **given)
        want = np.abs(q.numpy()).max(-1, keepdims=True) / F32(127)
        assert np.array_equal(of_query.numpy(), want)
        assert np.array_equal(query.numpy(), np.rint(q.numpy() / want).astype(np.int8))
        assert np.array_equal(query_rope.numpy(), rope.numpy() * scale / want)
        index = given["cache_index"][given["cache_index"] >= 0]
        rows, written = (x.flatten(0, 2)[index].numpy() for x in (plain[0], now[9]))
        codes = np.clip(np.rint(rows * scale), -128, 127).astype(np.int8)
        assert written.dtype == np.int8 and np.array_equal(written, codes)
        assert torch.equal(now[10].flatten(0, 2)[index], plain[1].flatten(0, 2)[index])


def over_the_cache(given: dict[str, Any], row: int, at: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of query `at` of a sequence, in float64: the dequantised query [N, 576], keys [L, 576] and values
    [L, 512] that it may see."""
    query, query_rope, blocks, rope_blocks, table, lengths, causal, _ = given["args"]
    of_query, of_cache = (s.double() for s in given["scales"])
    of_query = of_query[row, at][:, None]
    length = lengths[row] if causal is None else lengths[row] - query.shape[1] + at + 1
    latent, rope = (
        b[table[row].long()].flatten(0, 1)[:length].double() for b in (blocks, rope_blocks)
    )
    latent = latent * of_cache
    q = torch.cat(
        (query[row, at] * of_query, query_rope[row, at].double() * of_query * of_cache), -1
    )
    return q, torch.cat((latent, rope), -1), latent


@pytest.mark.parametrize("verify", [False, True])
def test_the_attention_is_that_of_float64_over_the_dequantised_cache(
    floats, scales, verify
) -> None:
    """Over blocks with NaN and 127 in what belongs to nobody, of a token, and of a token and its draft.
    Catches a scale of the query, the keys or the values that is forgotten, one of another row or head."""
    plan = PortPlan.production().replace(quant="w8a8", mla_prolog=True)
    model, tokenizer = floats, load_tokenizer(TINY)
    if verify:
        model = load_model(TINY, plan, "cpu", "float32")
        model.paging = NAN
        scales = calibrate(model, PROMPTS, tokenizer)
    model = with_plan(model, model.plan.replace(kv_cache_dtype="int8"))
    set_kv_scales(model, scales)
    with seen("paged_attention") as calls:
        generate(model, tokenizer, PROMPTS[:2], 6)
    worst = 0.0
    of_two = [c[0]["args"][0].shape[1] == 2 for c in calls]
    assert any(of_two) == verify and calls
    for given, out in calls[:: max(1, len(calls) // 9)]:
        args = given["args"]
        for row in range(args[0].shape[0]):
            at = (args[0].shape[1] - 1) * row  # the token of row 0, of row 1 its draft
            if not args[5][row]:
                continue
            q, k, v = over_the_cache(given, row, at)
            want = (q @ k.T * args[7]).softmax(-1) @ v
            found = out[:, row, at].double()
            worst = max(worst, float((found - want).abs().max() / want.abs().max()))
    print(f"worst difference {worst:.1e}")
    assert 0 < worst <= 2e-6


def test_what_the_rounding_costs_is_within_its_bound(floats) -> None:
    """Of each score and each result of the first layer, beside the same layer over floats, over the same
    text. |q^ c^ - q c| <= s |c^|_1 / 2 + kv_scale |q|_1 / 2; weights then differ by at most exp(2 d) - 1 in
    all, results by that times the largest value, and by kv_scale / 2."""
    ids, found = torch.tensor([list(range(40, 70))]), []
    for model in (floats, int8(floats, calibrate(floats, ids))):  # nothing is clipped
        cache = model.new_cache(1, 30)
        with seen("paged_attention") as calls:
            model(ids[:, :5], cache=cache)
            for at in range(5, 30):
                model(ids[:, at : at + 1], cache=cache)
        found.append(calls[:: model.config.num_hidden_layers])
    assert len(found[0]) == 25
    shares = [
        _share_of_the_bound(a["args"], out, b, out8)
        for (a, out), (b, out8) in zip(*found, strict=True)
    ]
    print(f"largest share of the bound {max(shares):.2f}")
    assert 0.01 < max(shares) <= 1


def _share_of_the_bound(a: Any, out: Tensor, b: Any, out8: Tensor) -> float:
    query, query_rope, blocks, rope_blocks, table, lengths, _, scale = a
    rows = table[0].long()
    c, r = (x[rows].flatten(0, 1)[: lengths[0]].double() for x in (blocks, rope_blocks))
    q8, k8, c8 = over_the_cache(b, 0, 0)
    q = query[0, 0].double()
    s, kv_scale = b["scales"][0][0, 0].double(), float(b["scales"][1])
    exact = (q @ c.T + query_rope[0, 0].double() @ r.T) * scale
    gaps = (q8 @ k8.T * scale - exact).abs()
    bounds = (c8.abs().sum(-1)[None] * s[:, None] + kv_scale * q.abs().sum(-1, keepdim=True)) * (
        scale / 2
    )
    bounds = bounds * (1 + 1e-4) + 1e-6  # float32 besides
    most = c8.abs().max() * torch.expm1(2 * bounds.amax(-1)) + kv_scale / 2
    results = (out8[:, 0, 0].double() - out[:, 0, 0].double()).abs().amax(-1)
    return max(float((gaps / bounds).max()), float((results / most).max()))


# ---- the model -----------------------------------------------------------------------------------


def test_prompts_are_those_of_a_float_cache(floats, scales) -> None:
    """They attend over their rows as they were before they were stored."""
    ids, mask, prompt = ragged(5)
    want, got = (follow(m, ids, mask, prompt)[0] for m in (floats, int8(floats, scales)))
    assert torch.equal(want[:, 0], got[:, 0]) and 1e-4 < off(got[:, 1:], want[:, 1:]) < 0.1


def test_later_chunks_attend_over_the_dequantised_rows(floats, scales) -> None:
    """As a float cache whose rows are rounded when they are read: catches a chunk over codes."""
    model, rounding = int8(floats, scales), with_plan(floats, W8A8)

    def rounded(name: str, attention: PagedAttention) -> Callable[..., Any]:
        scale = torch.tensor([scales[name]])

        def gathered(*args: Any) -> tuple[Tensor, Tensor]:
            k_rope, latent = PagedAttention.gathered(attention, *args)
            return k_rope, (latent * (1 / scale)).round().clamp(-128, 127) * scale

        return gathered

    for name in int8_attentions(model):
        attention = rounding.get_submodule(name)
        assert isinstance(attention, PagedAttention)
        vars(attention)["gathered"] = rounded(name, attention)
    ids = torch.randint(3, 900, (2, 30), generator=torch.Generator().manual_seed(0))
    logits = [m.prefill(ids, None, m.new_cache(2, 30), 8) for m in (rounding, model)]
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], floats.prefill(ids, None, floats.new_cache(2, 30), 8))


def test_near_the_float_cache(floats, scales) -> None:
    """Ragged batches, prompts in chunks and whole."""
    model, worst = int8(floats, scales), 0.0
    for seed in range(6):
        ids, mask, prompt = ragged(seed)
        want, got = (follow(m, ids, mask, prompt, (0, 5)[seed % 2])[0] for m in (floats, model))
        assert bool(got.isfinite().all())
        worst = max(worst, off(got, want))
    print(f"off {worst:.2%}")
    assert 1e-4 < worst < 0.1


def test_text_and_drafts(floats, scales) -> None:
    tokenizer = load_tokenizer(TINY)
    texts = [
        [g.text for g in generate(m, tokenizer, PROMPTS[:2], 16)]
        for m in (floats, int8(floats, scales))
    ]
    assert texts[0] == texts[1]
    plan = PortPlan.production().replace(quant="w8a8", mla_prolog=True)
    drafting = load_model(TINY, plan, "cpu", "float32")
    more = calibrate(drafting, PROMPTS, tokenizer)
    assert len(more) == len(scales) + 1 and all(more[n] == s for n, s in scales.items())
    drafting = with_plan(drafting, plan.replace(kv_cache_dtype="int8"))
    set_kv_scales(drafting, more)
    found = generate(drafting, tokenizer, PROMPTS[:2], 16)
    assert [g.text for g in found] == texts[0] and sum(map(sum, (g.accepted for g in found)))


def test_in_slots(floats, scales) -> None:
    """Each request is what it is alone; idle rows write nothing."""
    requests = [Request((5, 6, 7), 4), Request((8, 9), 2), Request(tuple(range(3, 19)), 5)]
    model = int8(floats, scales)
    batch = ContinuousBatch(model, 2, 24)
    found = [r.token_ids for r in run_requests(batch, requests)]
    assert not any(bool(b[0].any()) for layer in batch.cache.buffers for b in layer)
    for request, got in zip(requests, found, strict=True):
        alone = ContinuousBatch(model, 1, 24)
        assert [r.token_ids for r in run_requests(alone, [request])] == [got]


def on_a_rank(parallel: TensorParallel, path: str) -> tuple[Tensor, dict[str, float]]:
    model = load_model(path, W8A8, "cpu", "float32", parallel)
    model.paging = NAN
    ids = torch.randint(3, 900, (2, 24), generator=torch.Generator().manual_seed(4))
    scales = calibrate(model, ids)
    return follow(int8(model, scales), ids, None, 19)[0], scales


def test_two_ranks() -> None:
    """The latent row is whole on each: one scale for all, found on each alike."""
    (first, scales), (second, again) = run_ranks(on_a_rank, 2, str(TINY))
    assert torch.equal(first, second) and scales == again and bool(first.isfinite().all())


# ---- the cache -----------------------------------------------------------------------------------


def test_bytes_of_a_row(floats, scales) -> None:
    """640 in bfloat16 in place of 1152; copied from one cache to another as they are."""
    widths = [(1, 64), (1, 512)]
    kinds = torch.bfloat16, (torch.bfloat16, torch.int8)
    caches = [PagedCache(1, widths, 1, 16, "cpu", kind, Paging(16)) for kind in kinds]
    assert [c.nbytes_for(1, 16) // 32 for c in caches] == [1152, 640]
    assert [c.nbytes for c in caches] == [32 * 1152, 32 * 640]
    one = PagedCache(1, widths, 1, 40, "cpu", kinds[1], Paging(16))
    many = PagedCache(1, widths, 3, 40, "cpu", kinds[1], Paging(16, poison=math.nan))
    one.fill_random(21)
    many.adopt(one, 1)
    for a, b in zip(one.buffers[0], many.buffers[0], strict=True):
        rows = [x[c.owned[r]].flatten(0, 1)[:21] for x, c, r in ((a, one, 0), (b, many, 1))]
        assert torch.equal(*rows) and float(rows[0].float().std()) > 0.5
    blocks = list(many.owned[1])
    many.end(1)
    assert bool((many.buffers[0][1][blocks] == 127).all())
    assert bool(many.buffers[0][0][blocks].isnan().all())


# ---- what bad input gets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mla_prolog": False}, "it needs mla_prolog True"),
        ({"quant": "none"}, "it needs quant 'w8a8'"),
        ({"mla_prolog": False, "cache": "fixed"}, "it needs cache 'paged'"),
        ({"prefill_attention": "absorbed"}, "takes int8 ones over an int8 cache"),
        ({"kv_cache_dtype": "fp8"}, "it can be 'model' or 'int8'"),
    ],
)
def test_plans(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PortError, match=words):
        C8.replace(**changes)


def test_scales_that_are_none(floats, scales) -> None:
    """By the layer's name, and before anything is computed."""
    model, last = with_plan(floats, C8), f"model.layers.{len(scales) - 1}.self_attn"
    with pytest.raises(PortError, match=r"model\.layers\.0\.self_attn has no kv_scale.*calibrate"):
        model.new_cache(1, 20)
    for value, words in ((0.0, "of 0"), (-1.0, "of -1"), (math.inf, "of inf"), (math.nan, "no kv")):
        with pytest.raises(PortError, match=f"{last} has .*{words}"):
            set_kv_scales(model, scales | {last: value})
    with pytest.raises(PortError, match=f"{last} has no kv_scale"):
        set_kv_scales(model, {n: s for n, s in scales.items() if n != last})
    with pytest.raises(PortError, match="is given for lm_head"):
        set_kv_scales(model, scales | {"lm_head": 1.0})
    with pytest.raises(PortError, match="this model's cache is not int8"):
        set_kv_scales(floats, scales)
    set_kv_scales(model, scales)
    assert all(isinstance(m, C8Attention) for m in int8_attentions(model).values())
    twin = with_plan(model, C8)
    assert [float(a.kv_scale) for a in int8_attentions(twin).values()] == [
        pytest.approx(s) for s in scales.values()
    ]


# ---- the wrong forms -----------------------------------------------------------------------------


def of_prolog(change: Callable[[dict[str, Any]], dict[str, Any]]) -> tuple[str, Any]:
    return "npu_mla_prolog_v3", with_changed(change)


def of_attention(change: Callable[[list[Any]], None]) -> tuple[str, Any]:
    """A change of paged_attention's arguments: query, query_rope, key, key_rope, …, and its scales."""

    def form(right: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, scales: Any = None) -> Any:
            if scales is None:
                return right(*args)
            values = [*args, scales]
            change(values)
            return right(*values[:-1], scales=values[-1])

        return call

    return "paged_attention", form


def with_rope(factor: Callable[[Tensor, Tensor], Tensor]) -> Callable[[list[Any]], None]:
    def change(values: list[Any]) -> None:
        of_query, of_cache = values[8]
        values[1] = values[1] * factor(of_query[..., None], of_cache)

    return change


def forgotten(which: str) -> tuple[str, Any]:
    """One of the operator's three scales is 1."""

    def form(right: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            return right(*args, **given | {which: torch.ones_like(given[which])})

        return call

    return "npu_fused_infer_attention_score_v2", form


def of_another_layer(values: list[Any]) -> None:
    values[8] = values[8][0], values[8][1] * 1.7


def reciprocal_of_prompts(right: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **given: Any) -> Any:
        return right(*args, **given | {"c_kv_scale": 1 / given["c_kv_scale"]})

    return call


MUTATIONS: dict[str, tuple[str, Any]] = {
    "the scale in place of its reciprocal, written by a cached step": of_prolog(
        lambda v: {"quant_scale_ckv": 1 / v["quant_scale_ckv"]}
    ),
    "the scale in place of its reciprocal, written by a prompt": (
        "npu_kv_rmsnorm_rope_cache_v2",
        reciprocal_of_prompts,
    ),
    "the rotary part scaled twice": of_attention(with_rope(lambda s, c: 1 / (s * c))),
    "the rotary part not scaled": of_attention(with_rope(lambda s, c: s * c)),
    "the query's scale forgotten": forgotten("dequant_scale_query"),
    "the keys' scale forgotten": forgotten("dequant_scale_key"),
    "the values' scale forgotten": forgotten("dequant_scale_value"),
    "the scale of another layer": of_attention(of_another_layer),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_mutations(floats, scales, name, monkeypatch) -> None:
    """Each wrong form leaves the float cache's logits by several times what the rounding costs."""
    ids = torch.randint(3, 900, (2, 24), generator=torch.Generator().manual_seed(1))
    want, right = (follow(m, ids, None, 19)[0] for m in (floats, int8(floats, scales)))
    operator, wrong = MUTATIONS[name]
    home = ops
    if operator == "npu_fused_infer_attention_score_v2":
        from dsv3_port.ops import fused_attention_v2

        home = fused_attention_v2
    monkeypatch.setattr(home, operator, wrong(getattr(home, operator)))
    got = follow(int8(floats, scales), ids, None, 19)[0]
    allowed, found = off(right[:, 1:], want[:, 1:]), off(got[:, 1:], want[:, 1:])
    print(f"{name}: {found:.1%}, right {allowed:.1%}")
    assert not found < 3 * allowed

"""Part II, rung 9: the paged cache and its attention. Each test says which wrong form it catches;
`test_the_mutations` holds the wrong forms themselves and shows that they are caught."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from dsv3_port import PortPlan, generate, load_model, load_tokenizer, ops
from dsv3_port.check.gate import stressed, strict_gate
from dsv3_port.engine.graph import compile_steps
from dsv3_port.engine.loading import with_plan
from dsv3_port.errors import PortError
from dsv3_port.model import decoder
from dsv3_port.model.attention import StepInputs
from dsv3_port.model.context import BuildContext
from dsv3_port.model.decoder import DeepseekV3, build
from dsv3_port.model.paged_attention import PagedAttention
from dsv3_port.model.paged_cache import PagedCache, Paging
from dsv3_port.model.visible import compressed_causal
from tests.random_models import CONFIG, SHORT, fill, random_model, random_sources

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
FULL, PAGED = PortPlan.full(), PortPlan.upto("9")
NAN = Paging(16, poison=math.nan)
V3_ATTENTION = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def fixed() -> DeepseekV3:
    return load_model(TINY, FULL, "cpu", "float32")


def paged(model: DeepseekV3, paging: Paging = NAN, **options: Any) -> DeepseekV3:
    twin = with_plan(model, PAGED.replace(**options))
    twin.paging = paging
    return twin


def balanced(cache: PagedCache) -> bool:
    """Every block is free or one sequence's, and none is both or lost."""
    held = [block for row in cache.owned for block in row]
    return sorted(held + cache.free) == list(range(1, cache.blocks + 1))


# ---- the oracle: dense attention in float64, from its definition ---------------------------------


def dense(q: Tensor, rows: Tensor, scale: float, rank: int) -> Tensor:
    """q [N, R + Dr] of one query over rows [L, R + Dr], R = rank: softmax(scale q k^T) v, [N, R]."""
    out = []
    for head in q.double():
        scores = [
            scale * sum(float(a) * float(b) for a, b in zip(head, k, strict=True)) for k in rows
        ]
        top = max(scores)
        weights = [math.exp(s - top) for s in scores]
        total = sum(weights)
        out.append(sum(w / total * k[:rank].double() for w, k in zip(weights, rows, strict=True)))
    return torch.stack([torch.as_tensor(o) for o in out])


@pytest.mark.parametrize("lengths", [(1, 15), (16, 17), (33, 2), (48, 32)])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_attention_is_dense_attention_in_float64(lengths, as_tensor) -> None:
    """Shuffled blocks, NaN in every other block and behind each length: catches a table that is
    ignored, a length one off, a block boundary one off, the scale of 576 channels."""
    generator = torch.Generator().manual_seed(sum(lengths))
    rows = torch.randn(2, 48, 576, dtype=torch.float64, generator=generator)
    table = torch.tensor([[5, 2, 7], [1, 6, 3]], dtype=torch.int32)
    blocks = torch.full((9, 16, 576), math.nan, dtype=torch.float64)
    for row, length in enumerate(lengths):
        for p in range(length):
            blocks[table[row, p // 16], p % 16] = rows[row, p]
    q = torch.randn(2, 1, 2, 576, dtype=torch.float64, generator=generator)
    got = ops.paged_attention(
        *q.split((512, 64), -1),
        *(x.contiguous() for x in blocks.split((512, 64), -1)),
        table,
        torch.tensor(lengths) if as_tensor else list(lengths),
        None,
        192**-0.5,
    )
    for row, length in enumerate(lengths):
        want = dense(q[row, 0], rows[row, :length], 192**-0.5, 512)
        torch.testing.assert_close(got[:, row, 0], want, rtol=1e-12, atol=1e-12)


def test_several_queries_see_what_lies_before_them() -> None:
    """The compressed mask's corner is at the last key; a query before the first key gives 0. Catches
    a corner at the first key, and NaN from rows that see nothing."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(20, 576, dtype=torch.float64, generator=generator)
    blocks = torch.zeros(3, 16, 576, dtype=torch.float64)
    blocks[2], blocks[1, :4] = rows[:16], rows[16:]
    table = torch.tensor([[2, 1], [2, 0]], dtype=torch.int32)
    q = torch.randn(2, 4, 2, 576, dtype=torch.float64, generator=generator)
    got = ops.paged_attention(
        *q.split((512, 64), -1),
        *(x.contiguous() for x in blocks.split((512, 64), -1)),
        table,
        [20, 2],
        torch.ones(2048, 2048, dtype=torch.bool).triu(1),
        0.07,
    )
    for i in range(4):
        want = dense(q[0, i], rows[: 17 + i], 0.07, 512)
        torch.testing.assert_close(got[:, 0, i], want, rtol=1e-12, atol=1e-12)
    assert not got[:, 1, :2].any()
    torch.testing.assert_close(got[:, 1, 3], dense(q[1, 3], rows[:2], 0.07, 512))


# ---- the model: equal to the fixed cache's -------------------------------------------------------


@pytest.mark.parametrize("prefill", ["expanded", "absorbed", "plain"])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_strict_gate(fixed, prefill, block) -> None:
    """Three padded prompts of 19, 7 and 13 tokens and four cached steps, every stage and every
    expert; blocks of 16 are crossed at 16 and at 32."""
    verdict = strict_gate(
        fixed, paged(fixed, Paging(block, poison=math.nan), prefill_attention=prefill)
    )
    assert verdict, verdict


def test_strict_gate_under_stress(fixed) -> None:
    first, second = stressed(fixed), stressed(paged(fixed))
    assert second.paging == NAN
    assert strict_gate(first, second)


def follow(
    model: DeepseekV3, ids: Tensor, mask: Tensor | None, prompt: int, chunk: int = 0
) -> tuple[Tensor, Any]:
    """Logits after the prompt and after every cached step [B, steps, V]."""
    cache = model.new_cache(ids.shape[0], ids.shape[1])
    part = None if mask is None else mask[:, :prompt]
    logits = [model.prefill(ids[:, :prompt], part, cache, chunk)[:, -1:]]
    for at in range(prompt, ids.shape[1]):
        logits.append(model(ids[:, at : at + 1], cache=cache))
    return torch.cat(logits, 1), cache


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def ragged(seed: int, steps: int = 6) -> tuple[Tensor, Tensor, int]:
    """ids, mask and prompt length of a batch of 1 to 4 prompts of 1 to 40 tokens; at least one of
    them is whole, and one often ends at a block's boundary."""
    rng = random.Random(seed)
    lengths = [
        rng.choice((1, 2, 15, 16, 17, 31, 32, 33, rng.randint(1, 40)))
        for _ in range(rng.randint(1, 4))
    ]
    longest = max(lengths)
    ids = torch.randint(
        3,
        CONFIG.vocab_size,
        (len(lengths), longest + steps),
        generator=torch.Generator().manual_seed(seed),
    )
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        mask[row, : longest - length] = 0
    return ids, mask, longest


def test_ragged_batches() -> None:
    """80 batches over prefill forms, chunks and block sizes: catches lengths shared by rows, padding
    that takes room, a position that counts it. docs/production.md has the worst difference."""
    sources, worst = random_sources(), 0.0
    for seed in range(80):
        rng = random.Random(seed)
        prefill = rng.choice(("expanded", "absorbed", "plain"))
        models = [
            fill(build(CONFIG, plan.replace(prefill_attention=prefill)), sources)
            for plan in (FULL, PAGED)
        ]
        models[1].paging = Paging(rng.choice((16, 32, 48)), poison=math.nan)
        ids, mask, prompt = ragged(seed)
        chunk = rng.choice((0, 0, 5, 16))
        want, _ = follow(models[0], ids, mask, prompt)
        got, cache = follow(models[1], ids, mask, prompt, chunk)
        assert bool(got.isfinite().all()) and balanced(cache)
        worst = max(worst, relative(got, want))
    print(f"worst difference {worst:.1e}")
    assert worst <= 1e-5


@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize("sizes", [{}, V3_ATTENTION, {"q_lora_rank": None}])
def test_published_widths_and_widened_ones(interleave: bool, sizes: dict[str, Any]) -> None:
    """512 and 64 as published, and 16 and 8 widened to them; rotary channels in pairs and in halves.
    Catches a mean square over 512 of a latent of 16, halves that are padded at the end only."""
    config = CONFIG.replace(rope_interleave=interleave, **sizes)
    sources = random_sources(config)
    ids, mask, prompt = ragged(3)
    models = [fill(build(config, p), sources) for p in (FULL, PAGED)]
    models[1].paging = NAN
    want, got = (follow(m, ids, mask, prompt)[0] for m in models)
    assert relative(got, want) <= 1e-5


def by_definition(layer: PagedAttention, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Causal MLA of hidden [S, H] as the DeepSeek-V2 report writes it (section 2.1, appendix C), every
    head's keys and values expanded; cos, sin [S, Dr]."""
    c, weight = layer.config, dict(layer.named_parameters())

    def norm(x: Tensor, gamma: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gamma

    def turned(x: Tensor) -> Tensor:  # pairs (x0, x1), (x2, x3), …, each by its own angle
        half = c.qk_rope_head_dim // 2
        a, b, co, si = x[..., 0::2], x[..., 1::2], cos[..., :half], sin[..., :half]
        return torch.stack((a * co - b * si, b * co + a * si), -1).flatten(-2)

    q = norm(hidden @ weight["q_a_proj.weight"].T, weight["q_a_layernorm.weight"])
    q = (q @ weight["q_b_proj.weight"].T).unflatten(-1, (layer.heads, -1))
    row = hidden @ weight["kv_a_proj_with_mqa.weight"].T
    latent = norm(row[:, : c.kv_lora_rank], weight["kv_a_layernorm.weight"])
    k_rope, out = turned(row[:, c.kv_lora_rank :]), []
    hidden_keys = torch.ones(len(hidden), len(hidden)).triu(1).bool()
    for head in range(layer.heads):
        q_nope, q_rope = q[:, head].split([c.qk_nope_head_dim, c.qk_rope_head_dim], -1)
        k = latent @ weight["kv_b_proj_w_k"][head].T
        scores = (q_nope @ k.T + turned(q_rope) @ k_rope.T) * c.softmax_scale
        weights = scores.masked_fill(hidden_keys, -torch.inf).softmax(-1)
        out.append(weights @ (latent @ weight["kv_b_proj_w_v"][head]))
    return torch.cat(out, -1) @ weight["o_proj.weight"].T


@pytest.mark.parametrize("sizes", [{}, V3_ATTENTION])
@pytest.mark.parametrize("new", [1, 7, 16])
def test_the_layer_is_its_definition_in_float64(sizes: dict[str, Any], new: int) -> None:
    """Norm, rotation, cache, both absorbed products and the attention, 40 positions `new` at a time:
    catches what the fixed cache's port and this one might have wrong alike."""
    config = CONFIG.replace(**sizes)
    plan = PAGED.replace(prefill_attention="absorbed", rope="per_step", norm="separate")
    layer = PagedAttention(BuildContext(config, plan, dtype=torch.float64))
    generator = torch.Generator().manual_seed(new)
    for parameter in layer.parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = values * 0.2 + (1 if values.dim() == 1 else 0)
    hidden = torch.randn(1, 40, config.hidden_size, generator=generator, dtype=torch.float64)
    angle = torch.rand(40, config.qk_rope_head_dim // 2, generator=generator, dtype=torch.float64)
    cos, sin = (torch.cat((f(angle * 9),) * 2, -1) for f in (torch.cos, torch.sin))
    layer.q_a_layernorm.norm = lambda x: (  # type: ignore[method-assign]
        x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * layer.q_a_layernorm.weight
    )  # the model's own rounds to float32
    cache = PagedCache(1, layer.cache_widths, 1, 48, "cpu", torch.float64, NAN)
    cache.place(0, (2, 3, 1))
    got = []
    for start in range(0, 40, new):
        at = torch.arange(start, min(start + new, 40)).unsqueeze(0)
        n = at.shape[1]
        cache.require_capacity(n)
        cache.expect(n)
        mask = compressed_causal(cos.device) if n > 1 else None
        inputs = StepInputs(at, mask, cache.pad, start == 0, cos[at][:, None], sin[at][:, None])
        inputs.paged = cache.step(at, start % 2 == 0)
        got.append(layer(hidden[:, start : start + n], inputs, cache, 0))
        cache.advance(n)
    want = by_definition(layer, hidden[0], cos, sin)
    assert relative(torch.cat(got, 1)[0], want) <= 1e-13


@pytest.mark.parametrize("without", ["rope_once", "add_rms_norm", "merged_mlp", "gmm_routing"])
def test_other_steps_can_be_off(without) -> None:
    ids, mask, prompt = ragged(3)
    want = follow(random_model(FULL), ids, mask, prompt)[0]
    model = random_model(PAGED.minus(without))
    model.paging = NAN
    assert relative(follow(model, ids, mask, prompt)[0], want) <= 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits(dtype) -> None:
    """As near to float32 as the fixed cache is, times 2."""
    ids, mask, prompt = ragged(5)
    exact = follow(load_model(TINY, FULL, "cpu", "float32"), ids, mask, prompt)[0]
    base = load_model(TINY, FULL, "cpu", dtype)
    errors = [
        float((follow(m, ids, mask, prompt)[0] - exact).abs().mean()) for m in (base, paged(base))
    ]
    assert errors[1] <= 2 * errors[0]


def test_compiled_by_inductor() -> None:
    """Lengths as a tensor, padding's slots without a mask as index; one graph for all cached steps: three
    rows of three blocks, as test_continuous.py has them, so that inductor makes that step once."""
    torch._dynamo.reset()
    ids, mask, prompt = ragged(7)
    assert ids.shape == (3, 38)
    want = follow(random_model(FULL, SHORT), ids, mask, prompt)[0]
    model = random_model(PAGED, SHORT)
    model.paging = NAN
    compile_steps(model, "ge")
    before = counters["stats"]["unique_graphs"]
    assert relative(follow(model, ids, mask, prompt)[0], want) <= 1e-5
    assert counters["stats"]["unique_graphs"] - before == 2


# ---- blocks --------------------------------------------------------------------------------------


def test_blocks_are_taken_on_crossing_a_boundary_and_given_back(fixed) -> None:
    """Row 0 has 19 tokens, row 1 has 7: catches blocks for padding, a block too early or too late,
    blocks that are lost."""
    model = paged(fixed)
    ids = torch.randint(3, 900, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 19, dtype=torch.int64)
    mask[1, :12] = 0
    cache = model.new_cache(2, 40)
    assert (cache.blocks, cache.in_use) == (6, 0)
    model(ids[:, :19], mask, cache)
    held = [[len(row) for row in cache.owned]]
    for at in range(19, 40):
        model(ids[:, at : at + 1], cache=cache)
        held.append([len(row) for row in cache.owned])
        assert balanced(cache)
    at_least = [[-(-(19 + n) // 16), -(-(7 + n) // 16)] for n in range(22)]
    assert held == at_least
    cache.rewind(30)
    assert [len(row) for row in cache.owned] == [2, 2] and balanced(cache)
    cache.end(0)
    assert [len(row) for row in cache.owned] == [0, 2] and balanced(cache)
    cache.reset()
    assert cache.in_use == 0 and balanced(cache) and not cache.table.any()


def test_poison_in_freed_blocks_never_reaches_an_output(fixed) -> None:
    """Blocks are reused full of NaN: catches a read behind a sequence's length, in its last block or
    through a stale entry of the table."""
    model = paged(fixed, Paging(16, blocks=4, poison=math.nan))
    cache, want_cache = model.new_cache(2, 40), fixed.new_cache(2, 40)
    for seed in range(4):
        ids = torch.randint(3, 900, (2, 24), generator=torch.Generator().manual_seed(seed))
        cache.reset()
        want_cache.reset()
        for part in ids.split([13, *[1] * 11], 1):
            got, want = model(part, cache=cache), fixed(part, cache=want_cache)
            assert relative(got, want) <= 1e-5
    assert sum(bool(b.isnan().any()) for layer in cache.buffers for b in layer) == 8
    cache.reset()
    assert all(bool(b[1:].isnan().any()) for layer in cache.buffers for b in layer)
    assert not any(bool(b[0].any()) for layer in cache.buffers for b in layer), "block 0 stays zero"


def test_an_ended_sequence_leaves_the_others_alone(fixed) -> None:
    """Its blocks go to another row: catches a write of the ended row into them."""
    model = paged(fixed, Paging(16, blocks=3, poison=math.nan))
    ids = torch.randint(3, 900, (2, 30), generator=torch.Generator().manual_seed(0))
    want_cache, cache = fixed.new_cache(2, 30), model.new_cache(2, 30)
    for at, part in enumerate(ids.split([14, *[1] * 16], 1)):
        if at == 2:  # both stand at 15: the next block but one is row 0's
            cache.end(0)
        got, want = model(part, cache=cache), fixed(part, cache=want_cache)
        assert relative(got[1], want[1]) <= 1e-5 and bool(got.isfinite().all())
    assert cache.owned[0] == [] and len(cache.owned[1]) == 2 and balanced(cache)


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3)))[1:])
def test_any_blocks_in_any_order(fixed, order) -> None:
    """Catches a cache that is read or written as if its blocks lay behind one another."""
    model = paged(fixed)
    ids = torch.randint(3, 900, (1, 40), generator=torch.Generator().manual_seed(2))
    cache = model.new_cache(1, 40)
    cache.place(0, order)
    model.prefill(ids[:, :33], None, cache, 11)
    got = [model(ids[:, at : at + 1], cache=cache) for at in range(33, 40)]
    want = follow(fixed, ids, None, 33)[0]
    assert relative(torch.cat(got, 1), want[:, 1:]) <= 1e-5


def test_text_is_the_same_and_all_blocks_come_back(fixed) -> None:
    tokenizer = load_tokenizer(TINY)
    prompts = ["Once upon a time", "7 plus 5 is", "The cat", "A"]
    model = paged(fixed)
    made: list[PagedCache] = []
    new_cache = model.new_cache
    model.new_cache = lambda *sizes: made.append(new_cache(*sizes)) or made[-1]  # type: ignore[method-assign,func-returns-value]
    texts = [[g.token_ids for g in generate(m, tokenizer, prompts, 48)] for m in (fixed, model)]
    assert texts[0] == texts[1] and max(map(len, texts[0])) > 16
    assert made[1].batch == 4 and made[1].in_use == 0 and all(map(balanced, made))


def test_random_rows_for_timing_fill_the_blocks(fixed) -> None:
    cache = paged(fixed).new_cache(2, 40)
    cache.fill_random(33)
    want = paged(fixed, Paging(48)).new_cache(2, 40)
    want.fill_random(33)
    for mine, its in zip(cache.buffers[1], want.buffers[1], strict=True):
        for row in range(2):
            assert torch.equal(
                mine[cache.owned[row]].flatten(0, 1)[:33], its[want.owned[row]].flatten(0, 1)[:33]
            )
    assert cache.length == 33 and cache.in_use == 6


# ---- what bad input gets -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 8, 24, -16, 1040])
def test_an_unfit_block_size_is_refused(size) -> None:
    with pytest.raises(PortError, match=rf"block_size is {size}.*multiple of 16 in 16\.\.1024"):
        Paging(size)


def test_bad_input_is_named(fixed) -> None:
    model = paged(fixed)
    ids = torch.arange(3, 43).unsqueeze(0)
    with pytest.raises(
        PortError, match="cache holds 39 positions; 0 are used and 40 more do not fit"
    ):
        model(ids, cache=model.new_cache(1, 39))
    cache = model.new_cache(1, 40)
    for blocks, words in (
        ([1, 4], "block 4 of row 0 is out of range: the cache has blocks 1..3"),
        ([0], "block 0 of row 0 is out of range"),
        ([2, 2], "block 2 of row 0 is taken already"),
    ):
        with pytest.raises(PortError, match=words):
            cache.place(0, blocks)
    assert cache.in_use == 0 and balanced(cache)
    cache.place(0, [1])
    with pytest.raises(PortError, match="row 0 holds 1 blocks and can hold 3: 2 more cannot"):
        cache.place(0, [2, 3])
    model.paging = Paging(16, blocks=2)
    cache = model.new_cache(1, 40)
    with pytest.raises(PortError, match="2 of 2 blocks free, and 3 are needed for position 40"):
        model(ids, cache=cache)
    assert cache.in_use == 0, "all or none"
    with pytest.raises(PortError, match="of 0 blocks"):
        Paging(16, blocks=0)


def test_a_table_out_of_range_is_refused_before_anything_is_read(fixed) -> None:
    model = paged(fixed)
    cache = model.new_cache(1, 40)
    model(torch.arange(3, 20).unsqueeze(0), cache=cache)
    cache.table[0, 0] = 9
    with pytest.raises(PortError, match="block table of row 0 names block 9.*1..3"):
        model(torch.tensor([[3]]), cache=cache)


@pytest.mark.parametrize(
    "sizes", [{"kv_lora_rank": 24}, {"qk_rope_head_dim": 72}, {"num_attention_heads": 6}]
)
def test_sizes_that_the_operators_do_not_take(sizes) -> None:
    ((name, value),) = sizes.items()
    with pytest.raises(PortError, match=f"{value}.*use cache 'fixed'"):
        build(CONFIG.replace(**sizes), PAGED, device="meta")


def test_plans() -> None:
    with pytest.raises(PortError, match="'paged' holds latent rows.*'mla_low_rank'"):
        PortPlan.with_steps("paged_cache")
    assert PAGED == FULL.plus("paged_cache") == PortPlan.upto("9") and FULL == PAGED.minus(
        "paged_cache"
    )
    assert PAGED.step_ids == (*FULL.step_ids, "paged_cache")
    assert "paged_cache" not in FULL.step_ids


# ---- the wrong forms -----------------------------------------------------------------------------


def one_behind(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda table, positions, size: right(table, (positions - 1).clamp(min=-1), size)


def through_row_0(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda table, positions, size: right(table[:1].expand_as(table), positions, size)


def longest_for_all(right: Callable[..., Any]) -> Callable[..., Any]:
    def attend(q: Any, r: Any, k: Any, kr: Any, table: Any, lengths: Any, *rest: Any) -> Any:
        return right(q, r, k, kr, table, [max(lengths)] * len(lengths), *rest)

    return attend


def one_short(right: Callable[..., Any]) -> Callable[..., Any]:
    def attend(q: Any, r: Any, k: Any, kr: Any, table: Any, lengths: Any, *rest: Any) -> Any:
        return right(q, r, k, kr, table, [n - 1 for n in lengths], *rest)

    return attend


def in_order(right: Callable[..., Any]) -> Callable[..., Any]:
    def attend(q: Any, r: Any, k: Any, kr: Any, table: Any, *rest: Any) -> Any:
        ordered = torch.where(table > 0, table.sort(1, descending=True)[0], 0)
        return right(q, r, k, kr, ordered.contiguous(), *rest)

    return attend


def scale_of_the_row(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: right(*given[:-1], 576**-0.5)


def without_epsilon(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *tensors, **given: right(*tensors, **(given | {"epsilon": 1e-1}))


MUTATIONS = {
    "a slot one behind": (decoder, "slot_mapping", one_behind),
    "every row writes through row 0's table": (decoder, "slot_mapping", through_row_0),
    "the longest length for all rows": (ops, "paged_attention", longest_for_all),
    "lengths without the new position": (ops, "paged_attention", one_short),
    "blocks read in descending order": (ops, "paged_attention", in_order),
    "the scale of a cached row": (ops, "paged_attention", scale_of_the_row),
    "another epsilon": (ops, "npu_kv_rmsnorm_rope_cache_v2", without_epsilon),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_mutations(fixed, name, monkeypatch) -> None:
    """Each wrong form fails strict_gate's comparison, on ragged prompts that cross a block."""
    place, attribute, wrong = MUTATIONS[name]
    monkeypatch.setattr(place, attribute, wrong(getattr(place, attribute)))
    assert not strict_gate(fixed, paged(fixed))


def test_the_mutation_of_the_allocator(fixed, monkeypatch) -> None:
    """Blocks given back while they are still read: the poison reaches the output."""
    model = paged(fixed)
    ids = torch.arange(3, 23).unsqueeze(0)
    cache = model.new_cache(1, 40)
    model(ids, cache=cache)
    cache._give(0, 1)  # the table is as before
    cache.owned[0].append(cache.free.pop())
    assert bool(model(ids[:, :1], cache=cache).isnan().any())

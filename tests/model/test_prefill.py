"""Prefill without scores in memory, whole and by chunks: equal to the definition, to itself, and no
large tensor."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsv3_port import PortError, PortPlan, load_model, ops
from dsv3_port.engine.generate import generate
from dsv3_port.engine.graph import compile_steps
from dsv3_port.engine.tokenizer import load_tokenizer
from dsv3_port.model.cache import write_at_slot
from dsv3_port.model.decoder import DeepseekV3
from tests.random_models import CONFIG, SHORT, random_model

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
PLANS = {
    "full": PortPlan.full(),
    "plain": PortPlan.full().replace(prefill_attention="plain"),
    "absorbed": PortPlan.full().replace(prefill_attention="absorbed"),
    "low rank alone": PortPlan.with_steps("mla_low_rank"),
    "upstream": PortPlan.upstream(),
}


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operator returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.of = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().nbytes() // x.itemsize > self.elements:
                self.elements, self.of = x.untyped_storage().nbytes() // x.itemsize, str(func)
        return out


def definition(q: Tensor, k: Tensor, v: Tensor, pad: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v over the visible keys of each query, one query after the other."""
    out = torch.full((*q.shape[:3], v.shape[-1]), torch.nan, dtype=torch.float64)
    q, k, v = q.double(), k.double(), v.double()
    for b, n, s in itertools.product(*map(range, q.shape[:3])):
        seen = slice(int(pad[b]), s + 1)
        if s >= pad[b]:
            weights = (scale * (k[b, n, seen] @ q[b, n, s])).softmax(0)
            out[b, n, s] = weights @ v[b, n, seen]
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("widths", [(4, 3, 5), (8, 4, 16), (32, 16, 32), (128, 64, 128)])
def test_causal_attention_is_its_definition(
    widths: tuple[int, int, int], dtype: torch.dtype
) -> None:
    nope, rope, value = widths
    generator = torch.Generator().manual_seed(nope)

    def draw(width: int, heads: int = 2) -> Tensor:
        x = torch.randn(3, heads, 37, width, generator=generator, dtype=torch.float64)
        return (3 * x).to(dtype)

    q, v = (draw(nope), draw(rope)), draw(value)
    k = (draw(nope), draw(rope, 1).expand(-1, 2, -1, -1))
    pad, scale = torch.tensor([0, 5, 36]), (nope + rope) ** -0.5
    got = ops.causal_attention(q, k, v, pad, scale)
    want = definition(torch.cat(q, -1), torch.cat(k, -1), v, pad, scale)
    assert got.dtype == dtype and torch.isfinite(got).all()
    real = want.isfinite()
    bound = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 3e-2)
    assert (got.double() - want)[real].abs().max() <= bound * want[real].abs().max()


@pytest.mark.parametrize("first", [True, False], ids=["prompt", "second chunk"])
@pytest.mark.parametrize("name", ["full", "plain"])
def test_no_tensor_has_the_scores_of_all_heads(name: str, first: bool) -> None:
    model = random_model(PLANS[name])
    ids = torch.randint(CONFIG.vocab_size, (1, 1024), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(1, 1032)
    model(ids[:, :8], cache=cache)
    if first:
        cache.reset()
    with Largest() as largest:
        model(ids, cache=cache)
    scores = CONFIG.num_attention_heads * ids.shape[1] ** 2
    if name == "plain":
        assert largest.elements >= scores  # what the other form saves is there
    elif first:  # no mask either
        assert largest.elements < ids.shape[1] ** 2, largest.of
    else:
        assert largest.elements < scores, largest.of


@pytest.mark.parametrize("chunk", [1, 4, 5, 12, 99])
@pytest.mark.parametrize("name", PLANS)
def test_chunks_are_the_whole(name: str, chunk: int) -> None:
    """The last logits, the cache, and cached steps after it; a chunk may be all padding."""
    model = random_model(PLANS[name])
    ids = torch.randint(CONFIG.vocab_size, (3, 14), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :5] = mask[2, :11] = 0
    whole, parts = model.new_cache(3, 16), model.new_cache(3, 16)
    want = model(ids[:, :12], mask[:, :12], whole)[:, -1]
    got = model.prefill(ids[:, :12], mask[:, :12], parts, chunk)[:, -1]
    bound = 1e-5 * want.abs().max()
    assert (got - want).abs().max() <= bound
    assert (whole.length, whole.slot.tolist()) == (parts.length, parts.slot.tolist())
    for step in (12, 13):
        token = ids[:, step : step + 1].contiguous()
        assert (model(token, cache=parts) - model(token, cache=whole)).abs().max() <= bound


def test_a_prompt_goes_into_an_empty_cache_only() -> None:
    model = random_model(PortPlan.full())
    cache = model.new_cache(1, 16)
    ids = torch.arange(8).view(1, 8)
    model(ids[:, :2], cache=cache)
    with pytest.raises(PortError, match="holds 2 positions already"):
        model.prefill(ids, None, cache, 4)
    with pytest.raises(PortError, match="do not fit"):
        model.prefill(ids.repeat(1, 3), None, model.new_cache(1, 16), 4)


def test_another_way_to_write_meets_the_whole_cache() -> None:
    """What `write` returns may be a new tensor; a narrowed cache would lose it."""
    model = random_model(PortPlan.full())
    ids = torch.arange(12).view(1, 12)
    want = model(ids, cache=model.new_cache(1, 16))
    model.write = lambda buffer, new, slot: write_at_slot(buffer.clone(), new, slot)
    got = model.prefill(ids, None, model.new_cache(1, 16), 5)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.slow
def test_a_graph_meets_two_shapes() -> None:
    model = random_model(PortPlan.full(), SHORT)
    ids = torch.arange(14).view(1, 14) % CONFIG.vocab_size
    want = model(ids, cache=model.new_cache(1, 16))
    compile_steps(model, "ge")
    torch._dynamo.utils.counters.clear()
    got = model.prefill(ids, None, model.new_cache(1, 16), 4)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_generated_text_is_the_same_by_chunks() -> None:
    model, tokenizer = load_model(TINY), load_tokenizer(TINY)
    prompts = ["Once there was a", "The dog", "Anna has a red ball and a"]

    def text(**chunks: int) -> list[list[int]]:
        return [g.token_ids for g in generate(model, tokenizer, prompts, 12, **chunks)]

    assert text() == text(prefill_chunk=3) == text(prefill_chunk=1)


def spied(model: DeepseekV3, seen: list[tuple[int, ...]]) -> Callable[..., Tensor]:
    def run_step(ids: Tensor, *rest: Any) -> Tensor:
        seen.append(tuple(ids.shape))
        return model.forward_step(ids, *rest)

    return run_step


def test_the_setting_reaches_the_model() -> None:
    model, tokenizer = load_model(TINY), load_tokenizer(TINY)
    seen: list[tuple[int, ...]] = []
    model.run_step = spied(model, seen)
    generate(model, tokenizer, ["Once there was a small dog"], 1, prefill_chunk=4)
    assert seen[0][1] <= 4 and {shape[1] for shape in seen[1:]} == {4}

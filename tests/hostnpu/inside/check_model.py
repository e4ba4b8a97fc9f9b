"""The whole model on device npu, eager: every step alone and together, prefill and decode, against
device cpu.

The CPU has kernels of its own for speed (fused attention, turned products); with those set aside
both devices compute with the same kernels, and logits and caches are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import STEPS, PortPlan, generate, load_model, load_tokenizer, ops
from dsv3_port.count.captured import load
from dsv3_port.hostnpu import kernels as host
from dsv3_port.ops.cpu import plain_products

TINY = Path(__file__).parents[3] / "data" / "tiny-dsv3"
MODEL_STEPS = [s.id for s in STEPS if s.field != "graph"]
PLANS = {
    "upstream": PortPlan.upstream(),
    "full": PortPlan.full(),
    **{f"up to {i}": PortPlan.upto(i) for i in MODEL_STEPS},
    **{f"only {i}": PortPlan.with_steps(i) for i in MODEL_STEPS},
}
LENGTH, STEPS_MADE = 12, 6


@pytest.fixture(autouse=True)
def same_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The forms of the NPU on the CPU, too."""

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        scores = (q @ k.transpose(-1, -2)).float() * scale
        return (scores if mask is None else scores + mask).softmax(-1).to(q.dtype) @ v

    monkeypatch.setattr(ops, "attention", attention)
    monkeypatch.setattr(ops, "prompt_without_mask", lambda device: False)
    with plain_products():
        yield


def run(
    plan: PortPlan, device: str, dtype: str, layers: int | None
) -> tuple[list[Tensor], list[Tensor], int]:
    """Logits of a left-padded prefill and of decode steps with given tokens, the cache's tensors,
    kernels launched."""
    model = load(TINY, plan, device, dtype, layers)
    ids = torch.randint(
        3,
        model.config.vocab_size,
        (2, LENGTH + STEPS_MADE),
        generator=torch.Generator().manual_seed(4),
    ).to(device)
    mask = torch.ones(2, LENGTH, dtype=torch.long, device=device)
    mask[0, :5] = 0
    before = host.calls["kernel"]
    cache = model.new_cache(2, LENGTH + STEPS_MADE)
    logits = [model(ids[:, :LENGTH], mask, cache)]
    logits += [model(ids[:, i : i + 1], cache=cache) for i in range(LENGTH, LENGTH + STEPS_MADE)]
    return (
        [x.cpu() for x in logits],
        [x.cpu() for x in tensors(cache)],
        host.calls["kernel"] - before,
    )


def tensors(value: Any) -> list[Tensor]:
    """All tensors in an object's attributes, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors(v)]
    if isinstance(value, dict):
        return tensors(list(value.values()))
    return tensors(vars(value)) if type(value).__module__.startswith("dsv3_port") else []


def check(plan: PortPlan, dtype: str, layers: int | None = None) -> None:
    logits, cache, launched = run(plan, "npu", dtype, layers)
    wanted, wanted_cache, none = run(plan, "cpu", dtype, layers)
    assert launched > 100 and none == 0
    for got, want in zip(logits, wanted, strict=True):
        assert torch.equal(got, want)
    assert len(cache) == len(wanted_cache) > 0
    for got, want in zip(cache, wanted_cache, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("plan", ["upstream", "full"])
def test_logits_and_cache_are_equal_to_the_last_bit(plan: str, dtype: str) -> None:
    check(PLANS[plan], dtype)


@pytest.mark.parametrize("plan", PLANS)
def test_every_step(plan: str) -> None:
    """In a dense layer and one of experts."""
    check(PLANS[plan], "float16", layers=2)


def test_text_is_the_same() -> None:
    tokenizer = load_tokenizer(TINY)
    texts = []
    for device in ("npu", "cpu"):
        model = load_model(TINY, PortPlan.full().replace(graph="eager"), device, "float32")
        texts.append(
            [g.token_ids for g in generate(model, tokenizer, ["Once upon a time", "The"], 64)]
        )
    assert texts[0] == texts[1] and len(texts[0][0]) > 1

"""A decode step that reads what is filled: the option of the plan, as it is on a CPU and through the
operator that a GPU has kernels for (which tests/ops/test_triton_decode.py is about)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from dsv3_port import PortPlan
from dsv3_port.check.gate import stressed, strict_gate
from dsv3_port.count.compiled import eager_prefill
from dsv3_port.engine.graph import compile_steps
from dsv3_port.engine.loading import with_plan
from dsv3_port.errors import PortError
from dsv3_port.model import decoder
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.model.visible import visible_keys
from dsv3_port.ops import products
from dsv3_port.ops.split_attention import decode_attention_op
from tests.random_models import CONFIG, random_model

FULL = PortPlan.full()
SPLIT = FULL.replace(decode_attention="split")
LENGTHS = (11, 4, 7)  # of the prompts; left-padded to the first
NEW = 4


@pytest.fixture(scope="module")
def model() -> DeepseekV3:
    return random_model(FULL)


@pytest.fixture
def seen() -> Iterator[list[Any]]:
    """What the operator was called with, in a model whose device has it."""
    calls: list[Any] = []

    def form(*given: Any) -> Tensor:
        calls.append(given)
        found: Tensor = decode_attention_op(*given)
        return found

    with mock.patch.dict(products.DECODE_ATTENTION, {"cpu": form}):
        yield calls


def run(model: DeepseekV3, room: int = 40) -> Tensor:
    """Logits after padded prompts and after each cached step [B, 1 + NEW, V], in a buffer that stays
    partly empty."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, CONFIG.vocab_size, (len(LENGTHS), LENGTHS[0] + NEW), generator=generator)
    mask = torch.ones_like(ids[:, : LENGTHS[0]])
    for row, length in enumerate(LENGTHS):
        mask[row, : LENGTHS[0] - length] = 0
    cache = model.new_cache(len(LENGTHS), room)
    logits = [model(ids[:, : LENGTHS[0]], mask, cache)]
    for at in range(LENGTHS[0], ids.shape[1]):
        logits.append(model(ids[:, at : at + 1], cache=cache))
    return torch.cat(logits, 1)


def test_no_bit_changes_on_a_cpu(model: DeepseekV3) -> None:
    assert torch.equal(run(with_plan(model, SPLIT)), run(model))


def test_a_decode_step_makes_no_mask_and_asks_the_operator(
    model: DeepseekV3, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = run(model)
    made: list[int] = []
    added = decoder.added
    monkeypatch.setattr(decoder, "added", lambda v: made.append(v.shape[1]) or added(v))
    torch.testing.assert_close(run(with_plan(model, SPLIT)), wanted, rtol=1e-5, atol=1e-5)
    assert not made and len(seen) == NEW * CONFIG.num_hidden_layers
    for step, (q, rows, pad, slot, scale, latent) in enumerate(seen[:: CONFIG.num_hidden_layers]):
        assert q.shape == (3, 4, 1, 24) and rows.shape == (3, 40, 24) and latent == 16
        assert pad.tolist() == [LENGTHS[0] - n for n in LENGTHS]
        # the tensors that every step shares: a capture keeps their addresses
        assert pad.data_ptr() == seen[0][2].data_ptr() and slot.data_ptr() == seen[0][3].data_ptr()
        assert scale == CONFIG.softmax_scale, step


@pytest.mark.parametrize("change", ["pad", "slot behind", "slot before"])
def test_a_wrong_end_or_pad_is_seen(model: DeepseekV3, change: str) -> None:
    """The gate, so that a GPU's kernels are held to the same."""

    def form(q: Tensor, rows: Tensor, pad: Tensor, slot: Tensor, *rest: Any) -> Tensor:
        pad = torch.zeros_like(pad) if change == "pad" else pad
        slot = slot + {"slot behind": 1, "slot before": -1}.get(change, 0)
        found: Tensor = decode_attention_op(q, rows, pad, slot, *rest)
        return found

    twin = with_plan(model, SPLIT)
    with mock.patch.dict(products.DECODE_ATTENTION, {"cpu": form}):
        assert not strict_gate(model, twin)
    assert strict_gate(model, twin)


def test_under_stress(model: DeepseekV3, seen: list[Any]) -> None:
    assert strict_gate(stressed(model), stressed(with_plan(model, SPLIT))) and seen


def test_a_mask_of_ones_own_is_taken(model: DeepseekV3, seen: list[Any]) -> None:
    """What a learner writes says which keys are seen, whatever the plan reads."""
    twin = with_plan(model, SPLIT)
    twin.visible = visible_keys
    torch.testing.assert_close(run(twin), run(model))
    assert not seen


def test_compiled_it_is_one_graph() -> None:
    """By inductor, a single decode step of one layer: the operator is opaque to it."""
    one = random_model(FULL, CONFIG.replace(num_hidden_layers=1))
    wanted = run(one)
    twin = eager_prefill(compile_steps(with_plan(one, SPLIT), "ge"))
    with mock.patch.dict(products.DECODE_ATTENTION, {"cpu": decode_attention_op}):
        torch.testing.assert_close(run(twin), wanted, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_be_is_refused() -> None:
    with pytest.raises(PortError, match="'split' reads latent rows: it needs attention 'low_rank'"):
        PortPlan(decode_attention="split")
    for plan in (PortPlan.upto("9"), PortPlan.production().replace(mla_prolog=True)):
        with pytest.raises(PortError, match="'split' reads one buffer, and cache 'paged'"):
            plan.replace(decode_attention="split")
    with pytest.raises(PortError, match="decode_attention is 'triton'; it can be 'products' or"):
        PortPlan(decode_attention="triton")

"""Mistakes on purpose are silent, wrong, and gone afterwards."""

from __future__ import annotations

from pathlib import Path

import torch

from dsv3_port import generate, load_model, load_tokenizer, ops
from dsv3_port.check.broken import refused_kept, row_major_row_idx, up_before_gate
from dsv3_port.plan import PortPlan
from tests.random_models import random_model

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"


def test_row_major_row_idx_hides_at_one_token():
    model = random_model(PortPlan.with_steps("gmm_routing"))
    one, many = torch.randint(90, (1, 1)), torch.randint(90, (1, 12))
    right = {ids: model(ids) for ids in (one, many)}
    operator = ops.npu_moe_init_routing
    with row_major_row_idx():
        assert torch.equal(model(one), right[one])
        assert (model(many) - right[many]).abs().max() > 0.05 * right[many].abs().max()
    assert ops.npu_moe_init_routing is operator and torch.equal(model(many), right[many])


def test_up_before_gate_spoils_every_kind_of_mlp():
    ids = torch.randint(90, (1, 12))
    for plan in (PortPlan.with_steps("merged_mlp"), PortPlan.full()):
        model = random_model(plan)
        right, weights = model(ids), {n: p.clone() for n, p in model.named_parameters()}
        with up_before_gate(model):
            changed = {n for n, p in model.named_parameters() if not torch.equal(p, weights[n])}
            assert (model(ids) - right).abs().max() > 0.05 * right.abs().max()
        assert (
            changed == {n for n in weights if "merge_up_gate_proj" in n or "group_w1_w3" in n}
            and changed
        )
        assert torch.equal(model(ids), right)


def test_a_refused_position_that_stays_spoils_what_follows():
    """Nothing before it; and the model that it was made from gives its positions back as before."""
    model, tokenizer = (
        load_model(TINY, PortPlan.upto("mtp"), "cpu", "float32"),
        load_tokenizer(TINY),
    )
    prompts = ["Once upon a time Mira lived near the river.", "The spoon", "Once"]
    right = generate(model, tokenizer, prompts, 41)
    wrong = generate(refused_kept(model), tokenizer, prompts, 41)
    assert any(0 in a.accepted for a in right)
    for a, b in zip(right, wrong, strict=True):
        steps = a.accepted.index(0) if 0 in a.accepted else len(a.accepted)
        assert a.token_ids[: 2 + 2 * steps] == b.token_ids[: 2 + 2 * steps]
    assert any(a.token_ids != b.token_ids for a, b in zip(right, wrong, strict=True))
    again = generate(model, tokenizer, prompts, 41)
    assert [g.token_ids for g in again] == [g.token_ids for g in right]

"""Mistakes on purpose are silent, wrong, and gone afterwards."""

from __future__ import annotations

import torch

from dsv3_port import ops
from dsv3_port.check.broken import row_major_row_idx, up_before_gate
from dsv3_port.plan import PortPlan
from tests.random_models import random_model


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

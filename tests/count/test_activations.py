"""Inputs of modules and load of experts, seen through hooks that leave nothing behind."""

from __future__ import annotations

import pytest
import torch

from dsv3_port.count.activations import expert_load, module_args, module_call
from dsv3_port.errors import PortError
from dsv3_port.plan import PortPlan
from tests.random_models import CONFIG, random_model

GATE = "model.layers.1.mlp.gate"


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_module_gets_its_arguments_and_can_be_called_alone():
    model, ids = random_model(PortPlan.full()), torch.randint(90, (2, 5))
    (x,) = module_args(model, ids, GATE)
    assert x.shape == (10, CONFIG.hidden_size)
    chosen, weights = module_call(model, ids, GATE)()
    want, _ = model.get_submodule(GATE)(x)
    assert torch.equal(chosen, want) and not weights.requires_grad
    rows, picked, scale, shared = module_args(model, ids, "model.layers.1.mlp.experts")
    assert rows.shape == shared.shape and picked.shape == scale.shape and hooks(model) == 0


def test_a_compiled_model_is_run_eagerly_and_gets_its_step_back():
    model = random_model(PortPlan.full())
    model.run_step = compiled = lambda *args: pytest.fail("the compiled step ran")
    module_args(model, torch.randint(90, (1, 3)), GATE)
    assert model.run_step is compiled


def test_unknown_module():
    with pytest.raises(PortError, match="no module 'model.layers.9'"):
        module_args(
            random_model(PortPlan.full()), torch.zeros(1, 1, dtype=torch.int64), "model.layers.9"
        )


def test_expert_load_counts_every_choice_of_real_tokens_only():
    model, ids = random_model(PortPlan.upstream()), torch.randint(90, (2, 6))
    load = expert_load(model, ids)
    assert load.shape == (2, CONFIG.n_routed_experts)
    assert load.sum(1).tolist() == [12 * CONFIG.num_experts_per_tok] * 2
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    padded = expert_load(model, ids, mask)
    assert padded.sum(1).tolist() == [8 * CONFIG.num_experts_per_tok] * 2 and hooks(model) == 0
    alone = expert_load(model, ids[:1]) + expert_load(model, ids[1:, 4:])
    assert torch.equal(padded, alone)


def test_expert_load_needs_experts():
    with pytest.raises(PortError, match="no MoE layer"):
        expert_load(
            random_model(PortPlan.full(), CONFIG.replace(first_k_dense_replace=3)),
            torch.zeros(1, 1).long(),
        )

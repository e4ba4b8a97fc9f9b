"""Calls of npu_mla_prolog_v3 that nothing refuses: what the gate sees of them, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsv3_port import PortPlan, load_model, ops
from dsv3_port.check.gate import strict_gate
from dsv3_port.check.prolog_traps import PROLOG_TRAPS, SIN, prolog_trap
from dsv3_port.engine.loading import with_plan
from dsv3_port.errors import PortError
from dsv3_port.paths import tiny

PAGED = PortPlan.upto("paged_cache")


def test_the_gate_sees_two_of_three() -> None:
    single = load_model(tiny(), PAGED, "cpu", "float32")
    right = with_plan(single, PAGED.replace(mla_prolog=True))
    seen = {name: bool(strict_gate(single, prolog_trap(right, name))) for name in PROLOG_TRAPS}
    assert seen == {
        "cos before sin": False,
        "a slot one behind": False,
        "the operator's own epsilons": True,
    }
    assert strict_gate(single, right)  # which was left alone


def test_each_trap_is_what_its_name_says(monkeypatch) -> None:
    """What reaches the operator, beside the right call."""
    model = load_model(tiny(), PAGED.replace(mla_prolog=True), "cpu", "float32")
    calls: list[tuple[list[torch.Tensor], dict[str, Any]]] = []

    def recorded(*tensors: torch.Tensor, **given: Any) -> Any:
        calls.append(([t.clone() for t in tensors[:9]], given))
        return real(*tensors, **given)

    real = ops.npu_mla_prolog_v3
    monkeypatch.setattr(ops, "npu_mla_prolog_v3", recorded)
    for one in (model, *(prolog_trap(model, name) for name in PROLOG_TRAPS)):
        cache = one.new_cache(1, 8)
        one(torch.tensor([[5, 6, 7]]), cache=cache)
        one(torch.tensor([[8]]), cache=cache)
    layers = model.config.num_hidden_layers
    assert len(calls) == 4 * layers
    (right, given), cos, slot, default = calls[::layers]
    for tensors, _ in (slot, default):
        assert all(map(torch.equal, tensors, right))
    assert torch.equal(cos[0][SIN], right[SIN + 1]) and torch.equal(cos[0][SIN + 1], right[SIN])
    assert torch.equal(slot[1]["cache_index"], given["cache_index"] - 1)
    epsilons = {"rmsnorm_epsilon_cq", "rmsnorm_epsilon_ckv"}
    assert given.keys() - default[1].keys() == epsilons and given["rmsnorm_epsilon_cq"] == 1e-6


def test_what_it_takes() -> None:
    model = load_model(tiny(), PAGED.replace(mla_prolog=True), "cpu", "float32")
    with pytest.raises(PortError, match="it takes cos before sin, a slot one behind"):
        prolog_trap(model, "nothing")
    with pytest.raises(PortError, match="a plan with mla_prolog"):
        prolog_trap(with_plan(model, PAGED), PROLOG_TRAPS[0])

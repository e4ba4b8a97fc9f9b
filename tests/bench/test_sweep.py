"""Shared weights are the very same memory, and a sweep's records say what was timed."""

from __future__ import annotations

import time

import pytest
import torch

from dsv3_port.bench.sweep import sweep
from dsv3_port.bench.workload import decode_call
from dsv3_port.engine.loading import with_plan
from dsv3_port.errors import PortError
from dsv3_port.plan import PortPlan
from tests.random_models import random_model


def test_with_plan_shares_memory_and_agrees():
    model = random_model(PortPlan.upto("merged_mlp"))
    twin = with_plan(model, PortPlan.full())
    ours, theirs = dict(model.named_parameters()), dict(twin.named_parameters())
    assert ours.keys() == theirs.keys() and twin.plan == PortPlan.full()
    assert all(ours[n].data_ptr() == theirs[n].data_ptr() for n in ours)
    ids = torch.randint(model.config.vocab_size, (2, 7))
    assert torch.allclose(model(ids)[:, -1:], twin(ids), atol=1e-5, rtol=1e-5)


def test_with_plan_refuses_another_layout():
    with pytest.raises(PortError, match="do not share weights"):
        with_plan(random_model(PortPlan.upstream()), PortPlan.with_steps("mla_low_rank"))


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_sweep_records(phase):
    model = random_model(PortPlan.full())
    models = {"a": model, "b": with_plan(model, PortPlan.full().minus("add_rms_norm"))}
    step = models["b"].forward_step
    models["b"].run_step = lambda *inputs: step(*inputs)  # as a compiled step stands there
    results = sweep(models, [3, 6], phase=phase, batch=2, rounds=2, profile="test")
    field = "context" if phase == "decode" else "tokens"
    assert [(r.name, getattr(r, field)) for r in results] == [
        ("a", 3),
        ("b", 3),
        ("a", 6),
        ("b", 6),
    ]
    assert {(r.name, r.mode) for r in results} == {("a", "eager"), ("b", "compiled")}
    assert {r.phase for r in results} == {phase} and {r.batch for r in results} == {2}
    assert results.select(name="b").records[0].step_ids == models["b"].plan.step_ids
    assert results.select(**{field: 3}).ratio("a", "b").median > 0


def test_the_first_call_of_a_compiled_model_is_the_checks():
    """What compiles, compiles before anything is timed: the record says how long that took. A tape is
    not compiled, and its record says so."""
    model = random_model(PortPlan.full())
    twin, slept = with_plan(model, model.plan), []

    def run_step(*inputs):
        if not inputs[3] and not slept:  # the first cached step
            slept.append(time.sleep(0.5))
        return twin.forward_step(*inputs)

    twin.run_step = run_step
    models = {"a": model, "b": twin}
    b = sweep(models, [3], rounds=2).get("b")
    assert b.mode == "compiled" and b.first_call_seconds > 0.5 > b.max
    slept.clear()
    b = sweep(models, [3], rounds=2, mode={"a": "eager", "b": "replayed"}).get("b")
    assert b.mode == "replayed" and b.first_call_seconds < 0.5


def test_sweep_refuses():
    model = random_model(PortPlan.full())
    for arguments, text in (
        ({"sizes": []}, "positive"),
        ({"sizes": [4], "room": 4}, "leaves no place"),
        ({"sizes": [4], "phase": "training"}, "unknown phase"),
    ):
        with pytest.raises(PortError, match=text):
            sweep({"a": model}, **arguments)


def test_sweep_times_nothing_that_differs():
    model = random_model(PortPlan.full())
    other = random_model(PortPlan.full())
    with torch.no_grad():
        other.lm_head.weight.add_(1.0)
    with pytest.raises(PortError, match="nothing was timed"):
        sweep({"a": model, "b": other}, [4])


def test_decode_call_adds_a_position_each_time():
    call = decode_call(random_model(PortPlan.full()), 5, batch=2, spare=2)
    first, second = call(), call()
    assert first.shape[:2] == (2, 1) and not torch.equal(first, second)
    with pytest.raises(PortError, match="cache holds 7"):
        call()

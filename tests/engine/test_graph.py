"""Graph modes away from the NPU: what each device accepts, and what blocks a plan. On npu:
tests/hostnpu/inside."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3_port import PortPlan, load_model
from dsv3_port.count import compiled as graphs
from dsv3_port.engine.graph import RECOMPILE_LIMITS, compile_steps
from dsv3_port.engine.graph import graph_blockers as blockers_of
from dsv3_port.engine.torchair import NPU_BACKENDS, OPTIONS, backend_options
from dsv3_port.errors import PortError
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.steps import STEPS
from tests.random_models import CONFIG, random_model

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"


@pytest.mark.parametrize("mode", ["npugraph_ex", "reduce-overhead", "max"])
def test_modes_of_the_npu_are_refused_elsewhere(mode: str) -> None:
    model = load_model(TINY, PortPlan.full(), "cpu")
    with pytest.raises(PortError, match=f"'{mode}' does not exist on device 'cpu'"):
        compile_steps(model, mode)


def test_blockers_name_the_step_that_helps() -> None:
    assert [b.split("(step ")[1].split("'")[1] for b in blockers_of(PortPlan.upstream())] == [
        "gmm_routing",
        "fixed_kv_cache",
    ]
    for step in STEPS:
        rest = PortPlan.full().minus(step.id) if step.field != "graph" else PortPlan.full()
        assert bool(blockers_of(rest)) == (step.id in ("gmm_routing", "fixed_kv_cache"))
    with pytest.raises(PortError, match="growing cache"):
        compile_steps(load_model(TINY, PortPlan.full().minus("fixed_kv_cache"), "cpu"), "ge")


def test_recompile_limits_are_raised_once_for_all() -> None:
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=4096):
        compile_steps(load_model(TINY, PortPlan.full(), "cpu"), "ge")
        assert torch._dynamo.config.recompile_limit == RECOMPILE_LIMITS["recompile_limit"]
        assert torch._dynamo.config.accumulated_recompile_limit == 4096  # never lowered
    assert graphs.RECOMPILE_LIMITS is RECOMPILE_LIMITS


@pytest.mark.parametrize("backend", NPU_BACKENDS)
def test_options_of_a_backend(backend: str) -> None:
    options = backend_options(backend, {"mine": 1})
    assert options["mine"] == 1 and "" not in options and len(options) > 2
    assert all(o.why and o.source for o in OPTIONS)


def test_models_shapes_and_caches_are_kept_apart_with_few_guards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guards on the model are dropped, so nothing but its own compiled step may run for it:
    other weights, another number of experts a token, another cache each give what eager gives."""
    compiled, kept = torch.compile, []

    @functools.wraps(compiled)  # with its signature, which compile_steps looks at
    def compile_(function: Any, *, options: dict[str, Any], **settings: Any) -> Any:
        def keep(entries: Any) -> list[bool]:
            kept.append(sum(flags := options["guard_filter_fn"](entries)))
            return flags

        return compiled(function, backend="eager", options={"guard_filter_fn": keep}, **settings)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compile_)
    config = CONFIG.replace(num_hidden_layers=1, first_k_dense_replace=0)
    models = [
        random_model(PortPlan.full(), config),
        random_model(PortPlan.full(), config.replace(num_experts_per_tok=1), seed=1),
    ]
    ids = torch.randint(CONFIG.vocab_size, (1, 6))

    def steps(model: DeepseekV3, room: int) -> torch.Tensor:
        cache = model.new_cache(1, room)
        return torch.cat([model(ids[:, :5], cache=cache), model(ids[:, 5:], cache=cache)], 1)

    rooms = [8, 12, 8]
    wanted = [[steps(model, room) for room in rooms] for model in models]
    for model in models:
        compile_steps(model, "ge")
    got = [[steps(model, room) for model in models] for room in rooms]  # models take turns
    for i in range(len(models)):
        for k in range(len(rooms)):
            torch.testing.assert_close(got[k][i], wanted[i][k])
    assert (
        len(kept) == 2 * 2 * len(models) and max(kept) < 60
    )  # one graph for each phase and size, never again

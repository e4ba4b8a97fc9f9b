"""What goes into one model by an attribute changes that model and no twin of it, eager and compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import PortError, PortPlan, load_model, ops
from dsv3_port.bench.models import with_plan
from dsv3_port.count.operators import count_ops
from dsv3_port.engine.graph import compile_steps
from dsv3_port.model.cache import write_at_slot
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.model.visible import visible_keys
from dsv3_port.parallel import TensorParallel, parts_side_by_side
from tests.random_models import CONFIG, random_model

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
IDS = torch.randint(CONFIG.vocab_size, (3, 10), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS).index_put(
    (torch.tensor([1, 1, 2]), torch.tensor([0, 1, 0])), torch.tensor(0)
)


def run(model: DeepseekV3, room: int = 16) -> Tensor:
    """Logits of a padded prompt and of two cached steps."""
    cache = model.new_cache(3, room)
    out = [model(IDS[:, :8], MASK[:, :8], cache)[:, -1:]]
    out += [model(IDS[:, i : i + 1].contiguous(), cache=cache) for i in (8, 9)]
    return torch.cat(out, 1)


def both(inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Another result of the same shape."""
    return lambda *args: 0.5 * inner(*args)


def absorbed(model: DeepseekV3) -> None:
    at = model.model.layers[-1].self_attn
    at.absorbed = both(at.absorbed)


def turn(model: DeepseekV3) -> None:
    model.model.layers[-1].self_attn.turn = lambda x, cos, sin, interleaved: x


def route(model: DeepseekV3) -> None:
    at = model.model.layers[-1].mlp.experts
    at.route = both(at.route)


def group_mask(model: DeepseekV3) -> None:
    model.model.layers[-1].mlp.gate.group_mask = lambda scores, chosen: torch.ones_like(scores)


def write(model: DeepseekV3) -> None:
    model.write = lambda buffer, new, slot: write_at_slot(buffer, 0.5 * new, slot)


def visible(model: DeepseekV3) -> None:
    model.visible = lambda slot, new, keys, pad: visible_keys(slot, new, keys, 0 * pad)


def keep(model: DeepseekV3) -> None:
    model.keep = lambda hidden: hidden[:, :1]


def add_norm(model: DeepseekV3) -> None:
    norm = model.model.layers[-1].post_attention_layernorm
    inner = norm.add_norm
    norm.add_norm = lambda residual, *args: inner(0.5 * residual, *args)


HOOKS = (absorbed, turn, route, group_mask, write, visible, keep, add_norm)


@pytest.mark.parametrize("attach", HOOKS, ids=lambda f: f.__name__)
def test_one_twin_differs_and_the_other_does_not(attach: Callable[[DeepseekV3], None]) -> None:
    model = random_model(PortPlan.full())
    want = run(model)
    twin = with_plan(model, model.plan)
    attach(twin)
    assert not torch.allclose(run(twin), want, rtol=1e-3)
    assert torch.equal(run(model), want)
    assert torch.equal(run(with_plan(twin, twin.plan)), want)  # a new twin has the finished code


def test_a_product_of_int8_is_a_twins_own() -> None:
    plan = PortPlan.full().replace(quant="w8a8")
    model = load_model(TINY, plan, "cpu", "float32")
    want = run(model)
    twin = with_plan(model, plan)
    at = twin.model.layers[-1].self_attn.o_proj
    at.int8_linear = both(at.int8_linear)
    assert not torch.allclose(run(twin), want, rtol=1e-3) and torch.equal(run(model), want)
    assert torch.equal(run(with_plan(twin, plan)), want)


def test_what_stands_for_npu_mla_prolog_is_a_twins_own() -> None:
    plan = PortPlan.upto("9").replace(mla_prolog=True)
    model = load_model(TINY, plan, "cpu", "float32")
    want = run(model)
    twin = with_plan(model, plan)

    def smaller(*tensors: Tensor, **more: Any) -> list[Tensor]:
        query, *others = ops.npu_mla_prolog_v3(*tensors, **more)
        return [0.5 * query, *others]

    twin.model.layers[-1].self_attn.mla_prolog = smaller
    got = run(twin)
    assert not torch.allclose(got, want, rtol=1e-3) and torch.equal(run(model), want)
    assert torch.equal(got[:, :1], want[:, :1])  # prompts keep their own operators
    assert torch.equal(run(with_plan(twin, plan)), want)


def test_compiled_twins_keep_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for each of the two phases, whatever is attached."""
    graphs: list[object] = []

    def backend(module: torch.fx.GraphModule, _: object) -> object:
        graphs.append(module)
        return module.forward

    compiled = torch.compile

    @functools.wraps(compiled)  # with its signature, which compile_steps looks at
    def compile_(function: Any, *, options: dict[str, Any], **settings: Any) -> Any:
        few = {"guard_filter_fn": options["guard_filter_fn"]}
        return compiled(function, backend=backend, options=few, **settings)

    monkeypatch.setattr(torch, "compile", compile_)
    torch._dynamo.reset()
    config = CONFIG.replace(num_hidden_layers=1, first_k_dense_replace=0)
    model = random_model(PortPlan.full(), config)
    twin = with_plan(model, model.plan)
    for attach in HOOKS:
        attach(twin)
    wanted = run(model), run(twin)
    compile_steps(model, "ge")
    compile_steps(twin, "ge")
    got = run(model), run(twin)
    torch.testing.assert_close(got[0], wanted[0])
    torch.testing.assert_close(got[1], wanted[1])
    assert len(graphs) == 4


def test_the_finished_forms_through_the_hooks_give_the_same_bits() -> None:
    # with a mask in both: a prompt of the finished code has none elsewhere
    model = random_model(PortPlan.full().replace(prefill_attention="plain"))
    twin = with_plan(model, model.plan)
    twin.visible, twin.write = visible_keys, write_at_slot
    assert torch.equal(run(twin), run(model))


def test_a_write_that_makes_a_new_tensor_is_kept() -> None:
    """Right text, other addresses: the buffer is the one that was handed back."""
    model = random_model(PortPlan.full())
    twin = with_plan(model, model.plan)
    twin.write = lambda buffer, new, slot: write_at_slot(buffer.clone(), new, slot)
    cache = twin.new_cache(3, 16)
    before = [t.data_ptr() for layer in cache.buffers for t in layer]
    twin(IDS[:, :8], MASK[:, :8], cache)
    assert before != [t.data_ptr() for layer in cache.buffers for t in layer]
    assert torch.equal(run(twin), run(model))


def test_hooks_cost_no_operator() -> None:
    """A step of the ladder's last eager rung: what is counted in the notebooks and recorded."""
    model = load_model(TINY, PortPlan.full(), "cpu", "float32")
    cache = model.new_cache(1, 16)
    model(IDS[:1, :4], cache=cache)
    counted = count_ops(lambda: model(IDS[:1, 4:5], cache=cache))
    assert sum(counted.values()) == 204  # as before there were hooks


def parts(world: int) -> Tensor:
    return torch.arange(world * 3 * 2 * 5.0).view(world * 3, 2, 5)


def test_ranks_arrange_by_their_own_function() -> None:
    flat = parts(2)
    right = parts_side_by_side(flat, 2)
    assert right.shape == (3, 2, 10)
    assert torch.equal(right, torch.cat((flat[:3], flat[3:]), -1))
    mine = TensorParallel(0, 1, arrange=lambda flat, world: flat.reshape(3, 2, 10))
    assert mine == TensorParallel(0, 1)  # a place, whatever orders its parts
    assert not torch.equal(mine.arrange(flat, 2), right)


def narrow(weight: Tensor, axis: int, unit: int, rank: int, world: int) -> Tensor:
    units = weight.shape[axis] // unit
    assert units * unit == weight.shape[axis] and units % world == 0
    return weight.narrow(axis, rank * units // world * unit, units // world * unit)


def pack(gate: Tensor, up: Tensor, rank: int, world: int) -> Tensor:
    return torch.cat((gate.chunk(world)[rank], up.chunk(world)[rank]))


@pytest.mark.parametrize("rank", [0, 1])
def test_cut_and_pack_of_the_loader(rank: int) -> None:
    parallel, plan = TensorParallel(rank, 2), PortPlan.full()
    want = load_model(TINY, plan, "cpu", "float32", parallel)
    calls: list[tuple[int, int, int]] = []

    def counted(weight: Tensor, axis: int, unit: int, rank: int, world: int) -> Tensor:
        calls.append((axis, unit, world))
        return narrow(weight, axis, unit, rank, world)

    got = load_model(TINY, plan, "cpu", "float32", parallel, cut=counted, pack=pack)
    for (name, a), (_, b) in zip(want.named_parameters(), got.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    c = want.config
    head = c.qk_nope_head_dim + c.v_head_dim
    assert {(0, 1, 2), (1, c.v_head_dim, 2), (0, c.qk_head_dim, 2), (0, head, 2)} <= set(calls)

    def strided(weight: Tensor, axis: int, unit: int, rank: int, world: int) -> Tensor:
        return weight if axis else weight[rank::world]

    with pytest.raises(PortError, match=r"cut gave \[.*\] for model.*rank . of 2 holds"):
        load_model(TINY, plan, "cpu", "float32", parallel, cut=strided)
    other = load_model(
        TINY,
        plan,
        "cpu",
        "float32",
        parallel,
        pack=lambda g, u, rank, world: pack(u, g, rank, world),
    )
    merged = [n for n, p in other.named_parameters() if not torch.equal(p, want.get_parameter(n))]
    assert {n.rpartition(".")[2] for n in merged} == {"weight", "group_w1_w3"}
    assert all("merge_up_gate" in n or "group_w1_w3" in n for n in merged)
    with pytest.raises(PortError, match="pack gave"):
        load_model(
            TINY, plan, "cpu", "float32", parallel, pack=lambda g, u, r, w: torch.cat((g, u))
        )

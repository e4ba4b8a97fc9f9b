"""The mapping table: every plan and every world size, each published value in exactly one place of
the ranks."""

from __future__ import annotations

import itertools

import pytest
import torch

from dsv3_port import DeepseekV3Config, PortError, PortPlan, build
from dsv3_port.parallel import TensorParallel
from dsv3_port.weights.layout import kv_b_to_w_k, kv_b_to_w_v, source_shapes, targets
from dsv3_port.weights.left_out import left_out

SMALL = DeepseekV3Config.preset("small").replace(
    num_hidden_layers=2, vocab_size=64, n_routed_experts=8
)
PLANS = [
    PortPlan(tensor_parallel=True, attention=a, experts=e, mlp=m)
    for a, e, m in itertools.product(
        ("expanded", "low_rank"), ("loop", "grouped"), ("split", "merged")
    )
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.attention}-{p.experts}-{p.mlp}")
@pytest.mark.parametrize("world", [1, 2, 4])
def test_targets_are_the_parameters_of_the_model(plan, world):
    for rank in range(world):
        parallel = TensorParallel(rank, world)
        model = build(SMALL, plan, parallel, device="meta")
        want = {name: tuple(p.shape) for name, p in model.named_parameters()}
        assert {t.name: t.shape for t in targets(SMALL, plan, parallel)} == want


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.attention}-{p.experts}-{p.mlp}")
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_value_is_placed_once_and_every_parameter_filled_once(plan, world):
    """Sources hold distinct numbers: over all ranks each of a cut tensor appears once, of a whole
    one W times."""
    numbers, start = {}, 0
    for name, shape in source_shapes(SMALL).items():
        size = torch.Size(shape).numel()
        numbers[name] = torch.arange(start, start + size, dtype=torch.float64).view(shape)
        start += size
    seen = torch.zeros(start, dtype=torch.int64)
    cut = torch.zeros(start, dtype=torch.bool)
    for rank in range(world):
        for target in targets(SMALL, plan, TensorParallel(rank, world)):
            values = torch.full(target.shape, -1.0, dtype=torch.float64)
            for piece in target.pieces:
                piece.place(numbers[piece.source], values)
                whole = numbers[piece.source]
                cut[whole.flatten().long()] = piece.length < whole.shape[piece.dim]
            assert (values >= 0).all(), f"{target.name} is not filled everywhere"
            seen.index_add_(
                0, values.flatten().long(), torch.ones(values.numel(), dtype=torch.int64)
            )
    # kv_b_proj is one source of two targets, each of which takes its own rows: still once
    assert torch.equal(seen, torch.where(cut, 1, world)) or world == 1 and (seen == 1).all()


def test_the_low_rank_split_is_the_same_matrix():
    heads, nope, value, rank = 3, 5, 4, 7
    w = torch.randn(heads * (nope + value), rank, dtype=torch.float64)
    latent, q = (
        torch.randn(rank, dtype=torch.float64),
        torch.randn(heads, nope, dtype=torch.float64),
    )
    kv = (w @ latent).view(heads, nope + value)
    w_k, w_v = kv_b_to_w_k(w, nope, value), kv_b_to_w_v(w, nope, value)
    assert w_k.shape == (heads, nope, rank) and w_v.shape == (heads, rank, value)
    torch.testing.assert_close(
        torch.einsum("nd,ndr,r->n", q, w_k, latent), (q * kv[:, :nope]).sum(-1)
    )
    torch.testing.assert_close(torch.einsum("r,nrv->nv", latent, w_v), kv[:, nope:])


def test_the_merge_comes_after_the_cut():
    """Each rank's [gate | up]: a slice of the whole merged matrix would give rank 0 all of gate and
    none of up."""
    plan = PortPlan.full()
    gate, up = torch.zeros(1024, 256), torch.ones(1024, 256)
    name = "model.layers.0.mlp.merge_up_gate_proj.weight"
    for rank in range(4):
        (target,) = (t for t in targets(SMALL, plan, TensorParallel(rank, 4)) if t.name == name)
        values = torch.empty(target.shape)
        for piece in target.pieces:
            piece.place(gate if "gate_proj" in piece.source else up, values)
        assert (values[:256] == 0).all() and (values[256:] == 1).all()


def test_a_cut_that_does_not_divide_is_refused_with_what_would():
    with pytest.raises(
        PortError, match=r"vocab_size = 64 cannot be cut over 3 ranks.*fit: \[1, 2, 4, 8\]"
    ):
        list(targets(SMALL, PortPlan.full(), TensorParallel(0, 3)))


def test_left_out_names_whole_components():
    config = SMALL.replace(num_nextn_predict_layers=1)
    assert left_out(config, "model.layers.2.eh_proj.weight")
    assert left_out(config, "model.layers.1.mlp.gate.weight") is None
    assert (
        left_out(config, "model.layers.20.mlp.gate.weight") is None
    )  # not layer 2, whatever it begins with
    assert left_out(SMALL, "model.layers.2.eh_proj.weight") is None


def test_671b_sizes():
    config = DeepseekV3Config.preset("v3-671b")
    shapes = source_shapes(config)
    assert abs(sum(torch.Size(s).numel() for s in shapes.values()) / 1e9 - 671.0) < 0.1
    per_rank = sum(
        torch.Size(t.shape).numel() for t in targets(config, PortPlan.full(), TensorParallel(5, 32))
    )
    assert 20e9 < per_rank < 23e9  # 671 / 32 and what every rank holds whole

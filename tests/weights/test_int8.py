"""Weights of int8 against the plain definition: from FP8 and BF16, whole and cut, in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dsv3_port import DeepseekV3Config, PortError, PortPlan, load_model
from dsv3_port.parallel import TensorParallel
from dsv3_port.weights.checkpoint import Checkpoint
from dsv3_port.weights.fp8 import dequantize_blocks, quantize_blocks
from dsv3_port.weights.int8 import (
    KEPT,
    dequantize_rows,
    kept,
    quantize_rows,
    stored_as_int8,
    with_offsets,
)
from dsv3_port.weights.layout import source_shapes, targets
from dsv3_port.weights.synthetic import published_tensors
from tests import int8_definition as definition
from tests.oracle import plain_tensors

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
FULL = PortPlan.full().replace(quant="w8a8")
PLANS = [
    FULL,
    PortPlan.upstream().replace(quant="w8a8"),
    FULL.minus("merged_mlp"),
    FULL.minus("gmm_routing"),
    FULL.plus("mtp"),
]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize("shape", [(1, 1), (128, 7), (129, 300), (576, 64)])
def test_codes_and_scales_are_the_definitions_bit_for_bit(shape) -> None:
    values = drawn(*shape)
    values[0] = 0
    codes, scale = quantize_rows(values)
    want, of = definition.weight(values.numpy())
    assert codes.dtype == torch.int8 and scale.dtype == torch.float32
    assert np.array_equal(codes.numpy(), want) and np.array_equal(scale.numpy(), of)
    assert float(scale[0]) == 1 and not codes[0].any()
    off = (dequantize_rows(codes, scale).double() - values.double()).abs()
    assert bool((off <= scale.double() * 0.5 * (1 + 1e-6)).all())


def test_rows_too_small_for_a_scale_are_zeros() -> None:
    codes, scale = quantize_rows(torch.tensor([[1e-37, -1e-38], [1.0, -2.0]]))
    assert not codes[0].any() and scale[0] == 1
    assert codes[1].tolist() == [64, -127], "63.5 goes to the even 64; -128 is never written"


def test_by_way_of_bfloat16_many_codes_are_others() -> None:
    """The trap of converting FP8 to BF16 first, and of dividing there."""
    codes, scale = quantize_blocks(drawn(256, 512))
    exact = quantize_rows(dequantize_blocks(codes, scale))[0]
    rough = dequantize_blocks(codes, scale, torch.bfloat16)
    factor = rough.abs().amax(1, keepdim=True) / 127
    other = (rough / factor).round().clamp(-127, 127).to(torch.int8)
    share = float((exact != other).float().mean())
    assert share > 0.02 and int((exact.int() - other.int()).abs().max()) <= 1


@pytest.mark.parametrize("preset", ["tiny", "v3-671b"])
def test_every_published_tensor_is_int8_or_kept_for_a_reason(preset) -> None:
    config = DeepseekV3Config.preset(preset)
    seen = set()
    for name, shape, _ in published_tensors(config):
        reason = kept(name)
        assert (reason is None) == stored_as_int8(name), name
        assert reason is None or reason in KEPT.values()
        seen.add(reason)
        if reason is None:
            assert len(shape) == 2
    assert seen == {None, *KEPT.values()}, "a reason that nothing has"


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.attention}-{p.experts}-{p.mlp}-{p.mtp}")
def test_parameters_are_cut_as_the_definition_says(plan, world) -> None:
    """Codes are cut as a float matrix is; scales with the outputs, whole where inputs are cut."""
    plan = plan.plus("tensor_parallel")
    tensors = plain_tensors(TINY)
    want = {}
    for name, shape in source_shapes(DeepseekV3Config.from_pretrained(TINY), plan.mtp).items():
        if stored_as_int8(name):
            assert len(shape) == 2
            made = definition.weight(tensors[name].numpy())
            want[name] = [torch.from_numpy(m) for m in made]
    count = 0
    for rank in {0, world - 1}:
        model = load_model(TINY, plan, "cpu", "float32", TensorParallel(rank, world))
        held = dict(model.named_parameters())
        for target in targets(model.config, plan, model.parallel):
            for p in target.pieces:
                if not p.part:
                    continue
                codes, scale = want[p.source]
                got = p.block(held[target.name])
                if p.part == "codes":
                    assert got.dtype == torch.int8
                    assert torch.equal(got.long(), codes.narrow(p.dim, p.start, p.length))
                else:
                    row_cut = p.source.split(".")[-2] in ("o_proj", "down_proj")
                    assert len(got) == (len(scale) if row_cut else p.length)
                    assert torch.equal(got, scale.narrow(0, p.start, p.length))
                count += 1
    assert count


def test_bf16_checkpoints_are_quantised_from_their_own_values(tmp_path) -> None:
    from dsv3_port.weights.write import write_checkpoint

    config = DeepseekV3Config.from_pretrained(TINY)
    values = plain_tensors(TINY)
    folder = write_checkpoint(tmp_path / "m", config, values.items(), fp8=False)
    name = "model.layers.1.self_attn.o_proj.weight"
    codes, scale = Checkpoint.open(folder).read_int8(name)
    want = definition.weight(values[name].to(torch.bfloat16).float().numpy())
    assert np.array_equal(codes.numpy(), want[0]) and np.array_equal(scale.numpy(), want[1])


def test_offsets_stand_behind_every_scale() -> None:
    config = DeepseekV3Config.preset("tiny")
    names = [t.name for t in with_offsets(targets(config, FULL))]
    scales = [n for n in names if n.endswith("_scale")]
    assert scales and all(
        names[names.index(n) + 1] == n.removesuffix("_scale") + "_offset" for n in scales
    )


def test_a_cut_of_the_learners_own_is_for_float_weights() -> None:
    def cut(weight, axis, unit, rank, world):
        return weight.chunk(world, axis)[rank]

    with pytest.raises(PortError, match="cut matrices of the model's dtype, not int8"):
        load_model(TINY, FULL, "cpu", cut=cut)

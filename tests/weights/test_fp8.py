"""FP8 blocks against the plain definition in float64, in the shapes that transformers 5.23 refuses
or misreads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_port import PortError
from dsv3_port.weights.fp8 import (
    FP8,
    dequantize_blocks,
    quantize_blocks,
    scale_shape,
    stored_as_fp8,
)
from tests.oracle import plain_dequantize


def random_blocks(rows: int, cols: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, cols), generator=generator, dtype=torch.uint8).view(FP8)
    return codes, torch.rand(scale_shape(rows, cols), generator=generator) * 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(576, 512), (192, 300), (128, 128), (1, 1), (129, 257)])
def test_every_code_as_the_definition_says(shape, dtype):
    """All 256 codes, the two NaN ones included; float32 product, one rounding."""
    codes, scale = random_blocks(*shape)
    got = dequantize_blocks(codes, scale, dtype)
    exact = plain_dequantize(codes, scale)
    assert torch.equal(got.isnan(), exact.isnan())
    want = exact.float().to(dtype)
    assert torch.equal(got.nan_to_num(), want.nan_to_num())


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rows=st.integers(1, 300), cols=st.integers(1, 300), seed=st.integers(0, 99))
def test_any_shape(rows, cols, seed):
    codes, scale = random_blocks(rows, cols, seed)
    want = plain_dequantize(codes, scale).float()
    assert torch.equal(dequantize_blocks(codes, scale).nan_to_num(), want.nan_to_num())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 300), cols=st.integers(1, 300), magnitude=st.sampled_from([1e-6, 1.0, 1e4])
)
def test_quantising_keeps_three_mantissa_bits(rows, cols, magnitude):
    values = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows)) * magnitude
    codes, scale = quantize_blocks(values)
    back = dequantize_blocks(codes, scale)
    largest = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols] * 448
    assert bool(((back - values).abs() <= values.abs() / 16 + largest * 2**-17).all())


def test_a_block_of_zeros_stays_zero():
    codes, scale = quantize_blocks(torch.zeros(130, 5))
    assert torch.equal(dequantize_blocks(codes, scale), torch.zeros(130, 5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_impossible_scales_are_refused(value):
    codes, scale = random_blocks(130, 130)
    scale[1, 0] = value
    with pytest.raises(PortError, match="negative, infinite or NaN"):
        dequantize_blocks(codes, scale)


def test_a_grid_of_another_shape_is_refused():
    codes, _ = random_blocks(576, 512)
    with pytest.raises(PortError, match=r"is \[4, 4\]; 576 x 512 in blocks of 128 needs \[5, 4\]"):
        dequantize_blocks(codes, torch.ones(4, 4))


def test_which_tensors_are_fp8():
    yes = [
        "model.layers.0.self_attn.kv_b_proj.weight",
        "model.layers.3.mlp.experts.7.down_proj.weight",
        "model.layers.3.mlp.shared_experts.gate_proj.weight",
        "model.layers.61.self_attn.q_a_proj.weight",
    ]
    no = [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.3.mlp.gate.weight",
        "model.norm.weight",
        "model.layers.3.mlp.gate.e_score_correction_bias",
        "model.layers.61.eh_proj.weight",
        "model.layers.0.self_attn.q_a_layernorm.weight",
        "model.layers.61.shared_head.head.weight",
    ]
    assert [n for n in yes + no if stored_as_fp8(n)] == yes

"""Values that no model can have: refused by tensor, file, count and place, by the split and by
loading."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_port import PortError, PortPlan, load_model
from dsv3_port.weights.fp8 import FP8
from dsv3_port.weights.sharding import read_manifest, shard_checkpoint
from dsv3_port.weights.values import ValueCheck
from tests.weights.spoil import copy, header, peek, place, poke

EXPERT = "model.layers.2.mlp.experts.3.down_proj.weight"  # FP8 [256, 64]
NORM = "model.layers.1.input_layernorm.weight"  # bfloat16
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"  # float32
SCALE = "model.layers.0.mlp.up_proj.weight_scale_inv"


@pytest.mark.parametrize(
    "name,data,at,first",
    [
        (EXPERT, b"\x7f", 5, r"first NaN at \[0, 5\]"),
        (EXPERT, b"\xff\x7f", 64 * 130 + 2, r"2 values are not finite, first NaN at \[130, 2\]"),
        (NORM, b"\x80\x7f", 6, r"first infinite at \[3\]"),
        (NORM, b"\x80\xff", 6, r"first infinite at \[3\]"),
        (BIAS, struct.pack("<f", float("nan")), 12, r"first NaN at \[3\]"),
        (BIAS, struct.pack("<f", float("-inf")), 12, r"first infinite at \[3\]"),
        ("lm_head.weight", b"\xc1\x7f", 512 * 7, r"first NaN at \[7, 0\]"),
    ],
)
def test_a_value_that_is_not_finite(name, data, at, first, tmp_path):
    m = copy(tmp_path / "m")
    file = poke(m, name, data, at)
    for look in (
        lambda: shard_checkpoint(m, tmp_path / "out", 1),
        lambda: load_model(m, device="cpu"),
    ):
        with pytest.raises(PortError, match=f"{file.name}: {name}: .*{first}"):
            look()


@pytest.mark.parametrize("value", [0.0, -1e-3, 1e-44, float("nan"), float("inf")])
def test_a_scale_that_is_not_a_normal_number_above_0(value, tmp_path):
    m = copy(tmp_path / "m")
    poke(m, SCALE, struct.pack("<f", value), 4)
    for look in (
        lambda: shard_checkpoint(m, tmp_path / "out", 1, allow_nonfinite=True),
        lambda: load_model(m, device="cpu"),
    ):
        with pytest.raises(
            PortError, match=r"up_proj.weight: weight_scale_inv holds .* 1, first \[0, 1\]"
        ):
            look()


@pytest.mark.parametrize("name", [EXPERT, NORM, "model.embed_tokens.weight"])
def test_a_tensor_of_zeros(name, tmp_path):
    m = copy(tmp_path / "m")
    file = poke(m, name, bytes(len(peek(m, name))))
    for look in (
        lambda: shard_checkpoint(m, tmp_path / "out", 1),
        lambda: load_model(m, device="cpu"),
    ):
        with pytest.raises(PortError, match=f"{file.name}: {name}: all values are zero"):
            look()


def test_a_bias_may_be_zero(tmp_path):
    m = copy(tmp_path / "m")
    poke(m, BIAS, bytes(len(peek(m, BIAS))))
    assert shard_checkpoint(m, tmp_path / "out", 1).complete


def test_the_way_out_is_named_in_the_manifest(tmp_path):
    m, out = copy(tmp_path / "m"), tmp_path / "out"
    poke(m, NORM, b"\x80\x7f", 6)
    shard_checkpoint(m, out, 1, allow_nonfinite=True)
    assert read_manifest(out)["allow_nonfinite"] is True
    load_model(out, device="cpu")
    with pytest.raises(PortError, match=r"differs in allow_nonfinite \(True, not False\)"):
        shard_checkpoint(m, out, 1)


def test_what_a_narrower_dtype_cannot_hold(tmp_path):
    m = copy(tmp_path / "m")
    poke(m, NORM, b"\xa0\x47", 6)  # 81,920: bfloat16 has it, float16 not
    with pytest.raises(PortError, match=f"{NORM} has values that are infinite in float16"):
        shard_checkpoint(m, tmp_path / "out", 1, dtype="fp16")
    assert shard_checkpoint(m, tmp_path / "bf16", 1, dtype="bf16").complete
    poke(m, NORM, b"\x80\x3f", 6)
    poke(m, SCALE, struct.pack("<f", 1e37), 4)
    with pytest.raises(PortError, match="up_proj.weight has values that are infinite in bfloat16"):
        shard_checkpoint(m, tmp_path / "wide", 1)
    with pytest.raises(PortError, match="up_proj.weight has values that are infinite in float32"):
        shard_checkpoint(m, tmp_path / "int8", 1, plan=PortPlan.full().replace(quant="w8a8"))


def test_scales_beside_a_weight_that_has_none(tmp_path):
    m = copy(tmp_path / "m")
    file, _, _ = place(m, "lm_head.weight")
    start, entries = header(file)
    data = file.read_bytes()[start:]
    entries["lm_head.weight_scale_inv"] = {
        "dtype": "F32",
        "shape": [8, 2],
        "data_offsets": [len(data), len(data) + 64],
    }
    text = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data + struct.pack("<16f", *[0.5] * 16))
    index = m / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["lm_head.weight_scale_inv"] = file.name
    index.write_text(json.dumps(table))
    for look in (
        lambda: shard_checkpoint(m, tmp_path / "out", 1),
        lambda: load_model(m, device="cpu"),
    ):
        with pytest.raises(
            PortError, match="lm_head.weight_scale_inv is there, and lm_head.weight"
        ):
            look()


@pytest.mark.parametrize("dtype", [FP8, torch.bfloat16, torch.float16])
def test_every_code_is_told_apart(dtype):
    """All codes of 8 and 16 bits, one at a time, against torch's own isfinite."""
    bits = 8 * dtype.itemsize
    codes = torch.arange(2**bits, dtype=torch.int32)
    values = codes.to(torch.uint8 if bits == 8 else torch.int16).view(dtype)
    finite = values.float().isfinite()
    for i in range(0, 2**bits, 1 if bits == 8 else 37):
        assert ValueCheck("x", "f").tile(values[i : i + 1]) == bool(finite[i]), hex(i)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_float32_is_told_apart(values):
    tensor = torch.tensor(values, dtype=torch.float32)
    assert ValueCheck("x", "f").tile(tensor) == bool(tensor.isfinite().all())

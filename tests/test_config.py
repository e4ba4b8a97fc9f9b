"""config.json in every form it comes in, and what is refused."""

from __future__ import annotations

import json
import math

import pytest

from dsv3_port import DeepseekV3Config, PortError
from dsv3_port.config import PRESETS, RopeScaling


@pytest.mark.parametrize("name", PRESETS)
def test_published_form_round_trip(name, tmp_path):
    config = PRESETS[name]
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert DeepseekV3Config.from_pretrained(tmp_path) == config


def test_the_form_that_transformers_5_writes(tmp_path):
    """rope_parameters instead of rope_scaling, dtype instead of torch_dtype; theta moves inside."""
    from transformers import DeepseekV3Config as Theirs

    for config in (
        PRESETS["small"],
        PRESETS["small"].replace(q_lora_rank=None, rope_scaling=None, rope_theta=5e5),
    ):
        plain = config.replace(fp8=False)
        Theirs(**plain.to_dict()).save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "config.json").read_text())
        assert "rope_parameters" in stored
        got = DeepseekV3Config.from_pretrained(tmp_path)
        assert got.replace(extra={}) == plain
        assert got.rope_scaling == plain.rope_scaling and got.rope_theta == plain.rope_theta


def test_published_softmax_scale():
    """(128 + 64)^-0.5 times (0.1 ln 40 + 1)^2; the low-rank form keeps it although its rows are 576
    wide."""
    assert PRESETS["v3-671b"].softmax_scale == pytest.approx(
        192**-0.5 * (0.1 * math.log(40) + 1) ** 2
    )
    assert PRESETS["v3-671b"].rope_scaling.cos_sin_scale == 1.0
    assert RopeScaling(40, 4096).cos_sin_scale == pytest.approx(0.1 * math.log(40) + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_size": None}, "hidden_size must be a positive integer"),
        ({"n_group": 3}, "not a multiple of n_group 3"),
        ({"num_experts_per_tok": 99}, "num_experts_per_tok 99 exceeds"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope type 'linear'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "lacks original_max_position_embeddings"),
        ({"quantization_config": {"quant_method": "awq"}}, "only the published form is read"),
    ],
)
def test_what_is_not_deepseek_v3_is_refused_by_name(change, message, tmp_path):
    values = PRESETS["small"].to_dict() | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(PortError, match=message) as caught:
        DeepseekV3Config.from_pretrained(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(PortError, match="no such file"):
        DeepseekV3Config.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PortError, match="not readable as JSON"):
        DeepseekV3Config.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(PortError, match="holds a list"):
        DeepseekV3Config.from_pretrained(tmp_path)
    values = PRESETS["small"].to_dict()
    del values["kv_lora_rank"], values["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        PortError, match="missing vocab_size, kv_lora_rank|missing kv_lora_rank, vocab_size"
    ):
        DeepseekV3Config.from_pretrained(tmp_path)
    with pytest.raises(PortError, match="unknown preset 'huge'; known: "):
        DeepseekV3Config.preset("huge")

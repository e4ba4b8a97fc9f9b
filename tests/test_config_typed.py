"""config.json is typed once: kinds, ranges, names, defaults and YaRN as transformers has them."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV3Config as Theirs
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale

from dsv3_port import DeepseekV3Config, PortError
from dsv3_port.config import PRESETS, RopeScaling
from dsv3_port.model.rope import inverse_frequencies

SMALL = PRESETS["small"].to_dict()
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    "key,value",
    [
        ("norm_topk_prob", "false"),
        ("norm_topk_prob", 0),
        ("tie_word_embeddings", "true"),
        ("rope_interleave", 1),
        ("hidden_size", "256"),
        ("hidden_size", 256.0),
        ("hidden_size", True),
        ("hidden_size", [256]),
        ("vocab_size", -1),
        ("n_shared_experts", -1),
        ("first_k_dense_replace", -1),
        ("num_nextn_predict_layers", 2**40),
        ("num_hidden_layers", 2**40),
        ("num_hidden_layers", 10**400),
        ("n_routed_experts", 2**40),
        ("hidden_size", 2**40),
        ("max_position_embeddings", 0),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", -1e-6),
        ("rms_norm_eps", 5.0),
        ("rms_norm_eps", math.nan),
        ("rms_norm_eps", "1e-6"),
        ("rope_theta", 1),
        ("rope_theta", 0),
        ("rope_theta", math.inf),
        ("routed_scaling_factor", 0),
        ("routed_scaling_factor", -2.5),
        ("routed_scaling_factor", math.inf),
        ("eos_token_id", "1"),
        ("eos_token_id", [1, "2"]),
        ("eos_token_id", -1),
        ("torch_dtype", 7),
        ("rope_scaling", "yarn"),
        ("rope_scaling", [1]),
        ("rope_scaling", {**YARN, "factor": 0.5}),
        ("rope_scaling", {**YARN, "factor": "4"}),
        ("rope_scaling", {**YARN, "factor": math.nan}),
        ("rope_scaling", {**YARN, "beta_fast": -1}),
        ("rope_scaling", {**YARN, "attention_factor": 0.0}),
        ("rope_scaling", {**YARN, "truncate": "no"}),
        ("rope_scaling", {**YARN, "original_max_position_embeddings": 0}),
        ("rope_scaling", {**YARN, "partial_rotary_factor": 0.5}),
        ("rope_scaling", {**YARN, "short_factor": [1.0]}),
        ("rope_scaling", {"factor": 4.0}),
        ("quantization_config", "fp8"),
        ("quantization_config", {**FP8, "activation_scheme": "static"}),
        ("quantization_config", {**FP8, "weight_block_size": [64, 64]}),
        ("quantization_config", {**FP8, "modules_to_not_convert": [7]}),
        ("quantization_config", {**FP8, "bits": 4}),
        ("index_topk", 2048),
        ("attention_bias", True),
        ("attention_bias", "false"),
        ("mlp_bias", True),
        ("sliding_window", 4096),
        ("use_sliding_window", True),
        ("layer_types", ["sliding_attention"] * 4),
        ("num_key_value_heads", 2),
        ("head_dim", 128),
        ("hidden_act", "gelu"),
        ("final_logit_softcapping", 30.0),
        ("topk_method", "greedy"),
    ],
)
def test_what_is_refused_by_name(key, value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {key: value}))
    with pytest.raises(PortError) as caught:
        DeepseekV3Config.from_pretrained(tmp_path)
    inner = {"quantization_config": "unconverted|activation_scheme|quantization_config"}
    names = [key, *inner.get(key, "").split("|"), *(value if isinstance(value, dict) else ())]
    assert str(tmp_path / "config.json") in str(caught.value)
    assert any(n and n in str(caught.value) for n in names), caught.value
    assert len(str(caught.value)) < 600


def test_a_key_given_twice_and_a_file_too_deep(tmp_path):
    text = json.dumps(SMALL)
    for made, message in (
        (text[:-1] + ', "n_group": 1}', "n_group is listed twice"),
        (text[:-1] + ', "note": ' + "[" * 10**5 + "]" * 10**5 + "}", "not readable as JSON"),
        (text[:-1] + ', "note": "' + "\\ud800" + '"}', None),
    ):
        (tmp_path / "config.json").write_text(made)
        if message:
            with pytest.raises(PortError, match=message):
                DeepseekV3Config.from_pretrained(tmp_path)
        else:
            with pytest.warns(UserWarning, match="note"):
                DeepseekV3Config.from_pretrained(tmp_path)


def test_unknown_keys_are_told_and_harmless_ones_are_not(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SMALL | {"zoom": 2, "mood": "good"}))
    with pytest.warns(UserWarning, match=r"config.json: not known, and not used: mood, zoom"):
        assert DeepseekV3Config.from_pretrained(tmp_path).extra == {"zoom": 2, "mood": "good"}
    harmless = {"use_cache": True, "auto_map": {}, "attention_dropout": 0.0, "pretraining_tp": 1}
    file.write_text(json.dumps(SMALL | harmless))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DeepseekV3Config.from_pretrained(tmp_path)
        Theirs().save_pretrained(tmp_path)
        DeepseekV3Config.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", sorted(set(SMALL) & set(Theirs().to_dict())))
def test_what_is_left_out_is_what_transformers_takes(name):
    part = {k: v for k, v in SMALL.items() if k != name}
    try:
        got = DeepseekV3Config.from_dict(part)
    except PortError as error:
        assert name in str(error)  # refused by name is right too
        return
    # ours: of the tokenizer, and of the weights
    ours = ("bos_token_id", "eos_token_id", "num_nextn_predict_layers")
    if name not in ours and hasattr(got, name):
        assert getattr(got, name) == getattr(Theirs(**part), name)


_SCALE = st.one_of(st.none(), st.floats(0, 3), st.just(0.0))


@settings(max_examples=150, deadline=None)
@given(
    yarn=st.fixed_dictionaries(
        {"factor": st.floats(1, 64), "original_max_position_embeddings": st.integers(8, 8192)},
        optional={
            "mscale": _SCALE,
            "mscale_all_dim": _SCALE,
            "attention_factor": st.one_of(st.none(), st.floats(0.1, 4)),
            "truncate": st.booleans(),
            "beta_fast": st.floats(2, 64),
            "beta_slow": st.one_of(st.just(0.0), st.floats(0.01, 2)),
        },
    ),
    theta=st.floats(100, 1e6),
    new_form=st.booleans(),
)
def test_yarn_is_that_of_transformers(yarn, theta, new_form):
    rope = {"rope_type": "yarn", **yarn}
    form = (
        {"rope_parameters": {**rope, "rope_theta": theta}, "rope_scaling": None}
        if new_form
        else {"rope_scaling": rope, "rope_theta": theta}
    )
    ours = DeepseekV3Config.from_dict(SMALL | form)
    theirs = Theirs(**{k: v for k, v in (SMALL | form).items() if v is not None})
    want, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    torch.testing.assert_close(inverse_frequencies(ours), want, rtol=1e-6, atol=0)
    assert ours.rope_scaling.cos_sin_scale == pytest.approx(factor)
    plain = ours.qk_head_dim**-0.5
    assert ours.softmax_scale == pytest.approx(yarn_apply_mscale(theirs.rope_parameters, plain))


def test_the_constructor_speaks_the_same_language():
    with pytest.raises(PortError, match="hidden_size must be a positive integer, not '256'"):
        PRESETS["small"].replace(hidden_size="256")
    with pytest.raises(PortError, match="factor must be 1.0 or more, not 0.5"):
        RopeScaling(0.5, 64)
    with pytest.raises(PortError, match="experts"):
        PRESETS["small"].replace(num_hidden_layers=1000, n_routed_experts=16384)

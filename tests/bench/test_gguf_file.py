"""A checkpoint as GGUF, read back with the package's own reader: every tensor, every shape, the keys
that change what llama.cpp computes. That it computes our logits is tests/bench/test_llamacpp.py."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from dsv3_port.bench import gguf_file
from dsv3_port.config import DeepseekV3Config, RopeScaling
from dsv3_port.errors import PortError
from dsv3_port.model.rope import to_halves
from dsv3_port.paths import tiny
from dsv3_port.weights.checkpoint import Checkpoint
from dsv3_port.weights.synthetic import synthetic_checkpoint
from tests.random_models import CONFIG

TINY = tiny()
# what every layer has, what a dense one and one of experts have beside it: GGUF's name, published one
ATTENTION = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
DENSE = {f"ffn_{kind}.weight": f"mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")}
MOE = {
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
} | {
    f"ffn_{kind}_shexp.weight": f"mlp.shared_experts.{kind}_proj.weight"
    for kind in ("gate", "up", "down")
}
ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def read(gguf, file):
    """Keys, and tensors as torch has them."""
    reader = gguf.GGUFReader(file)
    tensors = {}
    for t in reader.tensors:
        half = t.tensor_type == gguf.GGMLQuantizationType.BF16
        shape = tuple(int(n) for n in reversed(t.shape))
        value = torch.tensor(t.data)
        tensors[t.name] = (value.view(torch.bfloat16) if half else value).reshape(shape)
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


@pytest.fixture(scope="module")
def gguf():
    return pytest.importorskip("gguf", reason="the package gguf is not installed (extra dev)")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_of_the_embedded_model(gguf, tmp_path, dtype):
    _, found = read(gguf, gguf_file.write_gguf(TINY, tmp_path / "tiny.gguf", dtype))
    checkpoint = Checkpoint.open(TINY)
    config, left = checkpoint.config, set(found)

    def same(name, value, held=dtype):
        plain = "norm" in name or "gate_inp" in name or name.endswith(".bias")
        assert found[name].dtype == (torch.float32 if plain else dtype), name
        assert found[name].shape == value.shape, name
        assert torch.equal(found[name].float(), value.float()), name
        left.remove(name)

    for name, key in ENDS.items():
        same(name, checkpoint.read(key, dtype))
    for layer in range(config.num_hidden_layers):
        at, blk = f"model.layers.{layer}", f"blk.{layer}"
        moe = config.is_moe(layer)
        for name, key in (ATTENTION | (MOE if moe else DENSE)).items():
            gate = (
                ".gate." in key and "experts" not in key
            )  # float32 in our model, whatever its dtype
            same(f"{blk}.{name}", checkpoint.read(f"{at}.{key}", torch.float32 if gate else dtype))
        heads, k_b = config.num_attention_heads, found[f"{blk}.attn_k_b.weight"]
        assert k_b.shape == (heads, config.kv_lora_rank, config.qk_nope_head_dim)
        kv_b = torch.cat((k_b.transpose(1, 2), found[f"{blk}.attn_v_b.weight"]), 1).flatten(0, 1)
        assert torch.equal(kv_b, checkpoint.read(f"{at}.self_attn.kv_b_proj.weight", dtype))
        left -= {f"{blk}.attn_k_b.weight", f"{blk}.attn_v_b.weight"}
        for kind in ("gate", "up", "down") if moe else ():
            keys = [
                f"{at}.mlp.experts.{e}.{kind}_proj.weight" for e in range(config.n_routed_experts)
            ]
            same(
                f"{blk}.ffn_{kind}_exps.weight",
                torch.stack([checkpoint.read(k, dtype) for k in keys]),
            )
    assert not left  # no MTP layer, nothing else


def test_the_keys_of_the_embedded_model(gguf, tmp_path):
    keys, _ = read(gguf, gguf_file.write_gguf(TINY, tmp_path / "tiny.gguf"))
    found = {k.removeprefix("deepseek2."): v for k, v in keys.items() if k.startswith("deepseek2.")}
    assert keys["general.architecture"] == "deepseek2" and keys["tokenizer.ggml.model"] == "none"
    assert found == pytest.approx(
        {
            "vocab_size": 1024,
            "context_length": 1024,
            "embedding_length": 256,
            "block_count": 4,
            "feed_forward_length": 512,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "attention.head_count": 8,
            "attention.head_count_kv": 1,
            "attention.q_lora_rank": 96,
            "attention.kv_lora_rank": 64,
            "attention.key_length": 80,
            "attention.value_length": 64,
            "attention.key_length_mla": 48,
            "attention.value_length_mla": 32,
            "leading_dense_block_count": 1,
            "expert_count": 16,
            "expert_used_count": 4,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "expert_shared_count": 1,
            "expert_feed_forward_length": 64,
            "expert_gating_func": 2,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "rope.dimension_count": 16,
            "rope.freq_base": 10000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 256,
            "rope.scaling.yarn_beta_fast": 32.0,
            "rope.scaling.yarn_beta_slow": 1.0,
            "rope.scaling.yarn_log_multiplier": 0.1,
        }
    )


def test_other_forms_of_the_family(gguf, tmp_path):
    """One query matrix, rotary rows in halves, one group, no YaRN, a tied head."""
    config = CONFIG.replace(
        q_lora_rank=None,
        rope_interleave=False,
        rope_scaling=None,
        topk_group=4,
        tie_word_embeddings=True,
        norm_topk_prob=False,
        n_shared_experts=2,
    )
    folder = synthetic_checkpoint(config, cache_dir=tmp_path / "cache")
    keys, found = read(gguf, gguf_file.write_gguf(folder, tmp_path / "other.gguf"))
    assert keys["deepseek2.attention.q_lora_rank"] == 0
    assert keys["deepseek2.rope.scaling.type"] == "none"
    assert keys["deepseek2.expert_group_count"] == 1 and not keys["deepseek2.expert_weights_norm"]
    assert "output.weight" not in found  # llama.cpp takes the embedding then
    assert found["blk.1.ffn_up_shexp.weight"].shape == (64, 64)
    width = config.qk_rope_head_dim
    checkpoint = Checkpoint.open(folder)
    for name, key, heads in (
        ("attn_q", "q_proj", config.num_attention_heads),
        ("attn_kv_a_mqa", "kv_a_proj_with_mqa", 1),
    ):
        pairs = found[f"blk.0.{name}.weight"].unflatten(0, (heads, -1))
        halves = checkpoint.read(f"model.layers.0.self_attn.{key}.weight").unflatten(0, (heads, -1))
        assert torch.equal(pairs[:, :-width], halves[:, :-width])
        assert not torch.equal(pairs[:, -width:], halves[:, -width:])
        back = to_halves(pairs[:, -width:].transpose(1, 2)).transpose(1, 2)
        assert torch.equal(back, halves[:, -width:])


@pytest.mark.parametrize(
    "yarn",
    [
        RopeScaling(40, 4096, mscale=1.0, mscale_all_dim=1.0),  # the published model
        RopeScaling(40, 4096, mscale=0.707, mscale_all_dim=0.707),
        RopeScaling(40, 4096, mscale=1.0, mscale_all_dim=0.5),
        RopeScaling(40, 4096),
        RopeScaling(40, 4096, mscale_all_dim=1.0),
        RopeScaling(40, 4096, attention_factor=0.8),
        RopeScaling(40, 4096, attention_factor=1.0),
    ],
)
def test_every_yarn_comes_out_of_the_two_keys(yarn):
    """What llama.cpp does with them: cos and sin times `turned`, scores times the square of `scores`."""
    attention, log_multiplier = gguf_file.yarn_keys(CONFIG.replace(rope_scaling=yarn))
    log = 0.1 * math.log(yarn.factor)
    ratio = 1.0 if log_multiplier else 1 + log  # without the second key it takes an mscale of 1
    turned = ratio * attention
    scores = turned * (1 + log_multiplier * log)
    assert turned == pytest.approx(yarn.cos_sin_scale)
    assert scores**2 == pytest.approx(yarn.softmax_mscale)
    assert log_multiplier == 0 or abs(log_multiplier) > 1e-9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_shared_experts": 0}, "no shared expert"),
        ({"num_hidden_layers": 27}, "27 layers"),
        ({"rope_scaling": RopeScaling(4, 64, truncate=False)}, "truncate"),
        ({"rope_scaling": RopeScaling(1, 64, attention_factor=2.0)}, "factor of 1"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(change, said):
    gguf_file.check_config(CONFIG)
    with pytest.raises(PortError, match=said):
        gguf_file.check_config(CONFIG.replace(**change))


def test_refusals_name_the_file(gguf, tmp_path):
    with pytest.raises(PortError, match=r"absent.model\.gguf: cannot be written"):
        gguf_file.write_gguf(TINY, tmp_path / "absent" / "model.gguf")
    with pytest.raises(PortError, match="float32 and bfloat16"):
        gguf_file.write_gguf(TINY, tmp_path / "model.gguf", torch.float16)
    with pytest.raises(PortError, match=r"config\.json: no such file"):
        gguf_file.write_gguf(tmp_path, tmp_path / "model.gguf")


def test_without_the_package_the_command_to_install_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        PortError, match=r"gguf is not installed.*pip install 'dsv3-port\[bench-peers\]'"
    ):
        gguf_file.write_gguf(TINY, tmp_path / "model.gguf")


def test_presets_can_all_be_written():
    for name in ("tiny", "small", "w1", "w2", "l", "v3-671b"):
        gguf_file.check_config(DeepseekV3Config.preset(name))

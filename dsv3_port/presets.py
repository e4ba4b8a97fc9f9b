"""Sizes of the models that have a name: rows of keywords for DeepseekV3Config (`rope_scaling`: for
RopeScaling). `DeepseekV3Config.preset(name)` builds one."""

from __future__ import annotations

from typing import Any

_YARN = {
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def _sizes(**sizes: Any) -> dict[str, Any]:
    """A row, with what every model here has."""
    return {
        "routed_scaling_factor": 2.5,
        "rope_scaling": _YARN,
        "max_position_embeddings": 163840,
        "fp8": True,
        **sizes,
    }


def _random(hidden_size: int, qk_nope_head_dim: int, n_group: int, **sizes: Any) -> dict[str, Any]:
    """Random-weight sizes of the timing profiles: four layers, the first one dense."""
    return _sizes(
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=4,
        first_k_dense_replace=1,
        qk_nope_head_dim=qk_nope_head_dim,
        v_head_dim=qk_nope_head_dim,
        n_group=n_group,
        topk_group=n_group // 2,
        **sizes,
    )


SIZES: dict[str, dict[str, Any]] = {
    # the embedded model, data/tiny-dsv3, trained by data/train_tiny
    "tiny": _sizes(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=8,
        kv_lora_rank=64,
        q_lora_rank=96,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        num_nextn_predict_layers=1,
        rope_scaling={
            "factor": 4,
            "original_max_position_embeddings": 256,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    ),
    "small": _random(
        vocab_size=4096,
        hidden_size=256,
        moe_intermediate_size=128,
        num_attention_heads=8,
        kv_lora_rank=64,
        q_lora_rank=128,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_group=4,
    ),
    "w1": _random(  # DeepSeek-V3's own routing numbers
        vocab_size=16384,
        hidden_size=256,
        moe_intermediate_size=64,
        num_attention_heads=32,
        kv_lora_rank=64,
        q_lora_rank=128,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        n_routed_experts=256,
        num_experts_per_tok=8,
        n_group=8,
    ),
    "w2": _random(
        vocab_size=16384,
        hidden_size=512,
        moe_intermediate_size=128,
        num_attention_heads=32,
        kv_lora_rank=128,
        q_lora_rank=192,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        n_routed_experts=128,
        num_experts_per_tok=8,
        n_group=8,
    ),
    "l": _random(
        vocab_size=16384,
        hidden_size=1024,
        moe_intermediate_size=512,
        num_attention_heads=16,
        kv_lora_rank=256,
        q_lora_rank=384,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        n_routed_experts=64,
        num_experts_per_tok=8,
        n_group=8,
    ),
    "v3-671b": _sizes(
        vocab_size=129280,
        hidden_size=7168,
        intermediate_size=18432,
        moe_intermediate_size=2048,
        num_hidden_layers=61,
        num_attention_heads=128,
        kv_lora_rank=512,
        q_lora_rank=1536,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=256,
        num_experts_per_tok=8,
        n_group=8,
        topk_group=4,
        first_k_dense_replace=3,
        num_nextn_predict_layers=1,
        bos_token_id=0,
        eos_token_id=1,
    ),
}

"""Small random models for the lab's tests: any plans, equal weights, nothing on disk."""

from __future__ import annotations

import torch

from dsv3_port.config import DeepseekV3Config, RopeScaling
from dsv3_port.model.decoder import DeepseekV3, build
from dsv3_port.plan import PortPlan
from dsv3_port.weights.layout import source_shapes, targets

CONFIG = DeepseekV3Config(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    moe_intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    kv_lora_rank=16,
    q_lora_rank=24,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=4,
    topk_group=2,
    first_k_dense_replace=1,
    routed_scaling_factor=2.5,
    rope_scaling=RopeScaling(4, 64, mscale=1.0, mscale_all_dim=1.0),
    max_position_embeddings=256,
)
# a dense layer and one of experts: everything that a graph is made of, in less time to compile it
SHORT = CONFIG.replace(num_hidden_layers=2)


def random_sources(
    config: DeepseekV3Config = CONFIG, seed: int = 0, mtp: bool = False
) -> dict[str, torch.Tensor]:
    """Published name -> random values; with `mtp` those of its MTP layer too."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.2
        + (1.0 if len(shape) == 1 and "bias" not in name else 0)
        for name, shape in source_shapes(config, mtp).items()
    }


def fill(model: DeepseekV3, sources: dict[str, torch.Tensor]) -> DeepseekV3:
    parameters = dict(model.named_parameters())
    for target in targets(model.config, model.plan):
        for piece in target.pieces:
            piece.place(sources[piece.source], parameters[target.name].data)
    return model


def random_model(plan: PortPlan, config: DeepseekV3Config = CONFIG, seed: int = 0) -> DeepseekV3:
    return fill(build(config, plan), random_sources(config, seed, plan.mtp))

"""DeepSeek-V3 in float64 from its definition, for one sequence and with nothing of `dsv3_port.model`:
DeepSeek-V2 report (arXiv 2405.04434) section 2.1 and appendix C for the attention, DeepSeek-V3 report
(arXiv 2412.19437) section 2.1.2 for the experts, section 2.2 for multi-token prediction, arXiv
2309.00071 section 3.2 for YaRN. transformers has no multi-token prediction: this is its oracle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import silu

from dsv3_port.config import DeepseekV3Config

Weights = Mapping[str, Tensor]  # published name -> float64 values


def norm(x: Tensor, gamma: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gamma


def angles(c: DeepseekV3Config, length: int) -> Tensor:
    """[S, Dr / 2]: position times frequency, as YaRN blends it. Float32 frequencies and angles, as
    the published code has them: a position of 100 turns a fast pair by 1e-6 more or less."""
    half = torch.arange(0, c.qk_rope_head_dim, 2, dtype=torch.float32) / c.qk_rope_head_dim
    frequency = 1 / c.rope_theta**half
    if yarn := c.rope_scaling:
        trained = yarn.original_max_position_embeddings

        def index(turns: float) -> float:
            turned = math.log(trained / (turns * 2 * math.pi))
            return c.qk_rope_head_dim * turned / (2 * math.log(c.rope_theta))

        low, high = (index(turns) for turns in (32, 1))
        low, high = max(math.floor(low), 0), min(math.ceil(high), c.qk_rope_head_dim - 1)
        ramp = ((torch.arange(len(half), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
        frequency = frequency / yarn.factor * ramp + frequency * (1 - ramp)
    return (torch.arange(length, dtype=torch.float32)[:, None] * frequency).double()


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """Pairs (x0, x1), (x2, x3), … of [S, Dr], each by its own angle."""
    a, b, cos, sin = x[..., 0::2], x[..., 1::2], angle.cos(), angle.sin()
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)


def attention(c: DeepseekV3Config, w: Weights, at: str, x: Tensor, angle: Tensor) -> Tensor:
    """[S, H] -> [S, H]: causal, every head's keys and values expanded."""
    nope, value, rank = c.qk_nope_head_dim, c.v_head_dim, c.kv_lora_rank
    q = norm(x @ w[f"{at}.q_a_proj.weight"].T, w[f"{at}.q_a_layernorm.weight"])
    q = (q @ w[f"{at}.q_b_proj.weight"].T).unflatten(-1, (c.num_attention_heads, -1))
    row = x @ w[f"{at}.kv_a_proj_with_mqa.weight"].T
    latent = norm(row[:, :rank], w[f"{at}.kv_a_layernorm.weight"])
    kv = (latent @ w[f"{at}.kv_b_proj.weight"].T).unflatten(-1, (c.num_attention_heads, -1))
    scale = (nope + c.qk_rope_head_dim) ** -0.5
    if yarn := c.rope_scaling:  # mscale and mscale_all_dim are 1: cos and sin keep their size
        scale *= (0.1 * math.log(yarn.factor) + 1) ** 2
    k_rope, hidden, out = turned(row[:, rank:], angle), torch.ones(len(x), len(x)).triu(1), []
    for head in range(c.num_attention_heads):
        scores = q[:, head, :nope] @ kv[:, head, :nope].T
        scores = (scores + turned(q[:, head, nope:], angle) @ k_rope.T) * scale
        weights = scores.masked_fill(hidden.bool(), -math.inf).softmax(-1)
        out.append(weights @ kv[:, head, nope : nope + value])
    return torch.cat(out, -1) @ w[f"{at}.o_proj.weight"].T


def mlp(w: Weights, at: str, x: Tensor) -> Tensor:
    up = silu(x @ w[f"{at}.gate_proj.weight"].T) * (x @ w[f"{at}.up_proj.weight"].T)
    return up @ w[f"{at}.down_proj.weight"].T


def experts(c: DeepseekV3Config, w: Weights, at: str, x: Tensor) -> Tensor:
    """Groups by the sum of their two best biased scores, experts by their biased score within the
    chosen groups, weights of the unbiased ones."""
    out = mlp(w, f"{at}.shared_experts", x)
    for token, row in enumerate(x):
        score = (row @ w[f"{at}.gate.weight"].T).sigmoid()
        biased = score + w[f"{at}.gate.e_score_correction_bias"]
        by_group = biased.unflatten(0, (c.n_group, -1))
        kept = by_group.topk(2, -1).values.sum(-1).topk(c.topk_group).indices.tolist()
        size = len(score) // c.n_group
        allowed = [e for e in range(len(score)) if e // size in kept]
        chosen = sorted(allowed, key=lambda e: -float(biased[e]))[: c.num_experts_per_tok]
        total = sum(score[e] for e in chosen)
        for e in chosen:
            share = score[e] / total * c.routed_scaling_factor
            out[token] += share * mlp(w, f"{at}.experts.{e}", row)
    return out


def layer(c: DeepseekV3Config, w: Weights, number: int, x: Tensor) -> Tensor:
    at, angle = f"model.layers.{number}", angles(c, len(x))
    x = x + attention(c, w, f"{at}.self_attn", norm(x, w[f"{at}.input_layernorm.weight"]), angle)
    h = norm(x, w[f"{at}.post_attention_layernorm.weight"])
    moe = number >= c.first_k_dense_replace
    return x + (experts(c, w, f"{at}.mlp", h) if moe else mlp(w, f"{at}.mlp", h))


def states(c: DeepseekV3Config, w: Weights, ids: list[int]) -> Tensor:
    """The main model behind its final norm [S, H]; times the head: logits of the next tokens."""
    x = w["model.embed_tokens.weight"][ids]
    for number in range(c.num_hidden_layers):
        x = layer(c, w, number, x)
    return norm(x, w["model.norm.weight"])


def drafts(c: DeepseekV3Config, w: Weights, hidden: Tensor, next_ids: list[int]) -> Tensor:
    """hidden [S, H] of tokens 0 to S-1, next_ids the tokens 1 to S -> logits [S, V] of 2 to S+1."""
    at = f"model.layers.{c.num_hidden_layers}"
    e = norm(w["model.embed_tokens.weight"][next_ids], w[f"{at}.enorm.weight"])
    g = norm(hidden, w[f"{at}.hnorm.weight"])
    z = torch.cat((e, g), -1) @ w[f"{at}.eh_proj.weight"].T
    u = norm(layer(c, w, c.num_hidden_layers, z), w[f"{at}.shared_head.norm.weight"])
    return u @ w["lm_head.weight"].T

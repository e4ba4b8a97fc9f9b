"""Initial weights: random, and two attention heads that start out able to copy.

Copying from the context ("the kite of Mira is ..." red, as said before) needs a head that looks one
token back and, a layer later, a head that looks for "what came after this token earlier" (an
induction head; Olsson et al. 2022, arXiv 2209.11895). Training finds such a pair by itself, but
late: from random weights alone there was no copying after 1.6 million tokens, and a few minutes on
a CPU pay for little more. So the pair is put in at the start, in a few directions of otherwise
random weights, and everything is trained from there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DeepseekV3ForCausalLM

EMBED_STD = 0.5
MATRIX, OUTPUT = (
    0.7,
    0.3,
)  # standard deviation over 1/sqrt(inputs): what reads from the hidden state, what adds to it
SHARP, PAIRS = (
    40.0,
    4,
)  # the looking-back heads: product of query and key in each of the fastest rotary pairs
BACK = (1, 1, 2, 3)  # tokens that the first layer's heads look back


@torch.no_grad()
def initialise(model: DeepseekV3ForCausalLM, *others: nn.Module) -> None:
    """Random weights for `model` and `others`, then the copying pair in the model's first two
    layers."""
    for module in (model, *others):
        for name, p in module.named_parameters():
            if p.dim() > 1:
                adds = {"o_proj", "down_proj"} & set(name.split("."))
                std = (OUTPUT if adds else MATRIX) * p.shape[-1] ** -0.5
                nn.init.normal_(p, std=EMBED_STD if "embed_tokens" in name.split(".") else std)
    config, layers = model.config, model.model.layers
    width = config.v_head_dim
    axes = torch.linalg.qr(
        torch.randn(config.hidden_size, 3 * width + 1)
    ).Q.T  # orthonormal rows [3 Dv + 1, H]
    token, before, answer = axes[:-1].split(
        width
    )  # directions of: this token, the one before it, the one to say
    always = axes[
        -1
    ]  # a direction that every embedding has: attention has no bias to take its place
    embedding = model.model.embed_tokens.weight
    for directions in (before, answer, always[None]):
        embedding -= embedding @ directions.T @ directions
    embedding *= EMBED_STD / embedding.square().mean(1, keepdim=True).sqrt()
    model.lm_head.weight += (
        0.25 * embedding @ token.T @ answer
    )  # a code in `answer` makes its token likely
    embedding += EMBED_STD * config.hidden_size**0.5 / 2 * always
    look_back(layers[0].self_attn, model.model.rotary_emb.inv_freq, always, token, before)
    look_up(layers[1].self_attn, token, before, answer)


def look_back(
    attention: nn.Module, frequency: Tensor, always: Tensor, token: Tensor, before: Tensor
) -> None:
    """Heads whose query and key are constant but for their rotation: the score peaks BACK[h] tokens
    ago.

    The first of them writes that token's code (rows of `token`) into the directions `before`.
    """
    rank, nope, rope, value = _sizes(attention)
    high = SHARP**0.5
    strength = (
        float(attention.config.hidden_size / 5) ** 0.5
    )  # of `always` in a normalised embedding: a fifth of it
    keys = attention.kv_a_proj_with_mqa.weight[rank:]
    keys *= 0.3
    keys[0 : 2 * PAIRS : 2] += high / strength * always  # rotary pairs are interleaved: (key, 0)
    attention.q_a_proj.weight[0] = 2 / strength * always
    constant = (
        2 / 0.73
    )  # about what row 0 is after the norm over q_lora_rank rows: the others are MATRIX wide
    for head, distance in enumerate(BACK):
        query = attention.q_b_proj.weight[head * (nope + rope) : (head + 1) * (nope + rope)]
        query *= 0.2
        turned = torch.polar(torch.full((PAIRS,), high / constant), -frequency[:PAIRS] * distance)
        query[nope : nope + 2 * PAIRS, 0] = torch.view_as_real(turned).flatten()
    attention.kv_a_proj_with_mqa.weight[:value] = token
    attention.kv_b_proj.weight[nope : nope + value] = torch.eye(value, rank)
    attention.o_proj.weight[:, :value] = EMBED_STD * before.T


def look_up(attention: nn.Module, token: Tensor, before: Tensor, answer: Tensor) -> None:
    """Head 0: the query is this token, a key is the token before it; finds the token after, says it
    in `answer`."""
    rank, nope, rope, value = _sizes(attention)
    attention.q_a_proj.weight[:nope] = token
    attention.q_b_proj.weight[: nope + rope] *= 0.1
    attention.q_b_proj.weight[:nope, :nope] += 1.2 * torch.eye(nope)
    attention.kv_a_proj_with_mqa.weight[:nope] = before
    attention.kv_a_proj_with_mqa.weight[rank - value : rank] = token
    attention.kv_b_proj.weight[:nope] = 1.2 * torch.eye(nope, rank)
    attention.kv_b_proj.weight[nope : nope + value] = torch.eye(value, rank).roll(rank - value, 1)
    attention.o_proj.weight[:, :value] = answer.T


def _sizes(attention: nn.Module) -> tuple[int, int, int, int]:
    """R, Dn, Dr, Dv; the codes need Dn = Dv and two of them in the latent."""
    rank, nope, value = attention.kv_lora_rank, attention.qk_nope_head_dim, attention.v_head_dim
    if nope != value or rank < nope + value:
        raise ValueError(
            f"the copying pair needs Dn = Dv and R >= 2 Dn, not Dn {nope}, Dv {value}, R {rank}"
        )
    return rank, nope, attention.qk_rope_head_dim, value

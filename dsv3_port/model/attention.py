"""Multi-head latent attention. DeepSeek-V2 report (arXiv 2405.04434), section 2.1 and
appendix C."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import ops
from .cache import Cache
from .context import BuildContext
from .linear import ColumnParallelLinear, Linear, RowParallelLinear
from .norm import make_latent_norm
from .paged_cache import PagedStep
from .rope import ROPE, RotaryEmbedding


@dataclass
class StepInputs:
    """What all layers of one forward call share."""

    positions: Tensor  # [B, S]
    # [B, 1, S, L] added to the scores: 0 visible, the dtype's lowest number hidden;
    # None where `causal_attention` needs none
    mask: Tensor | None
    pad: Tensor  # [B] left padding
    first: bool  # nothing was cached before: attention needs the new keys only
    cos: Tensor | None = None  # [B, 1, S, Dr]; None: every layer makes its own
    sin: Tensor | None = None
    paged: PagedStep | None = None  # of a paged cache
    slot: Tensor | None = None  # [B] of the first query: no mask, by `over_filled`
    verify: bool = False  # decode of a token and its draft: two queries, as one is


class LatentProjections(nn.Module):
    """The part both forms share: queries and the compressed key/value row of each
    token."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        c = ctx.config
        self.config, self.scale = c, c.softmax_scale
        self.heads = ctx.share(c.num_attention_heads, "num_attention_heads")
        if c.q_lora_rank is None:
            self.q_proj = ColumnParallelLinear(
                ctx, c.hidden_size, c.num_attention_heads * c.qk_head_dim
            )
        else:
            self.q_a_proj = Linear(ctx, c.hidden_size, c.q_lora_rank)
            self.q_a_layernorm = make_latent_norm(ctx, c.q_lora_rank)
            self.q_b_proj = ColumnParallelLinear(
                ctx, c.q_lora_rank, c.num_attention_heads * c.qk_head_dim
            )
        self.kv_a_proj_with_mqa = Linear(
            ctx, c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim
        )
        self.kv_a_layernorm = make_latent_norm(ctx, c.kv_lora_rank)
        self.o_proj = RowParallelLinear(
            ctx, c.num_attention_heads * c.v_head_dim, c.hidden_size
        )
        self.rotary_emb = (
            RotaryEmbedding(c, ctx.device) if ctx.plan.rope == "per_layer" else None
        )
        self.turn = ROPE[ctx.plan.rope]

    def queries(
        self, hidden: Tensor, inputs: StepInputs
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """hidden [B, S, H] -> q_nope [B, N, S, Dn], q_rope [B, N, S, Dr], each token's
        row [B, 1, S, R + Dr] as projected, and cos, sin [B, 1, S, Dr]."""
        c = self.config
        if c.q_lora_rank is None:
            q = self.q_proj(hidden)
        else:
            q = self.q_b_proj(self.q_a_layernorm.norm(self.q_a_proj(hidden)))
        q = q.unflatten(-1, (self.heads, c.qk_head_dim)).transpose(1, 2)
        q_nope, q_rope = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], -1)
        row = self.kv_a_proj_with_mqa(hidden).unsqueeze(1)
        cos, sin = self.angles(inputs, hidden.dtype)
        q_rope = self.turn(q_rope, cos, sin, c.rope_interleave)
        return q_nope, q_rope, row, cos, sin

    def angles(self, inputs: StepInputs, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos, sin [B, 1, S, Dr]: the step's, or this layer's own."""
        cos, sin = inputs.cos, inputs.sin
        if self.rotary_emb is not None:
            cos, sin = self.rotary_emb(inputs.positions, dtype)
        assert cos is not None and sin is not None
        return cos, sin

    def project(
        self, hidden: Tensor, inputs: StepInputs
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """hidden [B, S, H] -> q_nope [B, N, S, Dn], q_rope [B, N, S, Dr], latent [B, 1,
        S, R], k_rope [B, 1, S, Dr]."""
        c = self.config
        q_nope, q_rope, row, cos, sin = self.queries(hidden, inputs)
        latent, k_rope = row.split([c.kv_lora_rank, c.qk_rope_head_dim], -1)
        return (
            q_nope,
            q_rope,
            self.kv_a_layernorm.norm(latent),
            self.turn(k_rope, cos, sin, c.rope_interleave),
        )

    def output(self, heads_out: Tensor) -> Tensor:
        """[B, N, S, Dv] -> [B, S, H], summed over ranks."""
        return self.o_proj(heads_out.transpose(1, 2).flatten(2))


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """softmax(scale q k^T + mask) v with the softmax in float32. [B, N, S, D], [B, N,
    L, D], [B, N, L, Dv]."""
    assert mask is not None
    scores = (q @ k.transpose(-1, -2)).float() * scale + mask
    return scores.softmax(-1).to(q.dtype) @ v


def attentions(model: nn.Module) -> dict[str, LatentProjections]:
    """Every attention of a model by its published name: the MTP layer's is that of the
    layer behind the last."""
    modules = model.named_modules()
    found = [(name, m) for name, m in modules if isinstance(m, LatentProjections)]
    layers = sum(not name.startswith("mtp.") for name, _ in found)
    behind = f"model.layers.{layers}."
    return {
        behind + name.removeprefix("mtp.") if name.startswith("mtp.") else name: m
        for name, m in found
    }


class ExpandedAttention(LatentProjections):
    """Upstream: every head's keys and values are expanded from the latent row and
    cached in full."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__(ctx)
        c = ctx.config
        self.kv_b_proj = ColumnParallelLinear(
            ctx,
            c.kv_lora_rank,
            c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim),
            keep=True,
        )

    @property
    def cache_widths(self) -> list[tuple[int, int]]:
        return [
            (self.heads, self.config.qk_head_dim),
            (self.heads, self.config.v_head_dim),
        ]

    def forward(
        self, hidden: Tensor, inputs: StepInputs, cache: Cache | None, layer: int
    ) -> Tensor:
        """hidden [B, S, H] -> [B, S, H]; the new positions are added to the cache."""
        c = self.config
        q_nope, q_rope, latent, k_rope = self.project(hidden, inputs)
        kv = (
            self.kv_b_proj(latent.squeeze(1))
            .unflatten(-1, (self.heads, -1))
            .transpose(1, 2)
        )
        k_nope, v = kv.split([c.qk_nope_head_dim, c.v_head_dim], -1)
        q = torch.cat((q_nope, q_rope), -1)
        k = torch.cat((k_nope, k_rope.expand(-1, self.heads, -1, -1)), -1)
        if cache is not None:
            all_k, all_v = cache.update(layer, k, v)
            if not inputs.first:
                k, v = all_k, all_v
        return self.output(attend(q, k, v, inputs.mask, self.scale))


class LowRankAttention(LatentProjections):
    """Ported: kv_b_proj is split into w_k and w_v; decode moves them to the query and
    to the output.

    scores = q_nope (w_k latent) = (q_nope w_k) latent, so the cache keeps only latent
    and k_rope, one row for all heads. Several queries at once (prefill) share their
    keys, and expanding is cheaper there (`prefill_attention`): by fused kernels, or as
    upstream with all scores in memory ("plain").
    """

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__(ctx)
        c = ctx.config
        self.prefill = ctx.plan.prefill_attention
        self.kv_b_proj_w_k = ctx.empty(self.heads, c.qk_nope_head_dim, c.kv_lora_rank)
        self.kv_b_proj_w_v = ctx.empty(self.heads, c.kv_lora_rank, c.v_head_dim)

    @property
    def cache_widths(self) -> list[tuple[int, int]]:
        return [(1, self.config.kv_lora_rank + self.config.qk_rope_head_dim)]

    def forward(
        self, hidden: Tensor, inputs: StepInputs, cache: Cache | None, layer: int
    ) -> Tensor:
        """hidden [B, S, H] -> [B, S, H]; the new positions are added to the cache."""
        q_nope, q_rope, latent, k_rope = self.project(hidden, inputs)
        rows = torch.cat((latent, k_rope), -1)  # [B, 1, S, R + Dr]
        if cache is not None:
            (all_rows,) = cache.update(layer, rows)
            if not inputs.first:
                rows = all_rows
        return self.output(self.over_rows(q_nope, q_rope, rows, inputs))

    def over_rows(
        self, q_nope: Tensor, q_rope: Tensor, rows: Tensor, inputs: StepInputs
    ) -> Tensor:
        """Queries [B, N, S, *] over rows [B, 1, L, R + Dr] -> [B, N, S, Dv]."""
        if inputs.slot is not None:
            return self.over_filled(q_nope, q_rope, rows, inputs.pad, inputs.slot)
        if inputs.mask is None:
            k_nope, k_rope, v = self.keys_values(rows)
            return ops.causal_attention(
                (q_nope, q_rope), (k_nope, k_rope), v, inputs.pad, self.scale
            )
        if q_nope.shape[2] == 1 or self.prefill == "absorbed" or inputs.verify:
            return self.absorbed(q_nope, q_rope, rows, inputs.mask)
        return self.expanded(q_nope, q_rope, rows, inputs.mask)

    def absorbed(
        self, q_nope: Tensor, q_rope: Tensor, rows: Tensor, mask: Tensor
    ) -> Tensor:
        """Queries in the latent space; keys and values are the cached rows [B, 1, L, R
        + Dr] themselves."""
        q = torch.cat(
            (ops.head_matmul(q_nope, self.kv_b_proj_w_k), q_rope), -1
        )  # [B, N, S, R + Dr]
        batch, heads, length, width = q.shape
        shared = rows.squeeze(
            1
        )  # one key head for all N: the heads are rows of one matmul
        scores = ops.shared_scores(
            q.reshape(batch, heads * length, width), shared
        ).view(batch, heads, length, -1)
        weights = (scores.float() * self.scale + mask).softmax(-1).to(q.dtype)
        latent = (
            weights.view(batch, heads * length, -1)
            @ shared[..., : self.config.kv_lora_rank]
        )
        return ops.head_matmul(
            latent.view(batch, heads, length, -1), self.kv_b_proj_w_v
        )

    def over_filled(
        self, q_nope: Tensor, q_rope: Tensor, rows: Tensor, pad: Tensor, slot: Tensor
    ) -> Tensor:
        """`absorbed` of a decode step, by an operator that knows which of the rows [B, 1,
        L, R + Dr] are filled: from pad to slot [B]."""
        q = torch.cat((ops.head_matmul(q_nope, self.kv_b_proj_w_k), q_rope), -1)
        rank, shared = self.config.kv_lora_rank, rows.squeeze(1)
        latent = ops.decode_attention(q, shared, pad, slot, self.scale, rank)
        return ops.head_matmul(latent, self.kv_b_proj_w_v)

    def expanded(
        self, q_nope: Tensor, q_rope: Tensor, rows: Tensor, mask: Tensor
    ) -> Tensor:
        """Keys and values of each head from the rows, as upstream."""
        k_nope, k_rope, v = self.keys_values(rows)
        q, k = torch.cat((q_nope, q_rope), -1), torch.cat((k_nope, k_rope), -1)
        inner = attend if self.prefill == "plain" else ops.attention
        return inner(q, k, v, mask, self.scale)

    def keys_values(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """rows [B, 1, L, R + Dr] -> k_nope [B, N, L, Dn], k_rope [B, N, L, Dr] (one for
        all heads), v [B, N, L, Dv]."""
        latent, k_rope = rows.split(
            [self.config.kv_lora_rank, self.config.qk_rope_head_dim], -1
        )

        def per_head(weight: Tensor) -> Tensor:  # [N, D, R] -> [B, N, L, D]
            return (
                ops.linear(latent.squeeze(1), weight.flatten(0, 1))
                .unflatten(-1, (self.heads, -1))
                .transpose(1, 2)
            )

        return (
            per_head(self.kv_b_proj_w_k),
            k_rope.expand(-1, self.heads, -1, -1),
            per_head(self.kv_b_proj_w_v.transpose(1, 2)),
        )


ATTENTION: dict[str, type[ExpandedAttention] | type[LowRankAttention]] = {
    "expanded": ExpandedAttention,
    "low_rank": LowRankAttention,
}

"""Absorbed attention over a paged cache, by the operators that production ports use.

npu_kv_rmsnorm_rope_cache_v2 normalises, rotates and writes a token's row in one launch;
npu_fused_infer_attention_score_v2 reads only what each sequence has; both products with
the absorbed weights are npu_transpose_batchmatmul. The operators take a latent of 512
and a rotary part of 64, DeepSeek-V3's. Smaller models are widened to that, which leaves
every sum as it is: the latent repeated (its mean square stays), gamma and queries
filled with zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..errors import PortError
from .attention import ATTENTION, ExpandedAttention, LowRankAttention, StepInputs
from .cache import Cache
from .context import BuildContext
from .paged_cache import PagedCache, PagedStep

LATENT, ROTARY, HEADS = 512, 64, 128


class PagedAttention(LowRankAttention):
    """Ported: LowRankAttention with its weights, over a PagedCache. One query, or
    several with prefill_attention "absorbed", go through the fused operator; other
    prompts are expanded as before."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__(ctx)
        rank, rotary = self.config.kv_lora_rank, self.config.qk_rope_head_dim
        if LATENT % rank or rotary > ROTARY or rotary % 2:
            raise PortError(
                f"kv_lora_rank {rank} and qk_rope_head_dim {rotary}: the paged cache's operators take "
                f"{LATENT} and {ROTARY}, and what widens to them: a divisor of {LATENT}, and an even "
                f"number up to {ROTARY}; use cache 'fixed'"
            )
        if self.heads > HEADS or self.heads & (self.heads - 1):
            raise PortError(
                f"{self.heads} heads on this rank: npu_fused_infer_attention_score_v2 takes a power of two "
                f"up to {HEADS} in its absorbed form; use cache 'fixed'"
            )

    @property
    def cache_widths(self) -> list[tuple[int, int]]:
        return [(1, ROTARY), (1, LATENT)]

    def forward(
        self, hidden: Tensor, inputs: StepInputs, cache: Cache | None, layer: int
    ) -> Tensor:
        """hidden [B, S, H] -> [B, S, H]; the new positions are added to the cache."""
        if cache is None:
            return super().forward(hidden, inputs, cache, layer)
        assert isinstance(cache, PagedCache) and inputs.paged is not None
        q_nope, q_rope, row, cos, sin = self.queries(hidden, inputs)
        k_rope, latent = self.write(row, cos, sin, inputs.paged, cache.buffers[layer])
        few = hidden.shape[1] == 1 or inputs.verify
        if few or self.prefill == "absorbed":
            return self.fused(q_nope, q_rope, inputs, cache.buffers[layer])
        if not inputs.first:
            k_rope, latent = self.gathered(cache, layer, inputs.paged)
        rows = (latent[..., : self.config.kv_lora_rank], self.narrowed(k_rope))
        return self.output(self.over_rows(q_nope, q_rope, torch.cat(rows, -1), inputs))

    def gathered(
        self, cache: PagedCache, layer: int, step: PagedStep
    ) -> tuple[Tensor, Tensor]:
        """All rows of the sequences, new ones with them: k_rope [B, 1, L, 64], latent [B, 1,
        L, 512]."""
        k_rope, latent = cache.gathered(layer, step)
        return k_rope, latent

    def store_scales(self) -> dict[str, Any]:
        """What the cache's update multiplies by as it writes: nothing, where rows are stored
        as they are."""
        return {}

    def write(
        self,
        row: Tensor,
        cos: Tensor,
        sin: Tensor,
        step: PagedStep,
        buffers: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """row [B, 1, S, R + Dr] normalised, rotated and written at its slots: (k_rope [B,
        1, S, 64], latent [B, 1, S, 512])."""
        rank, rotary = self.config.kv_lora_rank, self.config.qk_rope_head_dim
        latent, k_rope = row.split([rank, rotary], -1)
        if not self.config.rope_interleave:  # the operator takes pairs
            k_rope = k_rope.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        repeated = (latent,) * (LATENT // rank)
        kv = torch.cat((*repeated, F.pad(k_rope, (0, ROTARY - rotary))), -1)
        norm, (k_cache, ckv_cache) = self.kv_a_layernorm, buffers
        k_rope, latent = (
            ops.npu_kv_rmsnorm_rope_cache_v2(  # v1 hides its writes from a graph
                kv,
                F.pad(norm.weight, (0, LATENT - rank)),
                self.widened(cos),
                self.widened(sin),
                step.index,
                k_cache,
                ckv_cache,
                epsilon=norm.eps,
                cache_mode="PA",
                is_output_kv=True,
                **self.store_scales(),
            )
        )
        return k_rope, latent

    def fused(
        self, q_nope: Tensor, q_rope: Tensor, inputs: StepInputs, buffers: list[Tensor]
    ) -> Tensor:
        """Queries [B, N, S, Dn], [B, N, S, Dr] over the blocks [blocks, block, 1, width] ->
        [B, S, H]."""
        batch, _, length, _ = q_nope.shape
        rank = self.config.kv_lora_rank
        q = ops.npu_transpose_batchmatmul(
            q_nope.transpose(1, 2).flatten(0, 1),
            self.kv_b_proj_w_k,
            perm_x1=(1, 0, 2),
            perm_y=(1, 0, 2),
        )  # [B * S, N, R]
        query = F.pad(q, (0, LATENT - rank)).unflatten(0, (batch, length))
        rotary = self.widened(q_rope.transpose(1, 2)).contiguous()
        return self.over_blocks(query, rotary, inputs, buffers)

    def over_blocks(
        self,
        query: Tensor,
        query_rope: Tensor,
        inputs: StepInputs,
        buffers: list[Tensor],
        scales: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Queries over the latents [B, S, N, 512] and their rotary parts [B, S, N, 64] -> [B,
        S, H]. scales: of int8 queries [B, S, N] and of int8 latents [1]."""
        assert inputs.paged is not None
        of_int8 = {} if scales is None else {"scales": scales}
        out = ops.paged_attention(
            query,
            query_rope,
            buffers[1].flatten(2),
            buffers[0].flatten(2),
            inputs.paged.table,
            inputs.paged.lengths,
            inputs.mask,
            self.scale,
            **of_int8,
        )  # [N, B, S, 512]
        heads_out = ops.npu_transpose_batchmatmul(
            out.flatten(1, 2)[..., : self.config.kv_lora_rank],
            self.kv_b_proj_w_v,
            perm_y=(1, 0, 2),
        )  # [B * S, N, Dv]
        return self.o_proj(heads_out.flatten(1).unflatten(0, query.shape[:2]))

    def widened(self, x: Tensor) -> Tensor:
        """[..., Dr] in two halves -> [..., 64] in two halves, 0 at the end of each."""
        fill = (ROTARY - x.shape[-1]) // 2
        return F.pad(x.unflatten(-1, (2, -1)), (0, fill)).flatten(-2) if fill else x

    def narrowed(self, x: Tensor) -> Tensor:
        """What `widened` was made of."""
        half = self.config.qk_rope_head_dim // 2
        return x.unflatten(-1, (2, -1))[..., :half].flatten(-2)


def make_paged_attention(ctx: BuildContext) -> ExpandedAttention | LowRankAttention:
    """The attention of the plan: with a paged cache, the one that goes with it."""
    if ctx.plan.cache == "paged":
        return PagedAttention(ctx)
    return ATTENTION[ctx.plan.attention](ctx)

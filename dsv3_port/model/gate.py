"""The router: sigmoid scores, a bias that steers only the choice, group-limited top-k.

DeepSeek-V3 report, section 2.1.2 (auxiliary-loss-free balancing) and DeepSeek-V2
report, section 2.2.2 (group limit).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from .context import BuildContext


def scatter_group_mask(group_scores: Tensor, group_idx: Tensor) -> Tensor:
    """Upstream: 1 where a group was chosen. [T, G], [T, topk_group] -> [T, G]."""
    mask = torch.zeros_like(group_scores)
    return mask.scatter_(1, group_idx, 1.0)


def one_hot_group_mask(group_scores: Tensor, group_idx: Tensor) -> Tensor:
    """Ported: compare each chosen index with 0..G-1 and add up; no scattered writes."""
    groups = torch.arange(
        group_scores.shape[1], dtype=group_idx.dtype, device=group_idx.device
    )
    one_hot = (group_idx.unsqueeze(-1) == groups).to(
        group_scores.dtype
    )  # [T, topk_group, G]
    return one_hot.sum(1)


GROUP_MASK = {"scatter": scatter_group_mask, "one_hot": one_hot_group_mask}


class Gate(nn.Module):
    """hidden [T, H] -> (topk_idx [T, K] int64, topk_weight [T, K] float32); the same
    on every rank."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        config = ctx.config
        self.config = config
        # float32 as the report computes it; a bf16 weight is exact in it
        self.weight = ctx.empty(
            config.n_routed_experts, config.hidden_size, dtype=torch.float32
        )
        self.e_score_correction_bias = ctx.empty(
            config.n_routed_experts, dtype=torch.float32
        )
        self.group_mask = GROUP_MASK[ctx.plan.group_mask]
        self.mask_value = ctx.plan.group_mask_value

    def choose(self, scores: Tensor) -> Tensor:
        """Unbiased scores [T, E] -> the K chosen experts of each token [T, K]."""
        c = self.config
        biased = scores + self.e_score_correction_bias
        if c.n_group > 1:
            groups = biased.view(-1, c.n_group, c.n_routed_experts // c.n_group)
            group_scores = groups.topk(2, -1)[0].sum(-1)
            group_idx = group_scores.topk(c.topk_group, -1)[1]
            mask = self.group_mask(group_scores, group_idx)
            biased = groups.masked_fill(
                mask.unsqueeze(-1) == 0, self.mask_value
            ).flatten(1)
        return biased.topk(c.num_experts_per_tok, -1)[1]

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        scores = ops.linear(hidden.float(), self.weight).sigmoid()
        topk_idx = self.choose(scores)
        topk_weight = scores.gather(1, topk_idx)
        if self.config.norm_topk_prob:
            topk_weight = topk_weight / (topk_weight.sum(-1, keepdim=True) + 1e-20)
        return topk_idx, topk_weight * self.config.routed_scaling_factor

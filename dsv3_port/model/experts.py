"""Routed experts and the MoE block. DeepSeek-V3 report, section 2.1.2.

Cut over ranks, every rank holds every expert with I/W of its width; the all-reduce
follows once for the block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from . import int8
from .context import BuildContext
from .gate import Gate
from .mlp import make_mlp


class ExpertLoop(nn.ModuleList):
    """Upstream: one MLP per expert, visited in a Python loop.

    x [T, H], topk_idx [T, K], topk_weight [T, K] float32, shared [T, H] or None -> [T, H].
    The number of tokens of each expert is read on the host, so every layer waits for
    the device, and a graph breaks here.
    """

    def __init__(self, ctx: BuildContext) -> None:
        c = ctx.config
        super().__init__(
            make_mlp(ctx, c.moe_intermediate_size, reduce=False)
            for _ in range(c.n_routed_experts)
        )

    def forward(
        self, x: Tensor, topk_idx: Tensor, topk_weight: Tensor, shared: Tensor | None
    ) -> Tensor:
        tokens, top = topk_idx.shape
        order = topk_idx.flatten().argsort(stable=True)
        counts = torch.zeros(len(self), dtype=torch.int64, device=x.device)
        counts.scatter_add_(0, topk_idx.flatten(), torch.ones_like(topk_idx).flatten())
        rows = x[order // top]
        parts, start = [], 0
        for expert, count in enumerate(counts.tolist()):
            if count:
                parts.append(self[expert](rows[start : start + count]))
                start += count
        expert_out = torch.empty_like(rows)
        expert_out[order] = torch.cat(parts)
        y = (
            (expert_out.view(tokens, top, -1) * topk_weight.unsqueeze(-1))
            .sum(1)
            .to(x.dtype)
        )
        return y if shared is None else y + shared


class GroupedExperts(nn.Module):
    """Ported: rows sorted by expert, then two grouped matmuls (GMM) over stacked
    weights. Signature of ExpertLoop.

    group_w1_w3 [E, 2I/W, H] holds [gate | up] of each expert (group_w1 and group_w3
    apart without the merged MLP), group_w2 [E, H, I/W].
    """

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        c = ctx.config
        experts, width = (
            c.n_routed_experts,
            ctx.share(c.moe_intermediate_size, "moe_intermediate_size"),
        )
        self.experts, self.merged = experts, ctx.plan.mlp == "merged"
        self.gmm = ctx.gmm
        if self.merged:
            self.group_w1_w3 = ctx.matrix(experts, 2 * width, c.hidden_size)
        else:
            self.group_w1 = ctx.matrix(experts, width, c.hidden_size)
            self.group_w3 = ctx.matrix(experts, width, c.hidden_size)
        self.group_w2 = ctx.matrix(experts, c.hidden_size, width)
        self.route = (
            self.moe_infer_fusion
            if ctx.plan.npu_routing_kernel
            else self.moe_infer_normal
        )

    def forward(
        self, x: Tensor, topk_idx: Tensor, topk_weight: Tensor, shared: Tensor | None
    ) -> Tensor:
        return self.route(x, topk_idx, topk_weight, shared)

    def multiply(self, rows: Tensor, group_list: Tensor) -> Tensor:
        """rows [T*K, H] sorted by expert; group_list [E] int64, the row after each
        expert's last -> [T*K, H]."""

        def gmm(x: Tensor, weight: Tensor) -> Tensor:  # weight [E, N, K]
            return self.gmm(x, weight.transpose(1, 2), group_list)

        if self.merged:
            inner = ops.npu_swiglu(gmm(rows, self.group_w1_w3))
        else:
            inner = F.silu(gmm(rows, self.group_w1)) * gmm(rows, self.group_w3)
        return gmm(inner, self.group_w2)

    def moe_infer_normal(
        self, x: Tensor, topk_idx: Tensor, topk_weight: Tensor, shared: Tensor | None
    ) -> Tensor:
        """Routing in torch: sort, count, multiply, un-sort, weigh."""
        tokens, top = topk_idx.shape
        sorted_expert, order = (
            topk_idx.flatten().sort()
        )  # any order within an expert: torchair has no stable sort
        last = torch.arange(self.experts, device=x.device).unsqueeze(-1)
        group_list = (sorted_expert <= last).sum(-1)  # rows up to and with each expert
        out = self.multiply(x[order // top], group_list)
        back = order.sort()[1]  # position of choice (token, k) among the sorted rows
        y = (
            (out[back].view(tokens, top, -1) * topk_weight.unsqueeze(-1))
            .sum(1)
            .to(x.dtype)
        )
        return y if shared is None else y + shared

    def moe_infer_fusion(
        self, x: Tensor, topk_idx: Tensor, topk_weight: Tensor, shared: Tensor | None
    ) -> Tensor:
        """Routing by npu_moe_init_routing, npu_moe_compute_expert_tokens and
        npu_moe_finalize_routing."""
        tokens, top = topk_idx.shape
        topk_idx = topk_idx.to(torch.int32)
        # column-major by contract: choice k of token t has number k*T + t
        row_idx = (
            torch.arange(tokens * top, dtype=torch.int32, device=x.device)
            .view(top, tokens)
            .t()
            .contiguous()
        )
        rows, back, sorted_expert = ops.npu_moe_init_routing(
            x, row_idx, topk_idx, tokens
        )
        group_list = ops.npu_moe_compute_expert_tokens(sorted_expert, self.experts).to(
            torch.int64
        )
        out = self.multiply(rows, group_list)
        scales = (
            topk_weight if x.dtype == torch.bfloat16 else topk_weight.to(x.dtype)
        )  # bf16 rows take float32 scales
        return ops.npu_moe_finalize_routing(
            out, shared, None, None, scales, back, topk_idx
        )


class Int8Experts(GroupedExperts):
    """GroupedExperts of int8: what stands between the two grouped matmuls is int8 too.
    Each stack of weights has its _scale [E, rows, 1]; with weight_format 'nz' a stack is
    [E, in, out]."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__(ctx)
        self.nz = ctx.nz
        for name, weight in list(self.named_parameters()):
            kind = torch.float32
            if not self.merged or name == "group_w2":
                kind = int8.scale_dtype(ctx.dtype)
            outputs = weight.shape[-1 if self.nz else 1]
            scale = ctx.scale(self.experts, outputs, dtype=kind)
            setattr(self, f"{name}_scale", scale)

    def stack(self, name: str) -> tuple[Tensor, Tensor]:
        """Codes [E, in, out] and scales of one of the stacks."""
        weight = getattr(self, name)
        codes = weight if self.nz else weight.transpose(1, 2)
        return codes, getattr(self, f"{name}_scale")

    def multiply(self, rows: Tensor, group_list: Tensor) -> Tensor:
        """As GroupedExperts', which it stands in for."""
        codes, scales = int8.quantised(rows)

        def gmm(codes: Tensor, scales: Tensor, name: str) -> Tensor:
            weights = self.stack(name)
            return int8.grouped_product(codes, scales, *weights, group_list, rows.dtype)

        if self.merged:
            weight, scale = self.stack("group_w1_w3")
            total = int8.grouped_sums(codes, weight, group_list)
            counts = int8.counts_of(group_list)
            inner = int8.swiglu(total, scales, scale, counts)
        else:
            gate, up = (gmm(codes, scales, name) for name in ("group_w1", "group_w3"))
            inner = int8.quantised(F.silu(gate) * up)
        return gmm(*inner, "group_w2")


EXPERTS: dict[str, type[ExpertLoop] | type[GroupedExperts]] = {
    "loop": ExpertLoop,
    "grouped": GroupedExperts,
}


def make_experts(ctx: BuildContext) -> ExpertLoop | GroupedExperts:
    """The experts of the plan; in the loop each one's own matrices are int8 or not."""
    if ctx.int8 and ctx.plan.experts == "grouped":
        return Int8Experts(ctx)
    return EXPERTS[ctx.plan.experts](ctx)


class MoE(nn.Module):
    """[B, S, H] -> [B, S, H]: gate, routed experts, shared experts, one all-reduce."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        c = ctx.config
        self.parallel = ctx.parallel
        self.gate = Gate(ctx)
        self.experts = make_experts(ctx)
        self.shared_experts = None
        if c.n_shared_experts:
            self.shared_experts = make_mlp(
                ctx, c.moe_intermediate_size * c.n_shared_experts, reduce=False
            )

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.flatten(0, -2)  # [T, H]
        topk_idx, topk_weight = self.gate(x)
        shared = self.shared_experts(x) if self.shared_experts is not None else None
        return self.parallel.all_reduce(
            self.experts(x, topk_idx, topk_weight, shared)
        ).view_as(hidden)

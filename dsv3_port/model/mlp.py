"""SwiGLU MLP: down(silu(gate(x)) * up(x)). Dense layers, shared experts and, in the
loop form, each routed expert."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from . import int8
from .context import BuildContext
from .linear import ColumnParallelLinear, RowParallelLinear


class SplitMLP(nn.Module):
    """Upstream: two matmuls, SiLU and a product. [..., H] -> [..., H]; each rank holds
    I/W of the width."""

    def __init__(self, ctx: BuildContext, width: int, reduce: bool = True) -> None:
        super().__init__()
        hidden = ctx.config.hidden_size
        self.gate_proj = ColumnParallelLinear(ctx, hidden, width)
        self.up_proj = ColumnParallelLinear(ctx, hidden, width)
        self.down_proj = RowParallelLinear(ctx, width, hidden, reduce)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MergedMLP(nn.Module):
    """Ported: one matmul with rows [gate | up] of this rank, then npu_swiglu.

    The merge comes after the cut: a slice of the whole [gate | up] would put gate on
        one rank and up on another.
    """

    def __init__(self, ctx: BuildContext, width: int, reduce: bool = True) -> None:
        super().__init__()
        hidden = ctx.config.hidden_size
        self.merge_up_gate_proj = ColumnParallelLinear(ctx, hidden, 2 * width)
        self.down_proj = RowParallelLinear(ctx, width, hidden, reduce)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(ops.npu_swiglu(self.merge_up_gate_proj(x)))


class Int8MLP(MergedMLP):
    """MergedMLP of int8: what stands between its two matmuls is int8 too."""

    def forward(self, x: Tensor) -> Tensor:
        merged = self.merge_up_gate_proj
        assert merged.weight_scale is not None
        codes, scales = int8.quantised(x)
        total = int8.sums(codes, merged.codes, merged.weight_scale)
        inner = int8.swiglu(total, scales, merged.weight_scale)
        return self.down_proj.of_int8(*inner, x)


MLP: dict[str, type[SplitMLP] | type[MergedMLP]] = {
    "split": SplitMLP,
    "merged": MergedMLP,
}


def make_mlp(
    ctx: BuildContext, width: int, reduce: bool = True
) -> SplitMLP | MergedMLP:
    if ctx.int8 and ctx.plan.mlp == "merged":
        return Int8MLP(ctx, width, reduce)
    return MLP[ctx.plan.mlp](ctx, width, reduce)

"""RMSNorm, and the residual addition before it. DeepSeek-V3 report, section 2.1;
npu_rms_norm, npu_add_rms_norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import ops
from .context import BuildContext

LATENT_EPS = 1e-6


class SeparateNorm(nn.Module):
    """Upstream: add, then normalise, each as torch operators. Rounds to the dtype
    before the weight's product."""

    def __init__(self, ctx: BuildContext, width: int, eps: float) -> None:
        super().__init__()
        self.weight = ctx.empty(width)
        self.eps = eps

    def norm(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)

    def forward(self, delta: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(what the last block added, the stream before it) -> (normalised stream,
        stream); all [B, S, H]."""
        stream = delta if residual is None else residual + delta
        return self.norm(stream), stream


def add_norm(
    residual: Tensor,
    delta: Tensor,
    weight: Tensor,
    eps: float,
    npu_add_rms_norm: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """[B, S, H] both -> (normalised sum, sum), by one operator."""
    normalised, _, stream = npu_add_rms_norm(residual, delta, weight, eps)
    return normalised, stream


class FusedNorm(nn.Module):
    """Ported: npu_add_rms_norm gives the normalised value and the new residual stream
    in one operator."""

    def __init__(self, ctx: BuildContext, width: int, eps: float) -> None:
        super().__init__()
        self.weight = ctx.empty(width)
        self.eps = eps
        self.add_norm: Callable[..., tuple[Tensor, Tensor]] = add_norm

    def norm(self, x: Tensor) -> Tensor:
        return ops.npu_rms_norm(x, self.weight, self.eps)[0]

    def forward(self, delta: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            return self.norm(delta), delta
        by = ops.npu_add_rms_norm
        return self.add_norm(residual, delta, self.weight, self.eps, by)


NORM: dict[str, type[SeparateNorm] | type[FusedNorm]] = {
    "separate": SeparateNorm,
    "add_rms_norm": FusedNorm,
}


def make_norm(ctx: BuildContext, width: int) -> SeparateNorm | FusedNorm:
    """A norm of the residual stream."""
    return NORM[ctx.plan.norm](ctx, width, ctx.config.rms_norm_eps)


def make_latent_norm(ctx: BuildContext, width: int) -> SeparateNorm | FusedNorm:
    """A norm of a low-rank latent: transformers and DeepSeek's own code leave its epsilon
    at 1e-6 whatever config.json says of rms_norm_eps."""
    return NORM[ctx.plan.norm](ctx, width, LATENT_EPS)

"""Rotary position embedding with YaRN frequencies, on DeepSeek's interleaved pairs.

arXiv 2104.09864 (RoPE), arXiv 2309.00071 section 3.2 (YaRN's NTK-by-parts), DeepSeek-V2
report section 2.1.3. Both forms leave the result in half layout (all first members of
the pairs, then all second): queries and keys go through the same permutation, so their
products are those of the interleaved layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import ops
from ..config import DeepseekV3Config


def inverse_frequencies(config: DeepseekV3Config) -> Tensor:
    """[Dr/2] float32: theta^(-2i/Dr), blended by YaRN between the trained and the
    stretched frequency."""
    dim = config.qk_rope_head_dim
    plain = 1.0 / config.rope_theta ** (
        torch.arange(0, dim, 2, dtype=torch.float32) / dim
    )
    yarn = config.rope_scaling
    if yarn is None:
        return plain

    def pair_turning(
        rotations: float,
    ) -> float:  # index of the pair that makes so many turns over the trained length
        length = yarn.original_max_position_embeddings
        return (
            dim
            * math.log(length / (rotations * 2 * math.pi))
            / (2 * math.log(config.rope_theta))
        )

    low, high = map(pair_turning, yarn.rotations)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = (high - low) or 0.001
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / width
    stretched = ramp.clamp(
        0, 1
    )  # 0: fast pairs keep their frequency, 1: slow pairs are divided by the factor
    return plain / yarn.factor * stretched + plain * (1 - stretched)


class RotaryEmbedding(nn.Module):
    """positions [B, S] -> cos, sin [B, 1, S, Dr] (both halves alike), in the model's
    dtype."""

    def __init__(
        self, config: DeepseekV3Config, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.inv_freq: Tensor
        self.register_buffer(
            "inv_freq", inverse_frequencies(config).to(device), persistent=False
        )
        self.scale = config.rope_scaling.cos_sin_scale if config.rope_scaling else 1.0

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angle = positions[:, None, :, None].float() * self.inv_freq
        angle = torch.cat((angle, angle), -1)
        return (angle.cos() * self.scale).to(dtype), (angle.sin() * self.scale).to(
            dtype
        )


def to_halves(x: Tensor) -> Tensor:
    """Pairs (x0, x1), (x2, x3), ... -> (x0, x2, ... | x1, x3, ...), last dim."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Upstream: x [B, N, S, Dr] turned by cos, sin [B, 1, S, Dr], one torch operator
    after the other."""
    if interleaved:
        x = to_halves(x)
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def apply_rope_ported(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Ported: npu_interleave_rope where its document allows it (Dr 64, 16 bit), else
    halves and npu_rotary_mul."""
    if interleaved and x.shape[-1] == 64 and x.dtype != torch.float32:
        return ops.npu_interleave_rope(x.contiguous(), cos, sin)
    return ops.npu_rotary_mul(to_halves(x) if interleaved else x, cos, sin)


ROPE: dict[str, Callable[..., Tensor]] = {
    "per_layer": apply_rope,
    "per_step": apply_rope_ported,
}

"""One layer of the decoder: attention and MLP, each behind its norm."""

from __future__ import annotations

from torch import Tensor, nn

from .attention import StepInputs
from .c8 import make_attention
from .cache import Cache
from .context import BuildContext
from .experts import MoE
from .mlp import make_mlp
from .norm import make_norm


class DecoderLayer(nn.Module):
    """(delta, residual) -> (delta, residual), each [B, S, H]; the stream after a layer
    is their sum.

    The addition is left to the next norm, so that the ported form can do both in one
    operator.
    """

    def __init__(self, ctx: BuildContext, layer: int) -> None:
        super().__init__()
        c = ctx.config
        self.layer = layer
        self.input_layernorm = make_norm(ctx, c.hidden_size)
        self.self_attn = make_attention(ctx)
        self.post_attention_layernorm = make_norm(ctx, c.hidden_size)
        self.mlp = MoE(ctx) if c.is_moe(layer) else make_mlp(ctx, c.intermediate_size)

    def forward(
        self,
        delta: Tensor,
        residual: Tensor | None,
        inputs: StepInputs,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor]:
        hidden, residual = self.input_layernorm(delta, residual)
        hidden = self.self_attn(hidden, inputs, cache, self.layer)
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        return self.mlp(hidden), residual

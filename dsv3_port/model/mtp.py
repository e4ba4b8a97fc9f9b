"""Multi-token prediction: the layer behind the last drafts the token after the next.

DeepSeek-V3 report (arXiv 2412.19437), section 2.2, figure 3. For position i with the main
model's state h_i behind its final norm, and the next token x_{i+1}:

    e = norm(embed(x_{i+1}), enorm)    g = norm(h_i, hnorm)    z = [e ; g] eh_proj^T
    u = layer(z) at position i         draft of x_{i+2} = head(norm(u, shared_head.norm))

The report prints [g ; e]; the published weights take the embedding first
(NVIDIA/Megatron-LM#1588, sgl-project/sglang#3798). Embedding and head are the main
model's: the published file holds copies of both, which are not read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .attention import StepInputs
from .cache import Cache
from .context import BuildContext
from .layer import DecoderLayer
from .linear import Linear
from .norm import make_norm

VERIFIED = 2  # positions of a verify step: the last token and one draft
Accept = Callable[[Tensor, Tensor], Tensor]


def accept(logits: Tensor, drafted: Tensor) -> Tensor:
    """Greedy verification: logits [B, 2, V] behind the last token and behind its draft,
    drafted [B] -> [B, 3] int64: the token behind the last one; the newest token, which
    the next step computes; whether the draft is accepted (1 or 0)."""
    first, second = logits.argmax(-1).unbind(1)
    accepted = first == drafted
    newest = torch.where(accepted, second, first)
    return torch.stack((first, newest, accepted.long()), 1)


class MultiTokenPrediction(DecoderLayer):
    """A decoder layer of its own, with its own rows in the cache; names are those of
    `model.layers.61.` in the published checkpoint."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__(ctx, ctx.config.num_hidden_layers)
        width = ctx.config.hidden_size
        self.enorm, self.hnorm = make_norm(ctx, width), make_norm(ctx, width)
        self.eh_proj = Linear(ctx, 2 * width, width, keep=True)
        self.shared_head = nn.ModuleDict({"norm": make_norm(ctx, width)})

    def draft(
        self, embedded: Tensor, hidden: Tensor, inputs: StepInputs, cache: Cache | None
    ) -> Tensor:
        """embedded [B, S, H] of the next token of each position, hidden [B, S, H] of the
        position itself -> states for the head [B, S, H]."""
        pair = torch.cat((self.enorm.norm(embedded), self.hnorm.norm(hidden)), -1)
        delta, residual = self(self.eh_proj(pair), None, inputs, cache)
        state: Tensor = self.shared_head["norm"](delta, residual)[0]
        return state

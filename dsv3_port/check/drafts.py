"""Drawn text with drafts against its definition: what rejection sampling emits is what the model alone
would draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..count.speculation import over_text
from ..engine import rejection
from ..engine.sampler import Sampling
from ..model.decoder import DeepseekV3

Residual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Drawn:
    """Of all tokens at all positions: the largest difference of what is emitted from the model's
    probabilities, and of what is drafted from them; the mean probability that a draft stays."""

    emitted: float
    drafted: float
    stays: float


def emitted(p: Tensor, q: Tensor, residual: Residual = rejection.residual) -> Tensor:
    """With which probability each token comes out: drafted from q [..., V] and kept, or drawn from
    `residual` after a refusal. p [..., V]: the model's."""
    kept = q * rejection.acceptance(p, q)
    return kept + (1 - kept.sum(-1, keepdim=True)) * residual(p, q)


def drawn_with_drafts(
    model: DeepseekV3, ids: Tensor, sampling: Sampling, residual: Residual = rejection.residual
) -> Drawn:
    """Over a text ids [B, S], in float64: every token of the vocabulary at each of its S - 2
    positions that have a draft."""
    logits, drafts = over_text(model, ids)
    p, q = (
        sampling.kept(x.double().flatten(0, 1) / sampling.temperature).softmax(-1)
        for x in (logits[:, 1:], drafts[:, :-1])
    )
    return Drawn(
        float((emitted(p, q, residual) - p).abs().max()),
        float((q - p).abs().max()),
        float((q * rejection.acceptance(p, q)).sum(-1).mean()),
    )

"""Rejection sampling of a drafted token: what is emitted has the model's own distribution.

A draft d drawn from q stays with the probability min(1, p(d) / q(d)); else a token is drawn from
max(p - q, 0), normalised. A token x is then emitted with the probability
q(x) min(1, p(x) / q(x)) + (1 - sum min(p, q)) max(p(x) - q(x), 0) / sum max(p - q, 0) = p(x).
arXiv 2211.17192, algorithm 1 and appendix A.1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def acceptance(p: Tensor, q: Tensor) -> Tensor:
    """With which probability each token stays where it was drafted; [..., V], p and q alike."""
    return torch.where(q > 0, (p / q).clamp(max=1), 0.0)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What is drawn from after a refusal, [..., V]. Where p is q nothing is ever refused, and p
    stands in."""
    more = (p - q).clamp(min=0)
    total = more.sum(-1, keepdim=True)
    return torch.where(total > 0, more / total, p)

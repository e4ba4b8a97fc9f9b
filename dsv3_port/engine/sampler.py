"""The choice of the next token from logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import PortError


class Sampler:
    """The next token of each row: the largest logit, or a draw from the row's own generator.

    Drawn on the host, so that the draw is the same on every device; and every rank has the same
    logits to draw from, because each part of them is computed by one rank and gathered.
    """

    def __init__(
        self, temperature: float, seeds: Sequence[int], explain: Callable[[int], str]
    ) -> None:
        if not 0 <= temperature < math.inf:  # a NaN compares false
            raise PortError(f"temperature must be 0 (greedy) or a number above, not {temperature}")
        for seed in seeds:
            if not -(2**63) <= seed < 2**64:
                raise PortError(f"seed must be within -2**63..2**64-1, {seed} is not")
        self.temperature, self.explain = temperature, explain
        self.generators = [torch.Generator().manual_seed(s) for s in seeds] if temperature else []

    def __call__(self, logits: Tensor, first_row: int = 0) -> Tensor:
        """logits [B, V] of the rows from `first_row` on -> token ids [B]. PortError where a row has
        a NaN, an infinite logit, or nothing else than -inf."""
        highest, token = logits.max(-1)
        if not bool(highest.isfinite().all()):
            raise PortError(self.explain(first_row + int(highest.isfinite().int().argmin())))
        if not self.temperature:
            return token
        scaled = logits.cpu() / self.temperature
        if not bool(scaled.isfinite().all()):  # a temperature close to 0
            scaled = (logits - highest.unsqueeze(-1)).cpu() / self.temperature
        chances = scaled.softmax(-1)
        drawn = [
            torch.multinomial(row, 1, generator=self.generators[first_row + i])
            for i, row in enumerate(chances)
        ]
        return torch.cat(drawn).to(logits.device)

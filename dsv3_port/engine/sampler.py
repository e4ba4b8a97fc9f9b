"""The choice of the next token from logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PortError


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; names and meaning are those of transformers' generate()."""

    temperature: float = 0.0  # 0 is greedy, and nothing else counts
    top_k: int = 0  # of so many likeliest tokens; 0: of all
    top_p: float = 1.0  # of the likeliest ones that together have this probability

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:  # a NaN compares false
            raise PortError(
                f"temperature must be 0 (greedy) or a number above, not {self.temperature}"
            )
        if not 0 <= self.top_k < 2**63:
            raise PortError(
                f"top_k must be a whole number, 0 (all tokens) or more, not {self.top_k}"
            )
        if not 0 <= self.top_p <= 1:
            raise PortError(f"top_p must be within 0..1, not {self.top_p}")

    def __str__(self) -> str:
        if not self.temperature:
            return "greedy"
        parts = [f"temperature {self.temperature:g}"]
        parts += [f"top_k {self.top_k}"] if self.top_k else []
        return ", ".join(parts + ([f"top_p {self.top_p:g}"] if self.top_p < 1 else []))

    def kept(self, scores: Tensor) -> Tensor:
        """Scores [B, V], already divided by the temperature, with -inf for tokens that are not
        drawn: transformers' TopKLogitsWarper, then its TopPLogitsWarper."""
        if self.top_k:
            least = scores.topk(min(self.top_k, scores.shape[-1])).values[..., -1:]
            scores = scores.masked_fill(scores < least, -math.inf)
        if self.top_p < 1:
            rising, places = scores.sort(dim=-1, stable=True)
            dropped = rising.softmax(-1).cumsum(-1) <= 1 - self.top_p
            dropped[..., -1] = False
            scores = scores.masked_fill(dropped.scatter(-1, places, dropped), -math.inf)
        return scores


def check_seed(seed: int) -> None:
    """PortError where torch.Generator takes no such seed."""
    if not -(2**63) <= seed < 2**64:
        raise PortError(f"seed must be within -2**63..2**64-1, {seed} is not")


class Sampler:
    """The next token of each row: the largest logit, or a draw from the row's own generator.

    Drawn on the host, so that the draw is the same on every device; and every rank has the same
    logits to draw from, because each part of them is computed by one rank and gathered.
    """

    def __init__(
        self, sampling: Sampling, seeds: Sequence[int], explain: Callable[[int], str]
    ) -> None:
        for seed in seeds:
            check_seed(seed)
        self.sampling, self.explain = sampling, explain
        drawn = seeds if sampling.temperature else ()
        self.generators = [torch.Generator().manual_seed(s) for s in drawn]

    def begin(self, row: int, seed: int) -> None:
        """Another sequence takes the row, with a generator of its own."""
        fresh = Sampler(self.sampling, [seed], self.explain)
        self.generators[row : row + 1] = fresh.generators

    @classmethod
    def greedy(cls) -> Sampler:
        """One that looks at no logits but to take the largest."""
        return cls(Sampling(), (), lambda row: f"the logits of row {row} are not finite")

    def __call__(self, logits: Tensor, first_row: int = 0) -> Tensor:
        """logits [B, V] of the rows from `first_row` on -> token ids [B]. PortError where a row has
        a NaN, an infinite logit, or nothing else than -inf."""
        return self.drawn(logits, first_row)[0]

    def drawn(
        self, logits: Tensor, first_row: int = 0, idle: Collection[int] = ()
    ) -> tuple[Tensor, list[int]]:
        """As a call, with the same ids on the host: the device is read once, as text needs it. idle:
        rows whose logits mean nothing, and neither do their ids; nothing is drawn for them."""
        if not self.sampling.temperature:
            highest, token = logits.max(-1)
            ids, finite = torch.stack((token, highest.isfinite().to(token.dtype))).tolist()
            self.require([f or i in idle for i, f in enumerate(finite, first_row)], first_row)
            return token, ids
        rows = self.chances(logits, first_row, idle)
        drawn = [0 if i in idle else self.pick(row, i) for i, row in enumerate(rows, first_row)]
        return torch.tensor(drawn).to(logits.device, non_blocking=True), drawn

    def chances(
        self, logits: Tensor, first_row: int = 0, idle: Collection[int] = frozenset()
    ) -> Tensor:
        """With a temperature: logits [B, V] -> the probability of each token [B, V], on the host."""
        rows = logits.cpu()
        if idle:
            rows = rows.index_fill(0, torch.tensor([i - first_row for i in idle]), 0)
        highest = rows.amax(-1, keepdim=True)
        self.require(highest.isfinite().flatten().tolist(), first_row)
        scaled = rows / self.sampling.temperature
        if not bool(scaled.isfinite().all()):  # a temperature close to 0
            scaled = (rows - highest) / self.sampling.temperature
        return self.sampling.kept(scaled).softmax(-1)

    def pick(self, chances: Tensor, row: int) -> int:
        """A token drawn from chances [V] by that row's generator."""
        return int(torch.multinomial(chances, 1, generator=self.generators[row]))

    def passes(self, chance: float, row: int) -> bool:
        """True with that probability, by that row's generator."""
        return float(torch.rand(1, generator=self.generators[row])) < chance

    def require(self, finite: Sequence[int], first_row: int = 0) -> None:
        """PortError for the first row whose logits are not finite."""
        if not all(finite):
            raise PortError(self.explain(first_row + [bool(f) for f in finite].index(False)))

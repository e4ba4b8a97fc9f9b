"""What rounding costs: one model beside another that is meant to say nearly the same, over given text.

Unlike compare.py nothing is allowed or refused here: these are numbers. A W8A8 model is the case
that this was made for, beside the same weights in float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import PortError
from ..files import read_json
from ..messages import N_
from ..model.decoder import DeepseekV3
from ..paths import recorded_file
from .stages import EXPERTS, record_stages


@dataclass(frozen=True)
class Quality:
    """Of every position of a text but the last of each row, which has no next token."""

    tokens: int
    perplexity: tuple[float, float]  # a token, of the reference and of the candidate
    same_top1: float  # share of positions with the same likeliest token
    logit_rms: float  # root mean square of the differences over that of the reference's logits
    logit_largest: float  # largest difference over the largest logit
    stages: dict[str, float]  # stage -> the same ratio as logit_rms
    experts: dict[str, float]  # gate -> share of the tokens with other experts

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def quality(
    reference: DeepseekV3,
    candidate: DeepseekV3,
    batches: Iterable[Tensor],
    cached: bool = False,
) -> Quality:
    """batches: ids [B, S] of whole rows of text. Both models run eagerly, without a cache, and need
    the logits of every position (`PortPlan.lm_head` 'all'). cached: the candidate computes every position
    as a step over its cache, as an int8 cache must be asked."""
    sums = _Sums()
    for model in (reference, candidate):
        if model.plan.lm_head != "all":
            raise PortError("quality needs every position's logits: plan.minus('last_token_head')")
    for ids in batches:
        if ids.shape[1] < 2:  # no next token
            continue
        a, seen_a = record_stages(reference, partial(reference, ids.to(reference.device)))
        ids = ids.to(candidate.device)
        b, seen_b = (
            _stepwise(candidate, ids)
            if cached
            else record_stages(candidate, partial(candidate, ids))
        )
        a, b = (logits[:, :-1].double().cpu() for logits in (a, b))
        sums.add(ids, a, b, seen_a, seen_b)
    return sums.result()


def _stepwise(model: DeepseekV3, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits [B, S, V] and every stage, one position at a time over the model's cache."""
    batch, cache = ids.shape[0], model.new_cache(*ids.shape)
    found = [
        record_stages(model, partial(model, token.contiguous(), cache=cache))
        for token in ids.split(1, 1)
    ]
    stages = {
        name: torch.cat([seen[name].view(batch, 1, -1) for _, seen in found], 1)
        for name in found[0][1]
    }
    return torch.cat([logits for logits, _ in found], 1), stages


def recorded_quality() -> dict[str, Quality]:
    """Form -> what ci/tools/w8a8.py measured of the embedded model, on text that it was not trained on."""
    return {name: Quality(**found) for name, found in read_json(recorded_file("w8a8.json")).items()}


QUALITY_HEADS = (
    "",
    N_("perplexity"),
    N_("same likeliest token"),
    N_("logits off"),
    N_("other experts"),
    N_("positions"),
)


def quality_rows(found: Mapping[str, Quality], reference: str) -> list[tuple[str, ...]]:
    """A row of QUALITY_HEADS for the reference, and one for each form beside it."""
    first = next(iter(found.values()))
    rows: list[tuple[str, ...]] = [
        (reference, f"{first.perplexity[0]:.4f}", "–", "–", "–", f"{first.tokens:,}")
    ]
    for name, q in found.items():
        others = max(q.experts.values(), default=0.0)
        cells = (
            f"{q.perplexity[1]:.4f}",
            f"{q.same_top1:.2%}",
            f"{q.logit_rms:.2%}",
            f"{others:.1%}",
        )
        rows.append((name, *cells, f"{q.tokens:,}"))
    return rows


class _Sums:
    """What is added up over the batches, in float64."""

    def __init__(self) -> None:
        self.tokens = self.same = 0
        self.loss = [0.0, 0.0]
        self.largest = [0.0, 0.0]  # difference, logit
        self.squares: dict[str, list[float]] = {}  # name -> of the differences, of the reference
        self.others: dict[str, list[int]] = {}  # gate -> tokens with other experts, tokens

    def add(
        self, ids: Tensor, a: Tensor, b: Tensor, left: dict[str, Tensor], right: dict[str, Tensor]
    ) -> None:
        following = ids[:, 1:].flatten().cpu()
        for which, logits in enumerate((a, b)):
            flat = logits.flatten(0, 1)
            self.loss[which] += float(F.cross_entropy(flat, following, reduction="sum"))
        self.tokens += len(following)
        self.same += int((a.argmax(-1) == b.argmax(-1)).sum())
        self.largest[0] = max(self.largest[0], float((a - b).abs().max()))
        self.largest[1] = max(self.largest[1], float(a.abs().max()))
        self._square("logits", a, b)
        for name, value in left.items():
            other = right[name].view_as(value)
            if name.endswith(EXPERTS):
                held = self.others.setdefault(name, [0, 0])
                held[0] += int((value != other).any(-1).sum())
                held[1] += value[..., 0].numel()
            elif name != "lm_head":
                self._square(name, value.double(), other.double())

    def _square(self, name: str, a: Tensor, b: Tensor) -> None:
        held = self.squares.setdefault(name, [0.0, 0.0])
        held[0] += float((a - b).square().sum())
        held[1] += float(a.square().sum())

    def result(self) -> Quality:
        if not self.tokens:
            raise PortError("quality: no text of two tokens or more was given")
        ratio = {
            name: math.sqrt(off / of) if of else 0.0 for name, (off, of) in self.squares.items()
        }
        first, second = (math.exp(loss / self.tokens) for loss in self.loss)
        return Quality(
            self.tokens,
            (first, second),
            self.same / self.tokens,
            ratio.pop("logits"),
            self.largest[0] / max(self.largest[1], 1e-30),
            ratio,
            {name: other / of for name, (other, of) in self.others.items()},
        )

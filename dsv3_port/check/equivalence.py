"""The gate before every timing: a faster model that says something else is not faster.

Prompts are padded and run in a cache with spare room. In float32 every row of logits must agree and
every token's experts be the same: the form that is timed at the sizes that are timed. check/gate.py
looks closer, at every stage, on one batch of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..steps import TOLERANCE
from .stages import EXPERTS, feed, peer_logits, stages_of

# two experts may tie but for the order of additions; eight prompts in a row do not
STEPS_CHECKED, PROMPTS = 4, 8
EXACT = ("float32", "float64")


@dataclass(frozen=True)
class Rows:
    """What one model says to a prompt: logits after it [B, 1, V] and after each cached step [B,
    STEPS_CHECKED, V]."""

    prefill: Tensor
    decode: Tensor
    seconds_prefill: float  # the first call of that shape: compilation is in it
    seconds_decode: float
    exact: bool = True  # more than 16 bits
    # gate -> experts of the prompt's real tokens [T, K] in order; not recorded in 16 bits
    experts: dict[str, Tensor] = field(default_factory=dict)


class Gaps(dict[str, float]):
    """Model -> relative difference of its logits from the first one's; infinite where its experts
    are others."""

    def __init__(self, *gaps: Any) -> None:
        super().__init__(*gaps)
        self.first_calls: dict[str, Rows] = {}  # of each model: compilation is in their times


def random_ids(model: Any, shape: tuple[int, ...], seed: int) -> Tensor:
    """Token ids of the model's vocabulary on its device; the same for the same seed, on every
    rank."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)


def padding(ids: Tensor, steps: int = STEPS_CHECKED) -> Tensor:
    """mask for ids [B, L] whose last `steps` are cached steps: prompts of different lengths,
    left-padded, the last row by a third. A single row is padded too."""
    batch, length = ids.shape
    widest = (length - steps) // 3
    mask = torch.ones_like(ids)
    for row in range(batch):
        mask[row, : widest * (row if batch > 1 else 1) // max(batch - 1, 1)] = 0
    return mask


def run(model: Any, ids: Tensor, room: int | None = None, mask: Tensor | None = None) -> Rows:
    """Prompt ids [B, L] but its last STEPS_CHECKED tokens as one prefill, these as cached steps;
    mask [B, L] is 0 on padding.

    `room` is the cache's max_length (fixed caches and graphs depend on it), by default a few
    positions more than L. A transformers model runs uncached.
    """
    length = ids.shape[1] - STEPS_CHECKED
    exact = str(model.dtype).removeprefix("torch.") in EXACT
    chosen = _experts(model, ids[:, :length], mask) if exact else {}
    if not isinstance(model, DeepseekV3):
        rows = peer_logits(model, ids, mask).float()[:, length - 1 :]
        return Rows(rows[:, :1], rows[:, 1:], 0.0, 0.0, exact, chosen)
    logits, seconds = [], []
    for call in feed(model, ids, mask, STEPS_CHECKED, room):
        start = time.perf_counter()
        logits.append(call()[:, -1:])
        seconds.append(time.perf_counter() - start)
    return Rows(logits[0], torch.cat(logits[1:], 1), seconds[0], seconds[1], exact, chosen)


def _experts(model: Any, prompt: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    part = torch.ones_like(prompt) if mask is None else mask[:, : prompt.shape[1]]
    real = part.bool().flatten().cpu()
    chosen = stages_of(model, prompt, part, only=EXPERTS)
    return {name: value.flatten(0, -2)[real] for name, value in chosen.items()}


def difference(reference: Rows, other: Rows) -> float:
    """Largest |difference| of a logit row over the largest magnitude, the worse of both phases:
    the maximum over rows, and infinite where a token's experts are others.

    Of 16-bit models the median over rows: there another order of additions often swaps two
    experts whose scores nearly tie; that moves one row far and is no error. A wrong form that moves
    few rows hides below it, and is found in float32.
    """
    exact = reference.exact and other.exact
    if exact and other_choices(reference, other):
        return math.inf

    def rows(a: Tensor, b: Tensor) -> float:
        gaps = (a - b).abs().amax(-1) / a.abs().max()
        return float(gaps.max() if exact else gaps.median())

    return max(rows(reference.prefill, other.prefill), rows(reference.decode, other.decode))


def other_choices(reference: Rows, other: Rows) -> str:
    """The first gate that sends tokens to other experts, as a sentence; "" if none does."""
    for name, a in reference.experts.items():
        b = other.experts.get(name, a)
        wrong = int((a != b).any(-1).sum()) if a.shape == b.shape else len(a)
        if wrong:
            return f"{name} chooses other experts for {wrong} of {len(a)} tokens"
    return ""


def check_equivalence(
    models: Mapping[str, Any],
    *,
    batch: int = 1,
    length: int = 24,
    room: int | None = None,
    seed: int = 0,
) -> Gaps:
    """Relative difference of each model's logits from the first one's, prefill and cached decode.

    Random prompts of up to `length` tokens, padded. Raises PortError where a model stays above
    TOLERANCE of its dtype, or chooses other experts, in PROMPTS batches of them.
    """
    if not models:
        raise PortError("check_equivalence: no models given")
    base = next(iter(models.values()))
    dtype = str(base.dtype).removeprefix("torch.")
    bound, found = TOLERANCE[dtype], Gaps(dict.fromkeys(models, math.inf))
    why = ""
    for attempt in range(PROMPTS):
        ids = random_ids(base, (batch, length + STEPS_CHECKED), seed + attempt)
        mask = padding(ids)
        reference = run(base, ids, room, mask)
        for name, model in models.items():
            if found[name] > bound:
                rows = reference if model is base else run(model, ids, room, mask)
                found[name] = min(found[name], difference(reference, rows))
                found.first_calls.setdefault(name, rows)
                why = other_choices(reference, rows) or why
        if max(found.values()) <= bound:
            return found
    name = max(found, key=lambda n: found[n])
    first = repr(next(iter(models)))
    if found[name] == math.inf:
        raise PortError(f"{name!r} differs from {first}: {why}; nothing was timed")
    raise PortError(
        f"{name!r} differs from {first} by {found[name]:.1e} of the largest logit (allowed in {dtype}: "
        f"{bound:.0e}); nothing was timed"
    )

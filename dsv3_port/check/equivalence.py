"""The gate before every timing: a faster model that says something else is not faster."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..steps import TOLERANCE

# 16-bit: one swapped expert moves a row, and a prompt of one row with it
STEPS_CHECKED, PROMPTS = 4, 8


@dataclass(frozen=True)
class Rows:
    """Logits of one model: after the prompt [B, 1, V] and after each cached step [B, STEPS_CHECKED,
    V]."""

    prefill: Tensor
    decode: Tensor
    seconds_prefill: float  # the first call of that shape: compilation is in it
    seconds_decode: float


class Gaps(dict[str, float]):
    """Model -> relative difference of its logits from the first one's."""

    def __init__(self, *gaps: Any) -> None:
        super().__init__(*gaps)
        self.first_calls: dict[str, Rows] = {}  # of each model: compilation is in their times


def random_ids(model: Any, shape: tuple[int, ...], seed: int) -> Tensor:
    """Token ids of the model's vocabulary on its device; the same for the same seed, on every
    rank."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)


def run(model: Any, ids: Tensor, room: int | None = None) -> Rows:
    """Prompt ids [B, L] but its last STEPS_CHECKED tokens as one prefill, these as cached steps.

    `room` is the cache's max_length (fixed caches and graphs depend on it). A transformers model
    runs uncached.
    """
    length = ids.shape[1] - STEPS_CHECKED
    if not isinstance(model, DeepseekV3):
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits.float()[:, length - 1 :]
        return Rows(logits[:, :1], logits[:, 1:], 0.0, 0.0)
    cache = model.new_cache(ids.shape[0], max(room or 0, ids.shape[1]))
    # a graph is compiled for strides as well: hand over what generation does
    prompt = ids[:, :length].contiguous()
    tokens = [ids[:, i : i + 1].contiguous() for i in range(length, ids.shape[1])]
    start = time.perf_counter()
    first = model(prompt, cache=cache)[:, -1:]
    after_prefill = time.perf_counter()
    steps = [model(tokens[0], cache=cache)]
    after_step = time.perf_counter()
    steps += [model(token, cache=cache) for token in tokens[1:]]
    return Rows(first, torch.cat(steps, 1), after_prefill - start, after_step - after_prefill)


def difference(reference: Rows, other: Rows) -> float:
    """Largest |difference| of a logit row over the largest magnitude: the median over rows, the
    worse of both phases.

    The median, because another order of additions may swap two experts whose scores nearly tie;
    that moves one row far and is no error. A wrong form moves them all.
    """

    def rows(a: Tensor, b: Tensor) -> float:
        return float(((a - b).abs().amax(-1) / a.abs().max()).median())

    return max(rows(reference.prefill, other.prefill), rows(reference.decode, other.decode))


def check_equivalence(
    models: Mapping[str, Any],
    *,
    batch: int = 1,
    length: int = 24,
    room: int | None = None,
    seed: int = 0,
) -> Gaps:
    """Relative difference of each model's logits from the first one's, prefill and cached decode.

    Random prompts of `length` tokens. Raises PortError where a model stays above TOLERANCE of its
    dtype in PROMPTS of them.
    """
    if not models:
        raise PortError("check_equivalence: no models given")
    base = next(iter(models.values()))
    dtype = str(base.dtype).removeprefix("torch.")
    bound, found = TOLERANCE[dtype], Gaps(dict.fromkeys(models, float("inf")))
    for attempt in range(PROMPTS):
        ids = random_ids(base, (batch, length + STEPS_CHECKED), seed + attempt)
        reference = run(base, ids, room)
        for name, model in models.items():
            if found[name] > bound:
                rows = reference if model is base else run(model, ids, room)
                found[name] = min(found[name], difference(reference, rows))
                found.first_calls.setdefault(name, rows)
        if max(found.values()) <= bound:
            return found
    name = max(found, key=lambda n: found[n])
    raise PortError(
        f"{name!r} differs from {next(iter(models))!r} by {found[name]:.1e} of the largest logit (allowed "
        f"in {dtype}: {bound:.0e}); nothing was timed"
    )

"""From prompts to text."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError
from ..model.cache import Cache
from ..model.decoder import DeepseekV3
from .nonfinite import first_nonfinite
from .sampler import Sampler, Sampling
from .streamer import TextStreamer
from .tokenizer import Prompt, check_length, encode, pad_left


@dataclass(frozen=True)
class Generation:
    """One prompt's continuation."""

    prompt: Prompt
    text: str
    token_ids: list[int]
    prompt_tokens: int
    # from the start of its batch to its first token: the prompts before it are prefilled first
    seconds_first: float
    seconds_per_token: float  # median decode step of its batch; 0 where no step was made


def generate(
    model: DeepseekV3,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 32,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    first_number: int = 0,
    chat: bool = False,
    pad_to: int | None = None,
    limit: int | None = None,
    caches: Caches | None = None,
    prefill_chunk: int = 0,
    on_token: Callable[[int, str], None] | None = None,
) -> list[Generation]:
    """Continue every prompt (text, or chat messages): each is prefilled alone, then all are decoded
    together.

    temperature 0 is greedy; otherwise prompt i is drawn with the seed `seed + first_number + i`, so
    that its text does not depend on the batch it runs in, among the top_k likeliest tokens (0: all)
    and the likeliest that have the probability top_p. A sequence stops at an EOS token of
    model.config (of the tokenizer, where that names none), the batch when all have.

    pad_to fixes the prompt length for graphs, limit (INPUT_MAX_LEN) refuses longer prompts. caches
    that fit are used again, so that graphs find them where they were. prefill_chunk: positions of a
    prompt computed at once, 0: all.
    on_token(row, new text) is called as text appears.
    """
    if max_new_tokens < 1:
        raise PortError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
    if not prompts:
        return []
    rows = encode(tokenizer, prompts, chat)
    _check_rows(model, rows, max_new_tokens, limit)
    stop = set(model.config.eos_token_ids) or {tokenizer.eos_token_id} - {None}
    pad_id = next(i for i in (tokenizer.pad_token_id, *sorted(stop), 0) if i is not None)
    ids, mask = pad_left(rows, pad_id, pad_to, model.device)
    sample = Sampler(
        Sampling(temperature, top_k, top_p),
        [seed + first_number + i for i in range(len(rows))],
        lambda row: first_nonfinite(model, rows[row] + streamer.out[row]),
    )
    caches = caches or Caches.make(model, len(rows), ids.shape[1], max_new_tokens)
    streamer = TextStreamer(tokenizer, len(rows), stop, on_token)

    start = time.perf_counter()
    token, firsts = _prefill(model, ids, mask, caches, prefill_chunk, sample, streamer, start)
    steps = _decode(model, token, caches.batch, sample, streamer, max_new_tokens - 1)
    pace = statistics.median(steps) if steps else 0.0
    return [
        Generation(
            prompt, tokenizer.decode(out, skip_special_tokens=True), out, len(row), first, pace
        )
        for prompt, row, out, first in zip(prompts, rows, streamer.out, firsts, strict=True)
    ]


def _check_rows(
    model: DeepseekV3, rows: list[list[int]], max_new_tokens: int, limit: int | None
) -> None:
    highest, longest = max(map(max, rows)), max(map(len, rows))
    if highest >= model.config.vocab_size:
        raise PortError(
            f"the tokenizer gives id {highest}, the model's vocabulary has {model.config.vocab_size}: "
            "is tokenizer.json the one that belongs to these weights?"
        )
    check_length(longest, limit)
    positions = model.config.max_position_embeddings
    if longest + max_new_tokens > positions:
        raise PortError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones are more than the model's "
            f"{positions} positions: shorten it, or set MAX_NEW_TOKENS lower"
        )


@dataclass(frozen=True)
class Caches:
    """One prompt is prefilled in `one`, of [1, S]; all rows are decoded in `batch`, of [B, S + new
    tokens]."""

    one: Cache
    batch: Cache

    @classmethod
    def make(cls, model: DeepseekV3, batch: int, width: int, max_new_tokens: int) -> Caches:
        return cls(model.new_cache(1, width), model.new_cache(batch, width + max_new_tokens))


def warm_up(model: DeepseekV3, caches: Caches, prefill_chunk: int = 0) -> float:
    """One prefill and two decode steps of these shapes, which compiles them where the model is a
    graph; seconds."""
    start = time.perf_counter()
    ids = torch.zeros(1, caches.one.max_length, dtype=torch.int64, device=model.device)
    caches.batch.reset()
    for row in range(caches.batch.batch):
        caches.one.reset()
        model.prefill(ids, torch.ones_like(ids), caches.one, prefill_chunk)
        caches.batch.adopt(caches.one, row)
    for _ in range(min(2, caches.batch.max_length - caches.batch.length)):
        model(ids[:, :1].expand(caches.batch.batch, 1).contiguous(), cache=caches.batch).argmax(
            -1
        ).tolist()
    return time.perf_counter() - start


def _prefill(
    model: DeepseekV3,
    ids: Tensor,
    mask: Tensor,
    caches: Caches,
    chunk: int,
    sample: Sampler,
    streamer: TextStreamer,
    start: float,
) -> tuple[Tensor, list[float]]:
    """Row by row through a cache of one sequence, so that the step has the same shape [1, S]
    whatever the batch is.

    Returns the first tokens [B] and the seconds at which each was there.
    """
    caches.batch.reset()
    tokens, seconds = [], []
    for row in range(len(ids)):
        caches.one.reset()
        logits = model.prefill(ids[row : row + 1], mask[row : row + 1], caches.one, chunk)
        token, chosen = sample.drawn(logits[:, -1], row)
        streamer.add(chosen, row)
        seconds.append(time.perf_counter() - start)
        tokens.append(token)
        caches.batch.adopt(caches.one, row)
    return torch.cat(tokens), seconds


def _decode(
    model: DeepseekV3,
    token: Tensor,
    cache: Cache,
    sample: Sampler,
    streamer: TextStreamer,
    most: int,
) -> list[float]:
    """Steps of all rows until each has ended, `most` of them; the seconds of each."""
    steps: list[float] = []
    ended: set[int] = set()
    while len(steps) < most and not streamer.done:
        start = time.perf_counter()
        for row in set(streamer.rows_ended) - ended:
            cache.end(row)
            ended.add(row)
        token, chosen = sample.drawn(model(token.unsqueeze(1), cache=cache)[:, -1])
        streamer.add(chosen)
        steps.append(time.perf_counter() - start)
    for row in range(cache.batch):
        cache.end(row)
    return steps

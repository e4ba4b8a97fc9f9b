"""Prefill and decode of a batch: upstream, one token a step. speculative.py is the ported form."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.decoder import DeepseekV3
from .caches import Caches
from .sampler import Sampler
from .streamer import TextStreamer


@dataclass(frozen=True)
class Batch:
    """What both forms work on: sequences that are decoded together, at most `most` new tokens
    each."""

    model: DeepseekV3
    caches: Caches
    sample: Sampler
    streamer: TextStreamer
    most: int


@dataclass(frozen=True)
class Decoded:
    """seconds of each decode step; accepted: of each row, 1 or 0 for each of its drafts."""

    seconds: list[float]
    accepted: list[list[int]]


def run(batch: Batch, ids: Tensor, mask: Tensor, chunk: int) -> tuple[list[float], Decoded]:
    """Prompts ids [B, S] with mask [B, S] -> seconds to each first token, and the decode steps; the
    tokens go to the streamer."""
    token, firsts = prefill(batch, ids, mask, chunk)
    return firsts, decode(batch, token)


def prefill(batch: Batch, ids: Tensor, mask: Tensor, chunk: int) -> tuple[Tensor, list[float]]:
    """Row by row through a cache of one sequence, so that the step has the same shape [1, S]
    whatever the batch is.

    Returns the first tokens [B] and the seconds at which each was there.
    """
    start, one = time.perf_counter(), batch.caches.one
    tokens, seconds = [], []
    for row in batch.caches.rows():
        logits = batch.model.prefill(ids[row : row + 1], mask[row : row + 1], one, chunk)
        token, chosen = batch.sample.drawn(logits[:, -1], row)
        batch.streamer.add(chosen, row)
        seconds.append(time.perf_counter() - start)
        tokens.append(token)
    return torch.cat(tokens), seconds


def decode(batch: Batch, token: Tensor) -> Decoded:
    """Steps of all rows until each has ended, from the first tokens [B] on."""
    steps: list[float] = []
    ended: set[int] = set()
    cache, streamer = batch.caches.batch, batch.streamer
    while len(steps) < batch.most - 1 and not streamer.done:
        start = time.perf_counter()
        for row in set(streamer.rows_ended) - ended:
            cache.end(row)
            ended.add(row)
        token, chosen = batch.sample.drawn(batch.model(token.unsqueeze(1), cache=cache)[:, -1])
        streamer.add(chosen)
        steps.append(time.perf_counter() - start)
    for row in range(cache.batch):
        cache.end(row)
    return Decoded(steps, [[] for _ in range(cache.batch)])


def warm_up(model: DeepseekV3, caches: Caches, prefill_chunk: int = 0) -> None:
    """One prefill and two decode steps of these shapes, which compiles them where the model is a
    graph."""
    ids = torch.zeros(1, caches.one.max_length, dtype=torch.int64, device=model.device)
    for _ in caches.rows():
        model.prefill(ids, torch.ones_like(ids), caches.one, prefill_chunk)
    for _ in range(min(2, caches.batch.max_length - caches.batch.length)):
        model(ids[:, :1].expand(caches.batch.batch, 1).contiguous(), cache=caches.batch).argmax(
            -1
        ).tolist()

"""Decoding with drafts: each step verifies the token that the MTP layer drafted, and takes a second
one where it was right.

State of a row: L cached positions, its last token t, not computed yet, and a draft d. One step
computes [t, d] at positions L and L + 1; the first logits say what follows t. Is that d, the second
logits give one token more, and L + 2 positions stay; else the position of d is given back. Then the
MTP layer computes the same positions from their states and next tokens, and drafts anew. Greedy text
is that of decoding one by one; with a temperature, rejection sampling keeps every token's
distribution (rejection.py). Report of DeepSeek-V3, section 5.4.3.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PortError
from ..model.cache import Cache
from ..model.decoder import DeepseekV3
from ..model.mtp import Accept
from ..model.mtp import accept as accept_greedy
from ..model.paged_cache import PagedCache
from .caches import Caches
from .decoding import Batch, Decoded
from .rejection import acceptance, residual
from .sampler import Sampler


def wanted(model: DeepseekV3, tokens: int | None) -> bool:
    """Whether to draft `tokens` a step (None: if the model can); PortError where it cannot."""
    if tokens is None:
        tokens = int(model.plan.mtp)
    if tokens not in (0, 1):
        raise PortError(
            f"num_speculative_tokens is {tokens}; one MTP layer drafts 1 token a step, 0 decodes without"
        )
    if tokens and not model.plan.mtp:
        raise PortError(
            "num_speculative_tokens needs the MTP layer: load the model with the step 'mtp' in its plan"
        )
    if tokens and model.plan.cache == "growing":
        raise PortError(
            "num_speculative_tokens needs a cache whose rows can be cut: 'fixed' (step 'fixed_kv_cache') or "
            "'paged'"
        )
    return bool(tokens)


@dataclass
class Drafts:
    """One drafted token a row [B], and with a temperature what each was drawn from [B, V]."""

    tokens: Tensor
    chances: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, sample: Sampler, first_row: int = 0) -> Drafts:
        """From the MTP layer's logits [B, V] of the rows from `first_row` on."""
        if not sample.sampling.temperature:
            return cls(logits.argmax(-1))
        chances = sample.chances(logits, first_row)
        drawn = [sample.pick(row, first_row + i) for i, row in enumerate(chances)]
        return cls(torch.tensor(drawn).to(logits.device), chances)

    @classmethod
    def joined(cls, rows: list[Drafts]) -> Drafts:
        """Those of several rows as one."""
        chances = [d.chances for d in rows if d.chances is not None]
        return cls(torch.cat([d.tokens for d in rows]), torch.cat(chances) if chances else None)


def verify(
    logits: Tensor, drafts: Drafts, sample: Sampler, accept: Accept = accept_greedy
) -> Tensor:
    """logits [B, 2, V] behind t and behind the draft -> [B, 4]: the token behind t; the newest one
    (behind the draft where that is accepted, else the same); whether it is; whether all logits are
    finite. `accept` (model/mtp.py) says the first three of greedy text."""
    if drafts.chances is None:
        finite = logits.amax(-1).isfinite().all(-1).long()
        return torch.cat((accept(logits, drafts.tokens), finite.unsqueeze(1)), 1)
    rows = []
    chances = [sample.chances(part) for part in logits.unbind(1)]
    for row, draft in enumerate(drafts.tokens.tolist()):
        p, q = chances[0][row], drafts.chances[row]
        stays = sample.passes(float(acceptance(p[draft], q[draft])), row)
        after = sample.pick(chances[1][row] if stays else residual(p, q), row)
        rows.append([draft, after, 1, 1] if stays else [after, after, 0, 1])
    return torch.tensor(rows).to(logits.device)


def run(batch: Batch, ids: Tensor, mask: Tensor, chunk: int) -> tuple[list[float], Decoded]:
    """As decoding.run, with drafts."""
    token, drafts, firsts = prefill(batch, ids, mask, chunk)
    return firsts, decode(batch, token, drafts)


def prefill(
    batch: Batch, ids: Tensor, mask: Tensor, chunk: int
) -> tuple[Tensor, Drafts, list[float]]:
    """As decoding.prefill; the MTP layer's rows of the prompt are written too, and the first draft
    [B] comes of them."""
    start, caches, sample = time.perf_counter(), batch.caches, batch.sample
    tokens, drafts, seconds = [], [], []
    for row in caches.rows():
        part = ids[row : row + 1], mask[row : row + 1]
        logits, hidden, last = prompt(batch.model, *part, caches.one, chunk)
        token, chosen = sample.drawn(logits, row)
        batch.streamer.add(chosen, row)
        seconds.append(time.perf_counter() - start)
        after = finish(batch.model, last, token, hidden)
        drafts.append(Drafts.of(after, sample, row))
        tokens.append(token)
    return torch.cat(tokens), Drafts.joined(drafts), seconds


@dataclass(frozen=True)
class Chunk:
    """The last positions of a prompt, whose next token is drawn first."""

    ids: Tensor
    part: Cache
    whole: Cache
    first: bool


def prompt(
    model: DeepseekV3, ids: Tensor, mask: Tensor, cache: Cache, chunk: int
) -> tuple[Tensor, Tensor, Chunk]:
    """A prompt ids [1, S] through model and MTP layer, up to where its next token is needed: the
    logits of that [1, V], the last chunk's states, and that chunk."""
    at = 0
    for now, part, first in model.chunks(ids, mask, cache, chunk):
        at += now.shape[1]
        expect(part, now.shape[1])
        logits, hidden = model.run_verify(now, part.pad, part, first)
        if at == ids.shape[1]:
            return logits[:, -1], hidden, Chunk(now, part, cache, first)
        after = ids[:, at - now.shape[1] + 1 : at + 1].contiguous()
        model.run_draft(after, part.pad, part, first, hidden)
        part.advance(now.shape[1])
    raise AssertionError("a prompt has one token at least")


def finish(model: DeepseekV3, last: Chunk, token: Tensor, hidden: Tensor) -> Tensor:
    """The MTP layer over a prompt's last chunk, now that its next token [1] is known: logits [1, V]
    of the one after it."""
    after = torch.cat((last.ids[:, 1:], token.unsqueeze(1)), 1)
    logits = model.run_draft(after, last.part.pad, last.part, last.first, hidden)
    last.part.advance(after.shape[1])
    if last.part is not last.whole:
        last.whole.advance(after.shape[1])
    return logits[:, -1]


def expect(cache: Cache, new: int) -> None:
    """A paged cache's lengths for `new` more positions."""
    if isinstance(cache, PagedCache):
        cache.expect(new)


def step(
    model: DeepseekV3, cache: Cache, token: Tensor, drafts: Drafts, sample: Sampler
) -> tuple[Tensor, Tensor]:
    """Both calls of a step, for all rows: what `verify` says [B, 4], and the MTP layer's logits
    [B, V] behind the last token that stands. Both positions are in the cache: who is refused gives
    one back (Cache.retract)."""
    pair = torch.stack((token, drafts.tokens), 1)
    cache.require_capacity(2)
    expect(cache, 2)
    logits, hidden = model.run_verify(pair, cache.pad, cache, False)
    said = verify(logits, drafts, sample, model.accept)
    after = model.run_draft(said[:, :2].contiguous(), cache.pad, cache, False, hidden)
    cache.advance(2)
    return said, after[torch.arange(len(said), device=after.device), said[:, 2]]


def decode(batch: Batch, token: Tensor, drafts: Drafts) -> Decoded:
    """As decoding.decode; a row that has ended, or has its tokens, keeps its place and no
    position."""
    cache, streamer, sample = batch.caches.batch, batch.streamer, batch.sample
    rows = range(cache.batch)
    seconds: list[float] = []
    accepted: list[list[int]] = [[] for _ in rows]
    done: set[int] = set()
    while True:
        start = time.perf_counter()
        held = [cache.length - behind for behind in cache.behind]
        over = {r for r in rows if streamer.ended[r] or len(streamer.out[r]) >= batch.most} - done
        for row in over:
            cache.end(row)
        cache.retract([held[row] if row in over else 0 for row in rows])
        done |= over
        if len(done) == cache.batch:
            return Decoded(seconds, accepted)
        said, after = step(batch.model, cache, token, drafts, sample)
        token = said[:, 1]
        drafts = Drafts.of(after, sample)
        lines = said.tolist()
        sample.require([finite or row in done for row, (*_, finite) in enumerate(lines)])
        for row, (one, two, right, _) in enumerate(lines):
            if row not in done:
                accepted[row].append(right)
                for new in (one, two)[: min(1 + right, batch.most - len(streamer.out[row]))]:
                    streamer.add([new], row)
        cache.retract([2 if row in done else 1 - lines[row][2] for row in rows])
        seconds.append(time.perf_counter() - start)


def warm_up(model: DeepseekV3, caches: Caches, prefill_chunk: int = 0) -> None:
    """As decoding.warm_up, of the steps with drafts."""
    ids = torch.zeros(1, caches.one.max_length, dtype=torch.int64, device=model.device)
    greedy = Sampler.greedy()
    for _ in caches.rows():
        _, hidden, last = prompt(model, ids, torch.ones_like(ids), caches.one, prefill_chunk)
        finish(model, last, ids[:, 0], hidden)
    token = ids[0, :1].expand(caches.batch.batch).contiguous()
    for _ in range(min(2, (caches.batch.max_length - caches.batch.length) // 2)):
        said, _ = step(model, caches.batch, token, Drafts(token), greedy)
        said.tolist()

"""From prompts to text."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import PortError
from ..model.decoder import DeepseekV3
from . import decoding, speculative
from .caches import Caches
from .decoding import Batch, Decoded
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
    # of its batch: median decode step, by the tokens that a step gives; 0 where no step was made
    seconds_per_token: float
    # of each decode step that verified a draft: 1 where it was accepted
    accepted: list[int] = field(default_factory=list)


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
    num_speculative_tokens: int | None = None,
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
    prompt computed at once, 0: all. num_speculative_tokens: 1 lets the MTP layer draft a token each
    step (speculative.py); None: where the plan has the layer.
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
    streamer = TextStreamer(tokenizer, len(rows), stop, on_token)
    caches = caches or Caches.make(model, len(rows), ids.shape[1], max_new_tokens)
    batch = Batch(model, caches, sample, streamer, max_new_tokens)
    how = speculative if speculative.wanted(model, num_speculative_tokens) else decoding
    firsts, found = how.run(batch, ids, mask, prefill_chunk)
    return _generations(tokenizer, prompts, rows, streamer, firsts, found)


def _generations(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    rows: list[list[int]],
    streamer: TextStreamer,
    firsts: list[float],
    found: Decoded,
) -> list[Generation]:
    pace = statistics.median(found.seconds) if found.seconds else 0.0
    if verified := sum(map(len, found.accepted)):
        pace /= max(1, sum(len(out) - 1 for out in streamer.out)) / verified
    return [
        Generation(
            prompt,
            tokenizer.decode(out, skip_special_tokens=True),
            out,
            len(row),
            first,
            pace,
            accepted,
        )
        for prompt, row, out, first, accepted in zip(
            prompts, rows, streamer.out, firsts, found.accepted, strict=True
        )
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

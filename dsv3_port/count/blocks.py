"""Which blocks of a paged cache belong to whom while texts are generated, and what a fixed cache
would hold instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine.generate import Caches, Generation, generate
from ..engine.tokenizer import encode
from ..errors import PortError
from ..model.cache import Cache
from ..model.decoder import DeepseekV3
from ..model.paged_cache import PagedCache


@dataclass(frozen=True)
class BlockLog:
    """owned[step][row]: the blocks that a row holds after a decode step; filled[step][row]: the
    positions that it has written, 0 once it has ended. room: positions of a row at most."""

    block_size: int
    blocks: int
    room: int
    owned: tuple[tuple[tuple[int, ...], ...], ...]
    filled: tuple[tuple[int, ...], ...]
    texts: tuple[Generation, ...]

    @property
    def rows(self) -> int:
        return len(self.owned[0])

    @property
    def fixed(self) -> int:
        """Positions that a fixed cache holds for these rows, from the first step to the last."""
        return self.rows * self.room

    @property
    def held(self) -> list[int]:
        """Positions in blocks that rows hold, step by step."""
        return [self.block_size * sum(map(len, owned)) for owned in self.owned]

    @property
    def used(self) -> list[int]:
        """Positions with a token, step by step."""
        return [sum(filled) for filled in self.filled]


def block_log(
    model: DeepseekV3, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int
) -> BlockLog:
    """Generate greedily and write down the blocks of every decode step. PortError where the model has
    no paged cache."""
    width = max(map(len, encode(tokenizer, prompts)))
    caches = Caches.make(model, len(prompts), width, max_new_tokens)
    cache = caches.batch
    if not isinstance(cache, PagedCache):
        raise PortError(f"block_log: cache {model.plan.cache!r} has no blocks; use cache 'paged'")
    owned: list[tuple[tuple[int, ...], ...]] = []
    filled: list[tuple[int, ...]] = []
    step = model.run_step

    def seen(ids: Tensor, pad: Tensor, used: Cache | None, first: bool) -> Tensor:
        logits = step(ids, pad, used, first)
        if used is cache:
            owned.append(tuple(map(tuple, cache.owned)))
            filled.append(
                tuple(n * bool(o) for n, o in zip(cache.kv_lengths, cache.owned, strict=True))
            )
        return logits

    model.run_step = seen  # type: ignore[assignment]
    try:
        texts = generate(model, tokenizer, prompts, max_new_tokens, caches=caches)
    finally:
        model.run_step = step
    return BlockLog(
        cache.block_size, cache.blocks, cache.max_length, tuple(owned), tuple(filled), tuple(texts)
    )

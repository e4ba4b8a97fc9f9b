"""The two caches of a generation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..model.cache import Cache
from ..model.decoder import DeepseekV3


@dataclass(frozen=True)
class Caches:
    """One prompt is prefilled in `one`, of [1, S]; all rows are decoded in `batch`, of [B, S + new
    tokens]."""

    one: Cache
    batch: Cache

    @classmethod
    def make(cls, model: DeepseekV3, batch: int, width: int, max_new_tokens: int) -> Caches:
        return cls(model.new_cache(1, width), model.new_cache(batch, width + max_new_tokens))

    def rows(self) -> Iterator[int]:
        """Each row in turn: what is run through `one` for it is that row of `batch` afterwards."""
        self.batch.reset()
        for row in range(self.batch.batch):
            self.one.reset()
            yield row
            self.batch.adopt(self.one, row)

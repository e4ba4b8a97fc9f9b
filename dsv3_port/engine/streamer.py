"""Text of each row as its tokens come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class TextStreamer:
    """Collects tokens of each row until its EOS and hands out text as it becomes whole characters."""

    def __init__(
        self, tokenizer: Any, rows: int, stop: set[int], on_token: Callable[[int, str], None] | None
    ) -> None:
        self.tokenizer, self.stop, self.on_token = tokenizer, stop, on_token
        self.out: list[list[int]] = [[] for _ in range(rows)]
        self.shown = [""] * rows
        self.ended = [False] * rows

    @property
    def done(self) -> bool:
        return all(self.ended)

    @property
    def rows_ended(self) -> list[int]:
        return [row for row, ended in enumerate(self.ended) if ended]

    def add(self, tokens: list[int], first_row: int = 0) -> None:
        for row, token in enumerate(tokens, first_row):
            if self.ended[row]:
                continue
            self.out[row].append(token)
            self.ended[row] = token in self.stop
            if self.on_token is not None:
                text = self.tokenizer.decode(self.out[row], skip_special_tokens=True)
                if not text.endswith("\ufffd"):  # a character may take several tokens
                    self.on_token(row, text[len(self.shown[row]) :])
                    self.shown[row] = text

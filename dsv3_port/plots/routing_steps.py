"""The way of a few tokens through a grouped matmul, frame by frame."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PortError
from ..messages import tr
from .colours import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from .frames import WIDTH, Frame, Frames, box, line, words

_INKS = (BLUE, ORANGE, GREEN, PURPLE, SKY)  # a token each
_TOP, _HIGH, _STEP = 26.0, 24.0, 30.0
_ROW = 96.0  # a row's width
_RIGHT = WIDTH - _ROW - 4


def routing_steps(expert_idx: Tensor | None = None, experts: int = 4) -> Frames:
    """Five frames for expert_idx [T, K] (three tokens with two choices of four experts where none is
    given): chosen, repeated, sorted into blocks, multiplied, put back. PortError for what is no such
    choice, or has more than 12 choices, 5 tokens or 8 experts."""
    chosen = torch.tensor([[2, 0], [1, 2], [2, 3]]) if expert_idx is None else expert_idx
    if chosen.dim() != 2 or not 0 < chosen.numel() <= 12 or len(chosen) > len(_INKS):
        raise PortError(
            f"routing_steps draws [tokens, top-k] of 5 tokens and 12 choices at most, not {list(chosen.shape)}"
        )
    if not 0 < experts <= 8 or not 0 <= int(chosen.min()) <= int(chosen.max()) < experts:
        raise PortError(
            f"routing_steps: expert ids must be 0 to {experts - 1}, of 8 experts at most"
        )
    return Frames(
        tr("Sort once, multiply in blocks, put back · 排序、分块、还原"),
        _Way(chosen, experts).frames(),
    )


def _expert(number: int) -> str:
    return tr("expert {n}").format(n=number)


class _Way:
    """What all frames share: rows in the order of choice, rows sorted by expert, blocks."""

    def __init__(self, chosen: Tensor, experts: int) -> None:
        self.tokens, self.top = chosen.shape
        self.chosen, self.experts = chosen.flatten().tolist(), experts
        self.order = chosen.flatten().argsort(stable=True).tolist()
        self.counts = torch.bincount(chosen.flatten(), minlength=experts).tolist()
        self.ends = torch.tensor(self.counts).cumsum(0).tolist()
        self.rows = len(self.order)
        self.height = _TOP + max(self.rows, experts) * _STEP + 4

    def y(self, row: float) -> float:
        return _TOP + row * _STEP

    def middle(self, place: int, places: int) -> float:
        """Top of one of few boxes, spread over the height of all rows."""
        return self.y((place + 0.5) * max(self.rows, self.experts) / places - 0.5)

    def ink(self, choice: int) -> str:
        return _INKS[choice // self.top]

    def column(self, x: float, title: str, order: list[int]) -> str:
        """One row of a token for each choice, in this order."""
        return words(x, 12, title) + "".join(
            box(x, self.y(r), _ROW, _HIGH, self.ink(c), f"token {c // self.top} · {self.chosen[c]}")
            for r, c in enumerate(order)
        )

    def tokens_at(self, x: float, title: str) -> str:
        return words(x, 12, title) + "".join(
            box(x, self.middle(t, self.tokens), 70, _HIGH, _INKS[t], f"token {t}")
            for t in range(self.tokens)
        )

    def blocks(self, x: float, width: float, inside: bool) -> str:
        """A frame around each expert's rows; its name inside, where it is the matrix."""
        parts = []
        for expert, (count, end) in enumerate(zip(self.counts, self.ends, strict=True)):
            if not count:
                continue
            y, high = self.y(end - count) - 2, (count - 1) * _STEP + _HIGH + 4
            parts.append(
                box(x, y, width, high, GREY, _expert(expert))
                if inside
                else f'<rect x="{x - 3:g}" y="{y:g}" width="{width + 6:g}" height="{high:g}" rx="3" '
                f'fill="none" stroke="{GREY}" stroke-width="2"/>'
            )
        return "".join(parts)

    def frames(self) -> list[Frame]:
        first = list(range(self.rows))
        bodies = [
            self._choose(),
            self._repeat(first),
            self._sort(first),
            self._multiply(),
            self._back(),
        ]
        named = (tr("chosen"), tr("repeated"), tr("sorted"), tr("multiplied"), tr("put back"))
        labels = [f"{k} {name}" for k, name in enumerate(named, 1)]
        return [
            Frame(label, body, self.height, alt, caption)
            for label, body, (alt, caption) in zip(labels, bodies, self._texts(), strict=True)
        ]

    def _choose(self) -> str:
        parts = [self.tokens_at(4, "tokens"), words(WIDTH - 84, 12, tr("experts"))]
        for e in range(self.experts):
            parts.append(box(WIDTH - 84, self.middle(e, self.experts), 80, _HIGH, GREY, _expert(e)))
        for c, e in enumerate(self.chosen):
            y = self.middle(c // self.top, self.tokens) + _HIGH / 2
            to = self.middle(e, self.experts) + _HIGH / 2
            parts.append(line(76, y, WIDTH - 88, to, self.ink(c)))
        return "".join(parts)

    def _repeat(self, first: list[int]) -> str:
        parts = [self.tokens_at(4, "tokens"), self.column(_RIGHT, tr("token · expert"), first)]
        for c in first:
            y = self.middle(c // self.top, self.tokens) + _HIGH / 2
            parts.append(line(76, y, _RIGHT - 6, self.y(c) + _HIGH / 2, self.ink(c)))
        return "".join(parts)

    def _sort(self, first: list[int]) -> str:
        parts = [
            self.column(4, tr("token · expert"), first),
            self.column(_RIGHT, tr("by expert"), self.order),
        ]
        parts.append(self.blocks(_RIGHT, _ROW, inside=False))
        for row, c in enumerate(self.order):
            y = self.y(c) + _HIGH / 2
            parts.append(line(_ROW + 6, y, _RIGHT - 8, self.y(row) + _HIGH / 2, self.ink(c)))
        return "".join(parts)

    def _multiply(self) -> str:
        parts = [
            self.column(4, tr("rows"), self.order),
            self.column(_RIGHT, tr("results"), self.order),
        ]
        parts += [
            words(_ROW + 20, 12, tr("one matrix each")),
            self.blocks(_ROW + 22, 96, inside=True),
        ]
        return "".join(parts)

    def _back(self) -> str:
        parts = [
            self.column(4, tr("results"), self.order),
            self.tokens_at(WIDTH - 74, tr("sums")),
        ]
        for row, c in enumerate(self.order):
            to = self.middle(c // self.top, self.tokens) + _HIGH / 2
            parts.append(line(_ROW + 6, self.y(row) + _HIGH / 2, WIDTH - 80, to, self.ink(c)))
        return "".join(parts)

    def _texts(self) -> list[tuple[str, str]]:
        """(alternative text, caption) of each frame."""
        split = [self.chosen[t * self.top : (t + 1) * self.top] for t in range(self.tokens)]
        picks = "; ".join(f"token {t}: {', '.join(map(str, its))}" for t, its in enumerate(split))
        values = {
            "tokens": self.tokens,
            "experts": self.experts,
            "top": self.top,
            "rows": self.rows,
            "order": self.order,
            "of": [c // self.top for c in self.order],
            "counts": self.counts,
            "ends": self.ends,
            "picks": picks,
        }
        return [(alt.format(**values), said.format(**values)) for alt, said in _told_texts()]


def _told_texts() -> list[tuple[str, str]]:
    return [
        (
            tr("{tokens} tokens with lines to {experts} experts. {picks}."),
            tr("Each token chooses {top} of {experts} experts, as ids [T, K]."),
        ),
        (
            tr("{tokens} tokens become {rows} rows, one for each choice."),
            tr(
                "A token's row is there once for each choice: T·K = {rows} rows, choice t·K + k in row t·K + k."
            ),
        ),
        (
            tr("Lines from the {rows} rows to the same rows sorted by expert: choices {order}."),
            tr(
                "One stable sort by expert: choices {order}, so rows of tokens {of}. Rows of an expert now "
                "stand together."
            ),
        ),
        (
            tr("Blocks of {counts} rows, each beside its expert's matrix and its results."),
            tr(
                "One grouped matmul: block after block, each with its expert's matrix. The blocks end at "
                "{ends}; nobody asks the host for them."
            ),
        ),
        (
            tr("Lines from the {rows} results back to the {tokens} tokens, {top} to each."),
            tr(
                "Each result goes back to its token and the {top} are added, each times the gate's weight for it."
            ),
        ),
    ]

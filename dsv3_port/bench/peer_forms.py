"""transformers' own model in every configuration that could be its fastest, behind one real prompt
each.

What transformers 5.23 offers on a CPU: two attention functions, four ways to multiply experts, a
cache that grows or one of fixed size, and torch.compile, which its documents advise with the fixed
cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..check.peer import cache_argument, peer_model
from ..engine.graph import compile_peer
from ..errors import PortError

PIECE = 256  # tokens of a prompt that are fed at once: bounds what attention holds


@dataclass(frozen=True)
class PeerForm:
    """One configuration. experts, attention: names of transformers; None leaves the default."""

    name: str
    experts: str | None = None
    attention: str | None = None
    static: bool = False
    compiled: bool = False
    prefill: bool = (
        True  # whether it makes sense there: batched_mm copies the weights of every token's experts
    )


def peer_forms(dtype: torch.dtype) -> list[PeerForm]:
    """The configurations to time. torch.compile refuses float32 grouped_mm (a check of its own),
    batched_mm works."""
    fits = "grouped_mm" if dtype == torch.bfloat16 else "batched_mm"
    return [
        PeerForm("transformers, as loaded"),  # sdpa and grouped_mm in 5.23
        PeerForm("transformers, eager attention", attention="eager"),
        PeerForm("transformers, grouped_mm", experts="grouped_mm"),
        PeerForm("transformers, expert loop", experts="eager"),
        PeerForm("transformers, batched_mm", experts="batched_mm", prefill=False),
        PeerForm("transformers, static cache", static=True),
        PeerForm(
            f"transformers, static cache, {fits}, compiled",
            experts=fits,
            static=True,
            compiled=True,
            prefill=False,
        ),
    ]


class Peer:
    """A form with its cache: `fill` once, then `step` after `rewind`, or `prefill` after `clear`."""

    now: Tensor  # the next input

    def __init__(self, form: PeerForm, model: Any, batch: int, room: int, **options: Any) -> None:
        self.form, self.model, self.batch, self.room = form, model, batch, room
        self.device, self.config = model.device, model.config
        self.forward = compile_peer(model.forward, **options) if form.compiled else model.forward
        self.word = cache_argument(model)
        self.clear()

    def clear(self) -> None:
        from transformers import DynamicCache, StaticCache

        self.cache: Any = (
            StaticCache(config=self.config, max_cache_len=self.room)
            if self.form.static
            else DynamicCache(config=self.config)
        )

    def prefill(self, ids: Tensor) -> Tensor:
        """Logits after the last token [B, 1, V]; the model's own prefill is never compiled, as its
        documents say."""
        given = {self.word: self.cache}
        logits: Tensor = self.model.forward(ids, logits_to_keep=1, **given).logits
        return logits

    def fill(self, ids: Tensor) -> None:
        self.clear()
        for piece in ids.split(PIECE, dim=1):
            self.prefill(piece)

    def step(self, ids: Tensor) -> Tensor:
        """One cached step, [B, 1] -> [B, 1, V]."""
        logits: Tensor = self.forward(ids, logits_to_keep=1, **{self.word: self.cache}).logits
        return logits

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        if self.form.static:
            for layer in self.cache.layers:
                layer.cumulative_length.fill_(length)
        elif (extra := self.cache.get_seq_length() - length) > 0:
            self.cache.crop(-extra)


def make_peer(form: PeerForm, upstream: Any, batch: int, room: int, **options: Any) -> Peer:
    """The peer of an upstream model in one form; `options` of its compiler. PortError where this
    transformers does not know the form."""
    model = peer_model(upstream)
    try:
        if form.experts is not None:
            model.set_experts_implementation(form.experts)
        if form.attention is not None:
            model.set_attn_implementation(form.attention)
    except (ValueError, AttributeError, ImportError) as error:
        raise PortError(f"{form.name}: this transformers has no such form ({error})") from error
    return Peer(form, model, batch, room, **options)

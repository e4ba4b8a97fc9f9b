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
    prefill: bool = True  # batched_mm copies the weights of every token's experts: not there


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
    """A form with its cache: `fill` once, then `forward` of a token after `rewind`, or of a prompt
    after `rewind(0)`. logits: of so many last positions, 0 of all."""

    def __init__(
        self, form: PeerForm, model: Any, capacity: int, logits: int = 1, **options: Any
    ) -> None:
        self.form, self.model, self.capacity, self.logits = form, model, capacity, logits
        self.device, self.config = model.device, model.config
        self.step = compile_peer(model.forward, **options) if form.compiled else model.forward
        self.word = cache_argument(model)
        self.rewind(0)

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        from transformers import DynamicCache, StaticCache

        if length == 0:
            self.cache: Any = (
                StaticCache(config=self.config, max_cache_len=self.capacity)
                if self.form.static
                else DynamicCache(config=self.config)
            )
        elif self.form.static:
            for layer in self.cache.layers:
                layer.cumulative_length.fill_(length)
        elif (extra := self.cache.get_seq_length() - length) > 0:
            self.cache.crop(-extra)

    def fill(self, ids: Tensor) -> None:
        self.rewind(0)
        for piece in ids.split(PIECE, dim=1):
            self.forward(piece)

    def forward(self, ids: Tensor) -> Tensor:
        """A cached step [B, 1] or a prompt [B, S] -> logits; a prompt is never compiled, as the
        model's documents say."""
        call = self.step if ids.shape[1] == 1 else self.model.forward
        cache = {self.word: self.cache}
        logits: Tensor = call(ids, logits_to_keep=self.logits, **cache).logits
        return logits


def make_peer(form: PeerForm, upstream: Any, capacity: int, **options: Any) -> Peer:
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
    return Peer(form, model, capacity, **options)

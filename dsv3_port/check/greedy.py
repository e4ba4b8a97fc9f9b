"""Greedy text of several models: the same tokens from every form, or an error that names the first
other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..engine.generate import Generation, generate
from ..engine.tokenizer import Prompt, encode
from ..errors import PortError
from ..model.decoder import DeepseekV3


def check_greedy(
    models: Mapping[str, Any],
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 48,
    chat: bool = False,
) -> list[Generation]:
    """The first model's greedy continuations, after every other model was found to choose the same
    tokens.

    The first model is one of ours; another may be transformers' (it reads prompt and continuation
    in one pass and must predict each token from those before it). Raises PortError at the first
    token that differs.
    """
    first, *others = models.items()
    want = generate(first[1], tokenizer, prompts, max_new_tokens, chat=chat)
    rows = encode(tokenizer, prompts, chat)
    for name, model in others:
        if isinstance(model, DeepseekV3):
            found = [
                g.token_ids for g in generate(model, tokenizer, prompts, max_new_tokens, chat=chat)
            ]
        else:
            found = [_predicted(model, row, g.token_ids) for row, g in zip(rows, want, strict=True)]
        for prompt, ours, theirs in zip(prompts, want, found, strict=True):
            if ours.token_ids != theirs:
                at = next(
                    (
                        i
                        for i, (a, b) in enumerate(zip(ours.token_ids, theirs, strict=False))
                        if a != b
                    ),
                    min(len(ours.token_ids), len(theirs)),
                )
                raise PortError(
                    f"{first[0]!r} and {name!r} part at token {at} after the prompt {prompt!r}"
                )
    return want


def _predicted(model: Any, prompt: list[int], continuation: list[int]) -> list[int]:
    """What `model` chooses at each place of a given continuation."""
    ids = torch.tensor([prompt + continuation], device=model.device)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    chosen: list[int] = logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()
    return chosen

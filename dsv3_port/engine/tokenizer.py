"""The checkpoint's own tokenizer, by transformers; no code from the checkpoint is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError

Prompt = str | Sequence[dict[str, str]]


def load_tokenizer(path: str | Path) -> Any:
    """transformers' fast tokenizer of a checkpoint folder (tokenizer.json), padding on the left."""
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        raise PortError(
            f"{file}: no such file; copy tokenizer.json and tokenizer_config.json beside the weights"
        )
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # the tokenizers library raises its own kinds
        raise PortError(f"{file}: not a usable tokenizer: {error}") from error
    tokenizer.padding_side = "left"
    return tokenizer


def encode(tokenizer: Any, prompts: Sequence[Prompt], chat: bool = False) -> list[list[int]]:
    """Token ids of each prompt. A prompt is text, or chat messages [{"role": ..., "content": ...}]."""
    encoded = []
    for prompt in prompts:
        if isinstance(prompt, str) and not chat:
            ids = tokenizer(prompt)["input_ids"]
        else:
            messages = (
                [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            )
            if not tokenizer.chat_template:
                raise PortError("chat mode: this tokenizer has no chat template; use plain prompts")
            text = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise PortError(f"prompt {prompt!r} has no tokens")
        encoded.append(list(ids))
    return encoded


def check_length(longest: int, limit: int | None) -> None:
    """PortError where a prompt of `longest` tokens is longer than INPUT_MAX_LEN, if there is such a
    limit."""
    if limit is not None and longest > limit:
        raise PortError(
            f"a prompt has {longest} tokens, more than INPUT_MAX_LEN = {limit}: set it higher, or shorten "
            "the prompt"
        )


def pad_left(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    length: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Ragged rows -> input_ids [B, S] and attention_mask [B, S]; S is `length`, or that of the
    longest row."""
    longest = max(len(r) for r in rows)
    check_length(longest, length)
    width = length or longest
    ids = [[pad_id] * (width - len(r)) + list(r) for r in rows]
    mask = [[0] * (width - len(r)) + [1] * len(r) for r in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

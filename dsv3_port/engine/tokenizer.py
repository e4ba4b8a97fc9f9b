"""The checkpoint's own tokenizer, by transformers; no code from the checkpoint is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError
from ..files import read_json
from ..weights.content import side_file
from .chat import check_messages, render

Prompt = str | Sequence[dict[str, Any]]
# tokenizer classes that transformers builds around add_bos_token and add_eos_token
_BY_SETTINGS = ("LlamaTokenizerFast", "LlamaTokenizer")


def load_tokenizer(path: str | Path) -> Any:
    """transformers' fast tokenizer of a checkpoint folder (tokenizer.json), padding on the left."""
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        raise PortError(
            f"{file}: no such file; copy tokenizer.json and tokenizer_config.json beside the weights"
        )
    settings: dict[str, Any] = {}
    for beside in (file, file.with_name("tokenizer_config.json")):
        if beside.exists():  # Git LFS's pointers and broken JSON have clearer words here
            settings = read_json(side_file(Path(path), beside.name))
            if not isinstance(settings, dict):
                raise PortError(f"{beside}: holds a {type(settings).__name__}, not an object")
    from transformers import PreTrainedTokenizerFast

    # the classes of published checkpoints add these tokens by the settings, whatever the file's own
    # post-processor does
    says = {k: settings[k] for k in ("add_bos_token", "add_eos_token") if k in settings}
    wrong = [k for k, v in says.items() if not isinstance(v, bool)]
    if wrong:
        raise PortError(
            f"{file.with_name('tokenizer_config.json')}: {wrong[0]} is not true or false"
        )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True)
        if settings.get("tokenizer_class") in _BY_SETTINGS and says:
            tokenizer._add_bos_token = says.get("add_bos_token", True)
            tokenizer._add_eos_token = says.get("add_eos_token", False)
            tokenizer.update_post_processor()
    except Exception as error:  # the tokenizers library raises its own kinds
        raise PortError(f"{file}: not a usable tokenizer: {str(error)[:300]}") from error
    tokenizer.padding_side = "left"
    return tokenizer


def encode(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    chat: bool = False,
    names: Sequence[str] | None = None,
) -> list[list[int]]:
    """Token ids of each prompt. A prompt is text, or chat messages [{"role": ..., "content": ...}].
    names: what errors call each, "prompt 1" and so on by itself."""
    encoded = []
    names = names or [f"prompt {number + 1}" for number in range(len(prompts))]
    for number, text in enumerate(_texts(tokenizer, prompts, chat)):
        plain = isinstance(prompts[number], str) and not chat
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PortError(
                f"{names[number]} holds half of a character (a lone surrogate) at place {error.start}: "
                "its text was cut there"
            ) from None
        ids = tokenizer(text, **({} if plain else {"add_special_tokens": False}))["input_ids"]
        if not ids:
            raise PortError(f"{names[number]} ({text[:40]!r}) has no tokens")
        encoded.append(list(ids))
    return encoded


def _texts(tokenizer: Any, prompts: Sequence[Prompt], chat: bool) -> list[str]:
    """Chat prompts as the template writes them; plain ones as they are."""
    messages = {
        number: check_messages([{"role": "user", "content": p}] if isinstance(p, str) else p)
        for number, p in enumerate(prompts)
        if chat or not isinstance(p, str)
    }
    made = dict(
        zip(messages, render(tokenizer, [*messages.values()]) if messages else (), strict=True)
    )
    return [made.get(number, p if isinstance(p, str) else "") for number, p in enumerate(prompts)]


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

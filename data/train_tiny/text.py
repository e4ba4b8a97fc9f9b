"""From the grammar's documents to what training and measuring need: tokenizer, packed batches,
held-out questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from grammar import documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|begin|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"]  # ids 0 to 4
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "<|assistant|>{{ message['content'] }}{{ eos_token }}{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOKENIZER_SEED = 3
ANSWER = "\nAnswer:"


def make_tokenizer(vocab: int, length: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `vocab` entries, trained on the grammar's text; every prompt gets
    the begin token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = (
        d if isinstance(d, str) else "\n".join(m["content"] for m in d)
        for d in islice(documents(TOKENIZER_SEED), 4000)
    )
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=SPECIAL,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    core.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[2],
        additional_special_tokens=SPECIAL[3:],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=length,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """tokenizer.json, and tokenizer_config.json with the chat template in it, as the published
    checkpoint has them."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    file = folder / "tokenizer_config.json"
    # transformers 5 names a class that transformers 4 and other tools do not know; both load this
    # one
    values = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    file.write_text(json.dumps(values, indent=2) + "\n")


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, batch: int, length: int
) -> Iterator[Tensor]:
    """[batch, length] of packed documents, each with begin and end tokens, without end."""
    row: list[int] = []
    rows: list[list[int]] = []
    for document in documents(seed):
        if isinstance(document, str):
            row += tokenizer(document)["input_ids"] + [tokenizer.eos_token_id]
        else:
            text = tokenizer.apply_chat_template(document, tokenize=False)
            row += tokenizer(text, add_special_tokens=False)["input_ids"]
        while len(row) >= length:
            rows.append(row[:length])
            row = row[length:]
        while len(rows) >= batch:
            yield torch.tensor(rows[:batch])
            rows = rows[batch:]


def answers(
    tokenizer: PreTrainedTokenizerFast, seed: int, count: int
) -> Iterator[tuple[list[int], int, int]]:
    """`count` times (tokens of a text up to the end of an answer, where the answer begins, where it
    ends)."""
    found = 0
    for document in documents(seed):
        if not isinstance(document, str):
            continue
        head, *rest = document.split(ANSWER)
        for part in rest:
            answer, _, question = part.partition("\n")
            start = len(tokenizer(head + ANSWER)["input_ids"])
            ids = tokenizer(head + ANSWER + answer)["input_ids"]
            yield ids, start, len(ids)
            found += 1
            if found == count:
                return
            head += ANSWER + answer + "\n" + question

"""The scales of an int8 cache: the largest |normalised latent| of each layer over a calibration text, by
127, which is the largest code.

One number for all channels and tokens of a layer: a latent is normalised before it is cached, so its size is
gamma's and hardly the text's. What is larger in another text is clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError
from ..model.attention import attentions
from ..model.decoder import DeepseekV3
from ..parallel import TensorParallel
from ..version import __version__
from .job import Job, load_rank
from .tokenizer import encode

MOST = 127


@torch.no_grad()
def calibrate(
    model: DeepseekV3, prompts: Sequence[Any] | Tensor, tokenizer: Any = None
) -> dict[str, float]:
    """`model.layers.0.self_attn` -> scale, the MTP layer's behind the last. prompts: rows of token ids; or
    texts, with a tokenizer. Each is run alone and eagerly, without padding and without a cache, so the
    model's own cache may be of any form."""
    rows = _rows(model, prompts, tokenizer)
    with _largest(model) as most:
        for row in rows:
            _run(model, torch.tensor([row], device=model.device))
    scales = {name: float((value / MOST).cpu()) for name, value in most.items()}
    for name, scale in scales.items():
        if not 0 < scale < float("inf"):
            raise PortError(
                f"{name}: the largest latent of the calibration text is {scale * MOST:g}, of which no scale "
                "can be made; are the weights whole?"
            )
    return scales


def _rows(model: DeepseekV3, prompts: Sequence[Any] | Tensor, tokenizer: Any) -> list[list[int]]:
    if not len(prompts):
        raise PortError("calibration needs a text: no prompt was given")
    if tokenizer is not None:
        rows = encode(tokenizer, list(prompts))
    elif isinstance(prompts[0], str):
        raise PortError("calibrate: prompts of text need a tokenizer, as its third argument")
    else:
        rows = [torch.as_tensor(row).tolist() for row in prompts]
    vocabulary, positions = model.config.vocab_size, model.config.max_position_embeddings
    for number, row in enumerate(rows):
        if not row or not 0 <= min(row) <= max(row) < vocabulary:
            raise PortError(f"prompt {number + 1}: ids in 0..{vocabulary - 1} are needed")
        if len(row) > positions:
            raise PortError(
                f"prompt {number + 1} has {len(row)} tokens, and the model {positions} positions: cut it"
            )
    return rows


@contextmanager
def _largest(model: DeepseekV3) -> Iterator[dict[str, Tensor]]:
    """Attention -> the largest |latent| that its norm gives within."""
    most: dict[str, Tensor] = {}

    def watched(name: str, norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            y = norm(x)
            largest = y.abs().amax().float()
            most[name] = torch.maximum(most[name], largest) if name in most else largest
            return y

        return call

    held = {name: vars(a.kv_a_layernorm) for name, a in attentions(model).items()}
    before = {name: own.get("norm") for name, own in held.items()}  # a learner's own, perhaps
    for name, attention in attentions(model).items():
        held[name]["norm"] = watched(name, attention.kv_a_layernorm.norm)
    try:
        yield most
    finally:
        for name, own in held.items():
            del own["norm"]
            if before[name] is not None:
                own["norm"] = before[name]


def _run(model: DeepseekV3, ids: Tensor) -> None:
    """A prompt [1, S] through all layers, the MTP layer with each position's next token."""
    pad = torch.zeros(1, dtype=torch.int64, device=ids.device)
    if model.mtp is None:
        model.forward_step(ids, pad, None, True)
        return
    logits, hidden = model.verify_step(ids, pad, None, True)
    following = torch.cat((ids[:, 1:], logits[:, -1:].argmax(-1)), 1)
    model.draft_step(following, pad, None, True, hidden)


def calibrate_rank(
    parallel: TensorParallel, job: Job, card: int | None = None
) -> tuple[dict[str, float], dict[str, str]] | None:
    """One rank's part of `dsv3-port calibrate`: rank 0's scales and what they were made of, which are every
    rank's (the latent row is whole on each); None on the others."""
    tokenizer, model = load_rank(parallel, job, card)
    rows = encode(tokenizer, job.prompts, job.chat)
    scales = calibrate(model, rows)
    if parallel.rank:
        return None
    made_of = {
        "kv_cache_dtype": "int8",
        "quant": model.plan.quant,
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompts": str(len(rows)),
        "tokens": str(sum(map(len, rows))),
        "dsv3_port": __version__,
    }
    return scales, made_of

"""What multi-token prediction gives and costs, without a clock: drafts accepted, tokens a decode step,
and the work of a step with a draft beside that of one without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import DeepseekV3Config
from ..engine.caches import Caches
from ..engine.decoding import Batch
from ..engine.sampler import Sampler
from ..engine.speculative import run, wanted
from ..engine.streamer import TextStreamer
from ..engine.tokenizer import pad_left
from ..errors import PortError
from ..model.decoder import DeepseekV3, build
from ..plan import PortPlan
from .step_counter import CountedRank, StepCounter
from .step_counter import counting as counting_work
from .step_work import StepWork, one_of_each, step_work


@dataclass(frozen=True)
class Speculation:
    """One greedy continuation with drafts."""

    tokens: list[int]
    accepted: list[int]  # of each decode step, 1 where its draft was

    @property
    def steps(self) -> int:
        return len(self.accepted)

    @property
    def tokens_per_step(self) -> float:
        """The first token left out, which prefill gives."""
        return (len(self.tokens) - 1) / self.steps if self.steps else 0.0


def speculation(
    model: DeepseekV3, prompts: Sequence[list[int]], max_new_tokens: int = 64
) -> list[Speculation]:
    """Each prompt (token ids) continued greedily with drafts, all as one batch; ends at the model's
    EOS. PortError where the plan has no MTP layer."""
    if not wanted(model, 1) or not prompts:
        raise PortError("speculation needs one prompt at least")
    ids, mask = pad_left(list(prompts), 0, None, model.device)
    caches = Caches.make(model, len(prompts), ids.shape[1], max_new_tokens)
    streamer = TextStreamer(None, len(prompts), set(model.config.eos_token_ids), None)
    batch = Batch(model, caches, Sampler.greedy(), streamer, max_new_tokens)
    _, found = run(batch, ids, mask, 0)
    return [Speculation(*row) for row in zip(streamer.out, found.accepted, strict=True)]


def drafts_right(model: DeepseekV3, ids: Tensor) -> Tensor:
    """Over a given text ids [B, S]: whether the draft of each token is what the model chooses there,
    bool [B, S - 2], from the third token on."""
    logits, drafts = over_text(model, ids)
    return drafts[:, :-1].argmax(-1) == logits[:, 1:].argmax(-1)


def over_text(model: DeepseekV3, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Over a given text ids [B, S]: the model's logits behind each token but the last [B, S - 1, V],
    and the MTP layer's, which draft one token further: drafts[:, i] and logits[:, i + 1] are of the
    same token."""
    wanted(model, 1)
    keep, model.keep = model.keep, lambda hidden: hidden
    cache = model.new_cache(ids.shape[0], ids.shape[1])
    try:
        with torch.no_grad():
            cache.require_capacity(ids.shape[1] - 1)
            if hasattr(cache, "expect"):
                cache.expect(ids.shape[1] - 1)
            logits, hidden = model.verify_step(ids[:, :-1].contiguous(), cache.pad, cache, True)
            drafts = model.draft_step(ids[:, 1:].contiguous(), cache.pad, cache, True, hidden)
    finally:
        model.keep = keep
    return logits, drafts


def speculation_work(
    config: DeepseekV3Config,
    *,
    batch: int = 1,
    context: int = 4096,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, StepWork]:
    """The work of a plain decode step, of the model over a pair (token and draft), and of the MTP
    layer over it, of the full port: {"decode": …, "verify": …, "draft": …}. Counted as step_work
    does; the pair's two tokens of each sequence meet more experts than one."""
    plan = PortPlan.full()
    found = {"decode": step_work(config, plan, batch=batch, context=context, dtype=dtype)}
    plan = plan.plus("mtp")
    short, times = one_of_each(config)
    for name in ("verify", "draft"):
        counter = StepCounter(short, 2 * batch, times)
        model = build(short, plan, CountedRank(0, 1, counter=counter), "meta", dtype)
        cache = model.new_cache(batch, context)
        cache.length = context - 2
        ids = torch.zeros(batch, 2, dtype=torch.int64, device="meta")
        hidden = torch.empty(batch, 2, config.hidden_size, dtype=dtype, device="meta")
        with torch.no_grad(), counting_work(model, counter):
            if name == "verify":
                model.verify_step(ids, cache.pad, cache, False)
            else:
                model.draft_step(ids, cache.pad, cache, False, hidden)
        found[name] = StepWork(
            config, plan, 1, "decode", batch, 2, context, counter.work, [], counter.syncs
        )
    return found

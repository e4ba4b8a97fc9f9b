"""What a step with a draft takes beside one without, on this device."""

from __future__ import annotations

from collections.abc import Callable

from ..check.equivalence import random_ids
from ..engine import speculative
from ..engine.sampler import Sampler
from ..engine.speculative import Drafts
from ..errors import PortError
from ..messages import N_
from ..model.decoder import DeepseekV3
from .measure import measure
from .records import Results

ONE, PAIR, WHOLE = N_("one token"), N_("token and draft"), N_("token and draft, next draft")


def pair_times(
    model: DeepseekV3,
    *,
    batch: int = 1,
    context: int = 64,
    rounds: int = 9,
    profile: str = "tiny",
    label: str = "steps with drafts",
    seed: int = 0,
) -> Results:
    """Time three steps of a model with an MTP layer behind `context` random positions: ONE computes
    the last token, PAIR also its draft, WHOLE then verifies and drafts anew, which is the step that
    engine/speculative.py makes. Each begins at the same position, and is greedy."""
    if not speculative.wanted(model, 1):
        raise PortError("pair_times needs a model with an MTP layer")
    cache = model.new_cache(batch, context + 2)
    cache.fill_random(context, seed)
    pair = random_ids(model, (batch, 2), seed)
    token, drafts, greedy = pair[:, 0], Drafts(pair[:, 1]), Sampler.greedy()
    single = token.unsqueeze(1).contiguous()

    def one() -> object:
        return model(single, cache=cache).argmax(-1)

    def verified() -> object:
        cache.require_capacity(2)
        speculative.expect(cache, 2)
        return model.run_verify(pair, cache.pad, cache, False)[0].argmax(-1)

    def whole() -> object:
        return speculative.step(model, cache, token, drafts, greedy)

    calls: dict[str, Callable[[], object]] = {ONE: one, PAIR: verified, WHOLE: whole}
    return measure(
        calls,
        rounds=rounds,
        device=model.device,
        prepare=lambda name, call: cache.rewind(context),
        label=label,
        meta={
            "phase": "step",
            "profile": profile,
            "dtype": str(model.dtype).removeprefix("torch."),
            "batch": batch,
            "context": context,
        },
    )

"""Models that share one set of weights, and their times over a range of contexts or prompt lengths.

bench_ladder times whole rungs at one size; a sweep shows where a step starts to pay and where it
stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..check.equivalence import check_equivalence
from ..errors import PortError
from ..model.decoder import DeepseekV3, build
from ..plan import PortPlan
from ..weights.layout import targets
from .measure import Results, measure


def with_plan(model: DeepseekV3, plan: PortPlan) -> DeepseekV3:
    """The same weights, the very same memory, under another plan; PortError where that plan lays
    them out otherwise.

    Only cache, rope, norm, lm_head, group_mask and the options of attention and routing change no
    weight.
    """

    def layout(p: PortPlan) -> list[tuple[str, tuple[int, ...]]]:
        return [(t.name, t.shape) for t in targets(model.config, p, model.parallel)]

    if odd_ones := set(layout(plan)) ^ set(layout(model.plan)):
        odd = min(name for name, _ in odd_ones)
        raise PortError(
            f"these plans do not share weights ({odd} is in one of them only): load the second one with "
            "load_model"
        )
    twin = build(model.config, plan, model.parallel, model.device, model.dtype, model.gmm)
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin


def decode_call(
    model: DeepseekV3, context: int, batch: int = 1, spare: int = 16, seed: int = 0
) -> Callable[[], Tensor]:
    """A function that makes one cached step behind `context` random positions, at most `spare`
    times: to count, or to profile. Each call adds a position, so that nothing but the step itself
    is in it.
    """
    cache = model.new_cache(batch, context + spare)
    cache.fill_random(context, seed)
    generator = torch.Generator().manual_seed(seed)
    token = torch.randint(model.config.vocab_size, (batch, 1), generator=generator).to(model.device)

    def call() -> Tensor:
        logits: Tensor = model(token, cache=cache)
        return logits

    return call


class _Calls:
    """One forward call of each model at one size: a fresh input every call, the cache rewound
    before it."""

    def __init__(
        self,
        models: Mapping[str, DeepseekV3],
        phase: str,
        batch: int,
        size: int,
        room: int,
        seed: int,
    ) -> None:
        first = next(iter(models.values()))
        self.models, self.start = models, size if phase == "decode" else 0
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(
            first.config.vocab_size,
            (32, batch, 1 if phase == "decode" else size),
            generator=generator,
        ).to(first.device)
        self.now: dict[str, Tensor] = {}
        self.caches = {name: model.new_cache(batch, room) for name, model in models.items()}
        for cache in self.caches.values():
            if self.start:
                cache.fill_random(self.start, seed)

    def prepare(self, name: str, call: int) -> None:
        self.now[name] = self.ids[call % len(self.ids)]
        self.caches[name].rewind(self.start)

    def call(self, name: str) -> Tensor:
        logits: Tensor = self.models[name](self.now[name], cache=self.caches[name])
        return logits


def sweep(
    models: Mapping[str, DeepseekV3],
    sizes: Sequence[int],
    *,
    phase: str = "decode",
    batch: int = 1,
    room: int | None = None,
    rounds: int = 5,
    seed: int = 0,
    profile: str = "",
    label: str = "",
    differences: dict[str, float] | None = None,
) -> Results:
    """Time each model at every size: cached positions for "decode", tokens of the prompt for
    "prefill".

    The models are checked against the first one before anything is timed. room: max_length of the
    caches, default just enough; a fixed cache is attended to over all of it. profile names the
    weights in the records. differences: receives what the check found for each model, the largest
    where it holds something already.
    """
    if phase not in ("decode", "prefill"):
        raise PortError(f"unknown phase {phase!r}; it can be decode or prefill")
    if not sizes or min(sizes) < 1:
        raise PortError(f"sweep: sizes must be positive, not {list(sizes)}")
    if room is not None and room <= max(sizes):
        raise PortError(f"sweep: room {room} leaves no place behind {max(sizes)} positions")
    found = check_equivalence(
        models, batch=batch, room=room, seed=seed
    )  # the timed room: graphs are made for one
    if differences is not None:
        differences.update({n: max(d, differences.get(n, 0.0)) for n, d in found.items()})
    first = next(iter(models.values()))
    meta: dict[str, Any] = {
        "profile": profile,
        "dtype": str(first.dtype).removeprefix("torch."),
        "batch": batch,
        "phase": phase,
        "mode": {
            n: "eager" if m.run_step == m.forward_step else "compiled" for n, m in models.items()
        },
    }
    ids = {name: model.plan.step_ids for name, model in models.items()}
    results = Results()
    for size in sizes:
        calls = _Calls(models, phase, batch, size, room or size + 1, seed)
        at = {"context": size} if phase == "decode" else {"tokens": size}
        results += measure(
            {name: partial(calls.call, name) for name in models},
            rounds=rounds,
            device=first.device,
            prepare=calls.prepare,
            step_ids=ids,
            meta=meta | at,
            label=label or f"sweep {profile} {phase} {size}".replace("  ", " "),
        )
    return results

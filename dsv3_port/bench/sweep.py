"""Times of models over a range of contexts or prompt lengths.

bench_ladder times whole rungs at one size; a sweep shows where a step starts to pay and where it
stops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..check.equivalence import check_equivalence
from ..errors import PortError
from ..model.decoder import DeepseekV3
from .records import Results
from .workload import PHASES, Workload


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
) -> Results:
    """Time each model at every size: cached positions for "decode", tokens of the prompt for
    "prefill".

    The models are checked against the first one before anything is timed. room: max_length of the
    caches, default just enough; a fixed cache is attended to over all of it. profile names the
    weights in the records.
    """
    if phase not in PHASES:
        raise PortError(f"unknown phase {phase!r}; it can be decode or prefill")
    if not sizes or min(sizes) < 1:
        raise PortError(f"sweep: sizes must be positive, not {list(sizes)}")
    if room is not None and room <= max(sizes):
        raise PortError(f"sweep: room {room} leaves no place behind {max(sizes)} positions")
    # the timed room: graphs are made for one
    found = check_equivalence(models, batch=batch, room=room, seed=seed)
    results = Results(differences=dict(found))
    for size in sizes:
        work = Workload(models, phase, batch=batch, size=size, capacity=room or 0, seed=seed)
        results += work.measure(
            profile,
            rounds=rounds,
            step_ids={name: model.plan.step_ids for name, model in models.items()},
            label=label or f"sweep {profile} {phase} {size}".replace("  ", " "),
        )
    return results

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
from .workload import PHASES, Workload, with_first_call


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
    mode: Mapping[str, str] | None = None,
) -> Results:
    """Time each model at every size: cached positions for "decode", tokens of the prompt for
    "prefill".

    The models are checked against the first one before anything is timed. room: max_length of the
    caches, default just enough; a fixed cache is attended to over all of it. profile names the
    weights in the records. mode: in the records, "eager", "compiled" or "replayed"; default what a
    model is, and a step that was replaced is taken for compiled.
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
            mode,
            rounds=rounds,
            step_ids={name: model.plan.step_ids for name, model in models.items()},
            label=label or f"sweep {profile} {phase} {size}".replace("  ", " "),
        )
    results.records = [with_first_call(r, found.first_calls) for r in results]
    return results

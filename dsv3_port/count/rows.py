"""Who has which row in every decode step of a continuous batch, and what it took: recordings of the
step, and blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ..engine.capture import GRAPHS
from ..engine.continuous import Admission, ContinuousBatch, Request, Result, run_requests
from ..engine.graph import compile_steps
from ..engine.loading import with_plan
from ..model.decoder import DeepseekV3
from .tape import taped


@dataclass(frozen=True)
class RowLog:
    """results: of each request, in order of arrival. occupancy: running rows of every decode step.
    recordings: of the step, over the whole run. most_blocks: in use at once; held: not given back."""

    slots: int
    requests: tuple[Request, ...]
    results: tuple[Result, ...]
    occupancy: tuple[int, ...]
    recordings: int
    most_blocks: int
    held: int

    @property
    def steps(self) -> int:
        return len(self.occupancy)

    @property
    def for_nobody(self) -> int:
        """Rows that a step computed without a request."""
        return self.slots * self.steps - sum(self.occupancy)

    @property
    def tokens(self) -> list[int]:
        """New ones of each request."""
        return [len(result.token_ids) for result in self.results]


def row_log(
    model: DeepseekV3,
    requests: Sequence[Request],
    slots: int,
    stop: Collection[int] = (),
    admission: Admission | None = None,
) -> RowLog:
    """Run requests greedily through a twin of `model` whose decode step is recorded once, before the first
    of them. admission: who begins where; the model's own, else in order of arrival. PortError as of
    ContinuousBatch."""
    twin = with_plan(model, model.plan.replace(graph="eager"))
    twin.admission = admission or model.admission
    recordings = _record(twin)
    batch = ContinuousBatch(twin, slots, max(r.positions for r in requests), stop)
    batch.warm_up()
    results = run_requests(batch, requests)
    return RowLog(
        slots,
        tuple(requests),
        tuple(results),
        tuple(batch.occupancy),
        recordings(batch),
        batch.most_blocks,
        batch.cache.in_use,
    )


def _record(twin: DeepseekV3) -> Callable[[ContinuousBatch], int]:
    """Put a recording under the decode steps, the device's graph or, on a CPU, a tape; what counts
    them."""
    if twin.device.type in GRAPHS:
        compile_steps(twin, "captured")
        return lambda batch: batch.captures
    twin.device_lengths = True  # numbers of the host would be those of the recording
    tapes = taped(twin, clone_output=True)
    return lambda batch: len(tapes)

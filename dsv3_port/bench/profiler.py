"""Where the time of one call goes, operator by operator, from torch.profiler."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from ..engine.device import device_kind, synchronize
from ..errors import PortError
from .machine import BusyWatch


@contextlib.contextmanager
def no_stderr() -> Iterator[None]:
    """Within it the process's stderr goes nowhere, also what libraries write past Python."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class OperatorTimes(dict[str, float]):
    """Operator -> seconds of its own in one call, largest first; `busy_share`: what other processes
    took meanwhile."""

    busy_share: float = 0.0


def top_operators(
    fn: Callable[[], object], calls: int = 3, device: str | torch.device = "cpu"
) -> OperatorTimes:
    """Where one call of `fn` spends its time, children left out: for each operator the median over
    `calls` calls.

    On cuda the time of its kernels, elsewhere the host's. Recording costs about a microsecond an
    operator, so that many short operators look slower than they are: read shares, and measure times
    with lab.measure.
    """
    if calls < 1:
        raise PortError(f"top_operators: calls must be 1 at least, not {calls}")
    kind = device_kind(device)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if kind == "cuda" else [])
    field = "self_device_time_total" if kind == "cuda" else "self_cpu_time_total"
    samples: dict[str, list[float]] = defaultdict(list)
    watch = BusyWatch()
    with torch.no_grad():
        fn()  # warm
        for _ in range(calls):
            # its C++ part writes a line at every start and stop
            with no_stderr(), profile(activities=activities, acc_events=True) as recorded:
                fn()
                synchronize(device)
            for event in recorded.key_averages():
                samples[event.key].append(getattr(event, field) * 1e-6)
    watch.look(0.0)
    times = {
        op: statistics.median(seen + [0.0] * (calls - len(seen))) for op, seen in samples.items()
    }
    found = OperatorTimes(
        sorted(((op, t) for op, t in times.items() if t > 0), key=lambda item: -item[1])
    )
    found.busy_share = watch.share
    return found

"""Where the time of one call goes, operator by operator, from torch.profiler."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

from ..errors import PortError
from ..plots.style import BLUE, CYCLE, GREY, LIGHT, SMALL, LabFigure, figure, finish, styled
from .measure import BUSY_SHARE, BusyWatch, device_info, device_kind, synchronize


@contextlib.contextmanager
def _kineto_silent() -> Iterator[None]:
    """Within it the process's stderr goes nowhere: the profiler's C++ part writes a line at every
    start and stop."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


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
            with _kineto_silent(), profile(activities=activities, acc_events=True) as recorded:
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


@styled
def where_time_goes(
    times: Mapping[str, Mapping[str, float]], top: int = 8, device: str | torch.device = "cpu"
) -> LabFigure:
    """Operators with the most time in any of the calls (from top_operators), side by side, the rest
    as one bar."""
    if not times or not all(times.values()):
        raise PortError("where_time_goes: no times given")
    info = device_info(device)
    if info["tier"] == "host-npu":
        raise PortError(
            "the host stand-in for CANN says nothing about an NPU's speed: its times are never drawn"
        )
    names = list(dict.fromkeys(op for parts in times.values() for op in parts))
    names.sort(key=lambda op: -max(parts.get(op, 0.0) for parts in times.values()))
    shown = names[:top]
    rest = f"{len(names) - len(shown)} others"
    rows = [*shown, rest] if len(names) > len(shown) else shown
    fig, (ax,) = figure(size=(9.5, 1.4 + (0.14 + 0.18 * len(times)) * len(rows)))
    height = 0.84 / len(times)
    said = []
    for k, (name, parts) in enumerate(times.items()):
        values = [1e3 * parts.get(op, 0.0) for op in shown]
        if len(rows) > len(shown):
            values.append(1e3 * sum(t for op, t in parts.items() if op not in shown))
        total = 1e3 * sum(parts.values())
        places = [y + (k - (len(times) - 1) / 2) * height for y in range(len(rows))]
        colour = (GREY, BLUE)[k] if len(times) == 2 else CYCLE[k % 8]
        ax.barh(places, values, height, color=colour, label=f"{name}: {total:.2f} ms in all")
        for y, value in zip(places, values, strict=True):
            ax.text(
                value,
                y,
                f" {value:.2f}" if value >= 0.005 else " –",
                va="center",
                fontsize=SMALL - 1,
            )
        largest = max(range(len(shown)), key=values.__getitem__)
        said.append(f"{name}, {total:.2f} ms, most in {shown[largest]} {values[largest]:.2f} ms")
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("time of its own in one call, ms (with the profiler's cost)")
    ax.margins(x=0.12)
    ax.grid(axis="x", color=LIGHT, lw=0.8)
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="lower right")
    where = f"{info['device_name']} ({info['tier']}) · torch {info['versions']['torch']} · {info['date'][:10]}"
    if max(getattr(parts, "busy_share", 0.0) for parts in times.values()) > BUSY_SHARE:
        where += " · MACHINE WAS BUSY, times are not to be trusted"
    return finish(
        fig,
        "Bars of time by operator: " + "; ".join(said) + ".",
        f"torch.profiler, medians · {where}",
    )

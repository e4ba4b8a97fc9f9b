"""Seconds of a call: on an accelerator by events on the device's own clock, on a CPU by the host's.

A host that waits for the device before and after each call times its own way there and back; a
captured step of 200 us cannot be told so. Between events calls follow one another as in a decode
loop, and what an eager step costs the host still shows: the device is idle meanwhile, between the
same two events.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import torch

from ..engine.device import device_kind, synchronize

Call = Callable[[], object]
Name = Literal["host", "device"]


class HostClock:
    """The host's clock, around a device that has finished."""

    name: Name = "host"

    def __init__(self, device: str) -> None:
        self.device = device

    def seconds(self, call: Call, prepare: Call | None, inner: int) -> float:
        """Per call, over `inner` calls; `prepare` runs untimed before each of them."""
        total = 0.0
        if prepare is None:
            synchronize(self.device)
            start = time.perf_counter()
            for _ in range(inner):
                call()
            synchronize(self.device)
            return (time.perf_counter() - start) / inner
        for _ in range(inner):
            prepare()
            synchronize(self.device)
            start = time.perf_counter()
            call()
            synchronize(self.device)
            total += time.perf_counter() - start
        return total / inner


class DeviceClock:
    """Events around each call, read when all are done: the host waits once a sample."""

    name: Name = "device"

    def __init__(self, device: str) -> None:
        self.device = device
        self.event: Any = torch.get_device_module(device_kind(device)).Event
        self.pairs: list[tuple[Any, Any]] = []  # kept: making one costs the host more than using it

    def seconds(self, call: Call, prepare: Call | None, inner: int) -> float:
        """As HostClock's. What `prepare` launches lies outside of the events."""
        used = inner if prepare is not None else 1
        while len(self.pairs) < used:
            self.pairs.append((self.event(enable_timing=True), self.event(enable_timing=True)))
        synchronize(self.device)
        for start, end in self.pairs[:used]:
            if prepare is not None:
                prepare()
            start.record()
            for _ in range(inner // used):
                call()
            end.record()
        synchronize(self.device)
        return sum(start.elapsed_time(end) for start, end in self.pairs[:used]) / 1e3 / inner


def clock_of(device: str) -> HostClock | DeviceClock:
    """The clock of a device; events of the host NPU are the host's time, and are never shown."""
    return DeviceClock(device) if device_kind(device) in ("cuda", "npu") else HostClock(device)

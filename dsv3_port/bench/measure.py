"""Honest paired timing: variants interleaved round by round, warmed up, synchronised, compile time
kept apart.

A median of one variant measured after another says more about the machine's drift than about the
code; paired rounds do not. See bench/records.py for what comes out and count/census.py for counting
instead of timing.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import platform
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

from ..count.census import count_ops, peak_memory
from ..engine.device import device_kind, synchronize
from ..errors import PortError
from .records import Ratio, Record, Results, load, save, stamp

__all__ = [
    "BUSY_SHARE",
    "Ratio",
    "Record",
    "Results",
    "count_ops",
    "device_info",
    "load",
    "measure",
    "peak_memory",
    "save",
    "stamp",
]

BUSY_SHARE = 0.10  # of all cores, used by other processes: from here on medians drift visibly
# seconds; a shorter call is repeated within a sample, timer and scheduler noise would rule it
# otherwise
SHORT = 1e-3
Prepare = Callable[[str, int], None]


@functools.cache
def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"


@functools.cache
def versions() -> dict[str, str]:
    """Versions that a number depends on; packages that are not installed are left out."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("transformers", "torch_npu", "dsv3_port"):
        try:
            found[name] = metadata.version(name.replace("_", "-"))
        except metadata.PackageNotFoundError:
            continue
    return found


def device_info(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Where numbers come from: `device`, `device_name`, `tier`, `threads`, `versions`, `date`
    (UTC).

    Tier "host-npu" is the real torch_npu on the package's stand-in for CANN: no timing of it is
    ever shown.
    """
    kind = device_kind(device)
    if kind == "cpu":
        name, tier = f"{_cpu_name()}, {psutil.cpu_count()} cores", "cpu"
    elif kind == "cuda":
        if not torch.cuda.is_available():
            raise PortError("device 'cuda' is not available here; use device='cpu'")
        name, tier = torch.cuda.get_device_name(), "cuda"
    elif kind in ("npu", "host-npu"):
        stand_in = kind == "host-npu" or _host_stand_in()
        name = "host stand-in" if stand_in else torch.get_device_module("npu").get_device_name()
        tier = "host-npu" if stand_in else "npu"
    else:
        raise PortError(f"unknown device {str(device)!r}; it can be cpu, cuda or npu")
    return {
        "device": str(device),
        "device_name": name,
        "tier": tier,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _host_stand_in() -> bool:
    """Whether this process's npu device is the package's stand-in (it must have been enabled here
    to be one)."""
    hostnpu = sys.modules.get("dsv3_port.hostnpu")
    return bool(hostnpu is not None and hostnpu.enabled())


class BusyWatch:
    """Share of the machine's cores that other processes use, between two looks."""

    def __init__(self) -> None:
        self.cores = psutil.cpu_count() or 1
        self.shares: list[tuple[float, float]] = []  # (seconds, share)
        self._mark()
        time.sleep(0.15)  # before anything of ours runs: who else is there?
        self.look()

    def _mark(self) -> None:
        times = psutil.cpu_times()
        self.busy = (
            sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        )
        self.own, self.wall = (
            sum(os.times()[:4]),
            time.perf_counter(),
        )  # with processes started and ended

    def look(self, shortest: float = 0.1) -> None:
        """Add the share since the last look; the system's counters step by 10 ms, so short spans
        wait for the next."""
        wall = time.perf_counter() - self.wall
        if wall < shortest:
            return
        busy, own = self.busy, self.own
        self._mark()
        others = (self.busy - busy) - (self.own - own)
        self.shares.append((wall, min(1.0, max(0.0, others / (wall * self.cores)))))

    @property
    def share(self) -> float:
        """Mean over the whole measurement, or at its start if that was worse."""
        mean = sum(w * s for w, s in self.shares) / sum(w for w, _ in self.shares)
        return max(mean, self.shares[0][1])


def _sample(
    call: Callable[[], object], prepare: Callable[[], None] | None, inner: int, device: str
) -> float:
    """Seconds per call over `inner` calls; `prepare` runs untimed before each of them."""
    total = 0.0
    if prepare is None:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(inner):
            call()
        synchronize(device)
        return (time.perf_counter() - start) / inner
    for _ in range(inner):
        prepare()
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        total += time.perf_counter() - start
    return total / inner


class _Variant:
    """One callable with its untimed preparation and its count of calls."""

    def __init__(
        self, name: str, call: Callable[[], object], prepare: Prepare | None, device: str
    ) -> None:
        self.name, self.call, self.device = name, call, device
        self.calls, self.inner = 0, 1
        self.samples: list[float] = []
        self._prepare = prepare

    def prepare(self) -> None:
        assert self._prepare is not None
        self._prepare(self.name, self.calls)
        self.calls += 1

    def sample(self) -> float:
        return _sample(self.call, self.prepare if self._prepare else None, self.inner, self.device)

    def warm_up(self, times: int, min_seconds: float) -> None:
        """First call apart, `times` more, then so many calls a sample that it lasts SHORT or
        min_seconds."""
        self.first = self.sample()
        last = min([self.sample() for _ in range(times)] or [self.first])
        target = max(min_seconds, SHORT if last < SHORT else 0.0)
        self.inner = max(1, math.ceil(target / max(last, 1e-7)))


def measure(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    warmup: int = 2,
    min_seconds: float = 0.0,
    device: str | torch.device = "cpu",
    prepare: Prepare | None = None,
    label: str = "",
    step_ids: Mapping[str, tuple[str, ...]] | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Results:
    """Time each variant once per round, in an order that rotates, so that drift meets all of them
    alike.

    prepare(name, n) runs untimed before the n-th call of a variant (a fresh token, a rewound
    cache).
    min_seconds: shortest sample; calls below 1 ms are repeated to 1 ms in any case.
    meta: further fields of the records; a dict as value gives each variant its own.
    """
    if not variants:
        raise PortError("measure: no variants given")
    if rounds < 1:
        raise PortError(f"measure: rounds must be 1 at least, not {rounds}")
    per_variant = {k: v for k, v in (meta or {}).items() if isinstance(v, Mapping)}
    common = {k: v for k, v in (meta or {}).items() if k not in per_variant}
    info = device_info(device)
    kind = str(device)
    timed = [_Variant(name, call, prepare, kind) for name, call in variants.items()]
    watch = BusyWatch()
    if progress:
        bar = tqdm(
            total=len(timed) * (rounds + 1),
            desc=label or "measure",
            unit="sample",
            leave=False,
            delay=2.0,
            mininterval=0.5,
            file=sys.stdout,
        )
    with torch.no_grad():
        for v in timed:
            v.warm_up(warmup, min_seconds)
            if progress:
                bar.update()
        watch.look()
        gc.collect()
        collecting = gc.isenabled()
        gc.disable()
        try:
            for i in range(rounds):
                for k in range(len(timed)):
                    v = timed[(i + k) % len(timed)]
                    v.samples.append(v.sample())
                    if progress:
                        bar.update()
                watch.look()
        finally:
            if collecting:
                gc.enable()
            if progress:
                bar.close()
    share = watch.share
    if share > BUSY_SHARE:
        warnings.warn(
            f"other processes used {share:.0%} of this machine during {label or 'the measurement'}: "
            "its times are not to be trusted",
            stacklevel=2,
        )
    run = secrets.token_hex(6)
    return Results(
        [
            Record(
                name=v.name,
                samples=v.samples,
                run=run,
                first_call_seconds=v.first,
                inner=v.inner,
                step_ids=tuple((step_ids or {}).get(v.name, ())),
                label=label,
                busy=share > BUSY_SHARE,
                busy_share=round(share, 4),
                **info,
                **common,
                **{k: values[v.name] for k, values in per_variant.items()},
            )
            for v in timed
        ]
    )

"""The machine that numbers come from: its device, its versions, and whether others were using it."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import ConfigDict

from ..engine.device import device_kind
from ..errors import PortError

BUSY_SHARE = 0.10  # of all cores, used by other processes: from here on medians drift visibly


@dataclass(frozen=True)
class Host:
    """The machine around the device."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    system: str
    machine: str
    cores: int
    memory_gib: float


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


def own_seconds(children: Iterable[psutil.Process] | None = None) -> float:
    """CPU seconds of this process and of all that it started, running or ended: inductor's compile
    workers are no other users of the machine. `children`: its processes, where they are known."""
    if children is None:
        children = psutil.Process().children(recursive=True)
    total = sum(os.times()[:4])  # with children that ended and were waited for
    for child in children:
        with contextlib.suppress(psutil.Error):  # ended meanwhile
            total += sum(child.cpu_times()[:4])
    return total


class BusyWatch:
    """Share of the machine's cores that other processes use, between two looks."""

    def __init__(self) -> None:
        self.cores = psutil.cpu_count() or 1
        self.shares: list[tuple[float, float]] = []  # (seconds, share)
        self._mark()
        time.sleep(0.15)  # before anything of ours runs: who else is there?
        self.look()

    def _mark(self) -> None:
        # a list of all processes takes long beside a thread that holds the GIL: not between the
        # two counters
        children = psutil.Process().children(recursive=True)
        times = psutil.cpu_times()
        self.busy = (
            sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        )
        self.own, self.wall = own_seconds(children), time.perf_counter()

    def look(self, shortest: float = 0.1) -> None:
        """Add the share since the last look; the system's counters step by 10 ms, so short spans
        wait for the next."""
        if time.perf_counter() - self.wall < shortest:
            return
        busy, own, since = self.busy, self.own, self.wall
        self._mark()
        others = (self.busy - busy) - (self.own - own)
        wall = self.wall - since  # that of the counters: the list of processes is in it
        self.shares.append((wall, min(1.0, max(0.0, others / (wall * self.cores)))))

    @property
    def share(self) -> float:
        """Mean over the whole measurement, or at its start if that was worse."""
        mean = sum(w * s for w, s in self.shares) / sum(w for w, _ in self.shares)
        return max(mean, self.shares[0][1])


def this_host() -> Host:
    return Host(
        platform.system(),
        platform.machine(),
        psutil.cpu_count() or 1,
        round(psutil.virtual_memory().total / 2**30, 1),
    )

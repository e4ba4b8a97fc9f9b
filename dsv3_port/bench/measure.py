"""Honest paired timing: variants interleaved round by round, warmed up, synchronised, compile time
kept apart.

A median of one variant measured after another says more about the machine's drift than about the
code; paired rounds do not. See bench/records.py for what comes out, count/ for counting instead of
timing.
"""

from __future__ import annotations

import gc
import math
import secrets
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from ..errors import PortError
from ..messages import tr
from .clock import DeviceClock, HostClock, clock_of
from .gpu_state import gpu_state
from .machine import BUSY_SHARE, BusyWatch, device_info
from .paired import UNSURE, floor_between, ratio_of
from .records import Record, Results

# seconds; a shorter call is repeated within a sample, timer and scheduler noise would rule it
# otherwise
SHORT = 1e-3
Prepare = Callable[[str, int], None]
TRIES = 3  # runs, until one is not busy
LESSON_ROUNDS = 2  # of a lesson on a busy machine
SETTLED = 0.05  # a lesson's noise floor up to which its rounds may end early
LONGEST = 3  # times its rounds, of a lesson that does not settle


class BusyMachine(UserWarning):
    """Other processes used the machine while something was timed."""


@dataclass
class _Manner:
    """How this process measures. stays_busy: the last run was busy at its end, so waiting does not
    help, and the next one is not repeated."""

    lesson: bool = False
    stays_busy: bool = False


_manner = _Manner()


def in_a_lesson() -> None:
    """From here on, rounds end when the figure is settled: after two thirds of them at the earliest, or
    later, up to three times as many. A busy machine is looked at for LESSON_ROUNDS only, each time: what it
    says gives no verdict anyway, and a learner waits for it. A bench keeps all its rounds."""
    _manner.lesson = True


class _Variant:
    """One callable with its untimed preparation and its count of calls."""

    def __init__(
        self, name: str, call: Callable[[], object], prepare: Prepare | None, device: str
    ) -> None:
        self.name, self.call = name, call
        self.clock, self.host = clock_of(device), HostClock(device)
        self.calls, self.inner = 0, 1
        self.samples: list[float] = []
        self.again: list[float] = []
        self._prepare = prepare

    def prepare(self) -> None:
        assert self._prepare is not None
        self._prepare(self.name, self.calls)
        self.calls += 1

    def sample(self, clock: HostClock | DeviceClock | None = None) -> float:
        prepare = self.prepare if self._prepare else None
        return (clock or self.clock).seconds(self.call, prepare, self.inner)

    def warm_up(self, times: int, min_seconds: float) -> None:
        """First call apart, `times` more, then so many calls a sample that it lasts SHORT or
        min_seconds. The first is the host's time: a device does not see a compiler at work."""
        self.first = self.sample(self.host)
        last = min([self.sample() for _ in range(times)] or [self.first])
        target = max(min_seconds, SHORT if last < SHORT else 0.0)
        self.inner = max(1, math.ceil(target / max(last, 1e-7)))

    def record(self, fields: dict[str, Any], step_ids: Mapping[str, tuple[str, ...]]) -> Record:
        return Record(
            name=self.name,
            samples=self.samples,
            again=self.again,
            first_call_seconds=self.first,
            inner=self.inner,
            step_ids=tuple(step_ids.get(self.name, ())),
            **fields,
        )


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
    alike. The first variant is timed twice a round (`Record.again`): bench.outcome takes the noise
    floor from that pair.

    A run on a busy machine, or whose same code twice lies far apart, is repeated, TRIES runs in all,
    unless the run before this one was busy at its end; what is busy then is marked, and gives no verdict.
    In a lesson (`in_a_lesson`) rounds end when the figure is settled, or the machine is busy.
    prepare(name, n) runs untimed before the n-th call of a variant (a fresh token, a rewound
    cache).
    min_seconds: shortest sample; calls below 1 ms are repeated to 1 ms in any case.
    meta: further fields of the records; a dict as value gives each variant its own.
    """
    if not variants:
        raise PortError("measure: no variants given")
    if rounds < 1:
        raise PortError(f"measure: rounds must be 1 at least, not {rounds}")
    info = device_info(device)
    timed = [_Variant(name, call, prepare, str(device)) for name, call in variants.items()]
    with torch.no_grad():
        with _bar(len(timed), label, progress) as bar:
            for v in timed:
                v.warm_up(warmup, min_seconds)
                bar.update()
        for _ in range(1 if _manner.stays_busy else TRIES):
            # a bar of its own for each: one that is reset shows at once, and is not wiped away
            with _bar((len(timed) + (len(timed) > 1)) * rounds, label, progress) as bar:
                share = _sampled(timed, rounds, bar)
            busy = share > BUSY_SHARE or _unsure(timed[0])
            if not busy:
                break
    _manner.stays_busy = busy
    if share > BUSY_SHARE:
        said = tr(
            "other processes used {share:.0%} of this machine during {what}: its times are not to be trusted"
        )
        warnings.warn(
            said.format(share=share, what=label or tr("the measurement")),
            BusyMachine,
            stacklevel=2,
        )
    common: dict[str, Any] = {"run": secrets.token_hex(6), "label": label}
    common |= {"busy": busy, "busy_share": round(share, 4), "clock": timed[0].clock.name} | info
    if info["tier"] == "cuda":  # now: under load, not at rest
        common["gpu"] = gpu_state(str(device))
    return Results([v.record(common | _own(meta or {}, v.name), step_ids or {}) for v in timed])


def _bar(total: int, label: str, progress: bool) -> Any:
    return tqdm(
        total=total,
        desc=label or "measure",
        unit="sample",
        leave=False,
        delay=2.0,
        mininterval=0.5,
        file=sys.stdout,
        disable=not progress,
    )


def _own(meta: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {k: v[name] if isinstance(v, Mapping) else v for k, v in meta.items()}


def _unsure(base: _Variant) -> bool:
    pair = ratio_of(base.samples, base.again) if base.again else None
    return pair is not None and abs(pair.median - 1) > UNSURE


def _settled(timed: list[_Variant]) -> bool:
    """Whether the noise floor is small, and the quartiles of every other variant within it."""
    base = timed[0]
    floor = floor_between([ratio_of(base.samples, base.again)])
    pairs = [ratio_of(base.samples, v.samples) for v in timed[1:]]
    return floor <= SETTLED and all(p.high - p.low <= 2 * floor * p.median for p in pairs)


def _enough(timed: list[_Variant], rounds: int, watch: BusyWatch) -> bool:
    """Whether the rounds may end here."""
    done = len(timed[0].samples)
    if not _manner.lesson or not timed[0].again:
        return done >= rounds
    if watch.share > BUSY_SHARE:
        return done >= LESSON_ROUNDS
    if _unsure(timed[0]):  # the whole run is repeated
        return done >= rounds
    return done >= LONGEST * rounds or (done >= math.ceil(2 * rounds / 3) and _settled(timed))


def _sampled(timed: list[_Variant], rounds: int, bar: Any) -> float:
    """Every variant once a round, the first of them another one each time, and no garbage collector
    in between. Returns the share of the machine that others used."""
    watch = BusyWatch()
    turns: list[tuple[_Variant, list[float]]] = []
    for v in timed:
        v.samples, v.again = [], []
        turns.append((v, v.samples))
    if len(timed) > 1:
        turns.append((timed[0], timed[0].again))
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for i in range(LONGEST * rounds):
            for k in range(len(turns)):
                v, samples = turns[(i + k) % len(turns)]
                samples.append(v.sample())
                bar.update()
            watch.look()
            if _enough(timed, rounds, watch):
                break
    finally:
        if collecting:
            gc.enable()
    return watch.share

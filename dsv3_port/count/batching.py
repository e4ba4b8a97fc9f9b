"""Decode steps that the same requests need in batches and in slots, counted from their lengths: no
model, no clock.

A request of n new tokens has its first one from its prefill and takes part in n - 1 decode steps,
each of which costs the same whatever its rows hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PortError


@dataclass(frozen=True)
class Batching:
    """occupancy[s]: rows of `slots` that a request has in step s; in the others a step computes for
    nothing."""

    slots: int
    occupancy: tuple[int, ...]

    @property
    def steps(self) -> int:
        return len(self.occupancy)

    @property
    def share(self) -> float:
        """Of all rows of all steps, those that a request had; 1 where there was no step."""
        return sum(self.occupancy) / (self.slots * self.steps) if self.steps else 1.0


def in_batches(tokens: Sequence[int], slots: int) -> Batching:
    """Static batching: `slots` requests at a time, in order; the next ones begin when all have
    ended. tokens: how many new ones each request comes to."""
    _check(tokens, slots)
    occupancy: list[int] = []
    for at in range(0, len(tokens), slots):
        steps = [n - 1 for n in tokens[at : at + slots]]
        occupancy += [sum(n > s for n in steps) for s in range(max(steps))]
    return Batching(slots, tuple(occupancy))


def in_slots(tokens: Sequence[int], slots: int) -> Batching:
    """Continuous batching with blocks for all: the next request takes a slot as soon as one is done,
    as engine/continuous.py does."""
    _check(tokens, slots)
    waiting = deque(n - 1 for n in tokens)
    running: list[int] = []  # steps that each has left
    occupancy: list[int] = []
    while waiting or running:
        while waiting and len(running) < slots:
            steps = waiting.popleft()
            running += [steps] if steps else []
        if running:
            occupancy.append(len(running))
            running = [n - 1 for n in running if n > 1]
    return Batching(slots, tuple(occupancy))


def _check(tokens: Sequence[int], slots: int) -> None:
    if slots < 1 or any(n < 1 for n in tokens):
        raise PortError(
            f"batching: {slots} slots and requests of {min(tokens, default=1)} tokens and more; one of "
            "each at least is needed"
        )

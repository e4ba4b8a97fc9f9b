"""A decode step over 1, 2, ... ranks, timed side by side in one set of processes."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..check.equivalence import PROMPTS, Rows, difference, padding, random_ids, run
from ..check.rank_calls import own_device, stored_bytes
from ..count.traffic import Collective, CountedParallel
from ..engine.device import synchronize
from ..engine.launch import run_ranks
from ..engine.loading import load_model
from ..errors import PortError
from ..parallel import TensorParallel, parts_side_by_side
from ..plan import PortPlan
from ..steps import TOLERANCE
from ..weights.load import Cut
from .machine import BUSY_SHARE, BusyWatch, device_info
from .paired import UNSURE, ratio_of
from .records import YOURS, Record, Results
from .workload import Workload

PHASE = "decode over ranks"
# steps of which a sample is the median: the scheduler, with several processes, disturbs single ones
_REPEATS = 5


@dataclass
class WorldSamples:
    """One world size on one rank; a value for each round."""

    world_size: int = 1
    steps: list[float] = field(default_factory=list)  # seconds of a step
    again: list[float] = field(default_factory=list)  # of the smallest world, a second time
    inside: list[float] = field(
        default_factory=list
    )  # of it within collectives, waiting for slower ranks included
    alone: list[float] = field(
        default_factory=list
    )  # the same collectives with nothing between them
    first: float = 0.0
    collectives: list[Collective] = field(default_factory=list)  # of one step
    parameter_bytes: int = 0
    cache_bytes: int = 0
    difference: float = 0.0  # of the logits from those of the smallest world

    def record(self, name: str, same: Mapping[str, Any]) -> Record:
        """With what all worlds of the run have in common."""
        first = self.first
        return Record(
            name=name, samples=self.steps, again=self.again, first_call_seconds=first, **same
        )

    @property
    def share(self) -> float:
        """Collectives' part of the step, the median over rounds."""
        return statistics.median(c / s for c, s in zip(self.inside, self.steps, strict=True))


@dataclass(frozen=True)
class WorldTimes:
    results: Results  # rank 0's records "1 rank", "2 ranks", ..., "yours"
    worlds: dict[str, WorldSamples]  # by the records' names


Arrange = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class _Plan:
    """One world: how many ranks, of which folder, and functions in place of the finished ones."""

    world_size: int
    folder: str
    cut: Cut | None = None
    arrange: Arrange | None = None


def world_name(world_size: int) -> str:
    return "1 rank" if world_size == 1 else f"{world_size} ranks"


def time_worlds(
    folders: Mapping[int, str | Path],
    plan: PortPlan | None = None,
    *,
    batch: int = 1,
    context: int = 1024,
    rounds: int = 5,
    device: str = "cpu",
    seed: int = 0,
    label: str = "",
    profile: str = "",
    cut: Cut | None = None,
    arrange: Arrange | None = None,
) -> WorldTimes:
    """Time one decode step at `context` cached tokens for each world size; folders: world size ->
    its checkpoint. cut, arrange: functions that other processes can run (course/written.py: Sent); with
    one the largest world is timed once more as "yours". The smallest one is timed twice, for the noise
    floor.

    Nothing is timed where the logits of the worlds differ by more than float32's tolerance
    (PortError). All run in one set of processes, interleaved round by round: in the turn of a
    smaller world the other ranks wait. On a CPU every turn has the whole machine, so that each of W
    ranks computes with cores // W threads.
    """
    if not folders or min(folders) < 1 or rounds < 1:
        raise PortError(
            "time_worlds: give world size -> folder, with world sizes and rounds of 1 or more"
        )
    plan = plan or PortPlan.full()
    plans = {world_name(w): _Plan(w, str(f)) for w, f in sorted(folders.items())}
    if cut is not None or arrange is not None:
        most = max(folders)
        plans[YOURS] = _Plan(most, str(folders[most]), cut, arrange)
    busy = BusyWatch().share  # before there are ranks: afterwards they are the others
    worlds = run_ranks(
        _time_rank, max(folders), plans, plan, batch, context, rounds, device, seed, device=device
    )[0]
    base = next(iter(worlds.values()))
    unsure = abs(ratio_of(base.steps, base.again).median - 1) > UNSURE
    same = {
        "run": secrets.token_hex(6),
        "phase": PHASE,
        "batch": batch,
        "context": context,
        "step_ids": plan.step_ids,
        "dtype": "float32",
        "label": label,
        "profile": profile,
        "busy": busy > BUSY_SHARE or unsure,
        "busy_share": round(busy, 4),
        **device_info(device),
    }
    return WorldTimes(Results([s.record(name, same) for name, s in worlds.items()]), worlds)


class _World:
    """This rank's model of one world size."""

    def __init__(
        self,
        world: _Plan,
        plan: PortPlan,
        place: CountedParallel,
        batch: int,
        context: int,
        device: str,
        seed: int,
    ) -> None:
        self.place, self.calls = place, 0
        self.threads = max(1, (os.cpu_count() or 1) // place.world_size)
        self.model = load_model(world.folder, plan, device, "float32", place, cut=world.cut)
        self.device = self.model.device
        self.work = Workload({"": self.model}, "decode", batch=batch, size=context, seed=seed)
        cache = self.work.caches[""]
        self.found = WorldSamples(
            world_size=place.world_size,
            parameter_bytes=stored_bytes(self.model),
            cache_bytes=cache.nbytes,
        )

    def answer(self) -> list[Rows]:
        """Logits after a few prompts and cached steps, the same prompts in every world."""
        batches = [random_ids(self.model, (2, 20), n) for n in range(PROMPTS)]
        return [run(self.model, ids, mask=padding(ids)) for ids in batches]

    def step(self) -> float:
        """Seconds of one cached step with a fresh token; its collectives are in the log."""
        self.work.prepare("", self.calls)
        self.calls += 1
        self.together()
        start = time.perf_counter()
        self.work.call("")
        synchronize(self.device)
        return time.perf_counter() - start

    def together(self) -> None:
        """All ranks of this world come to this point, and the log starts anew."""
        self.place.all_reduce(torch.zeros(1, device=self.device))
        self.place.log.clear()
        synchronize(self.device)

    def first(self) -> None:
        torch.set_num_threads(self.threads)
        self.found.first = self.step()
        self.step()

    def median(self) -> tuple[float, float]:
        """Seconds of the median step of a few, and of it within collectives."""
        torch.set_num_threads(self.threads)
        found = sorted(
            (self.step(), sum(c.seconds for c in self.place.log)) for _ in range(_REPEATS)
        )
        return found[_REPEATS // 2]

    def sample_again(self) -> None:
        self.found.again.append(self.median()[0])

    def sample(self) -> None:
        """One value for each list."""
        step, inside = self.median()
        self.found.steps.append(step)
        self.found.inside.append(inside)
        self.found.collectives = list(self.place.log)
        self.together()
        for c in self.found.collectives:
            payload = torch.zeros(1, c.nbytes // 4, device=self.device)
            (self.place.all_reduce if c.kind == "all_reduce" else self.place.all_gather_last)(
                payload
            )
        self.found.alone.append(sum(c.seconds for c in self.place.log))


def _time_rank(
    parallel: TensorParallel,
    plans: dict[str, _Plan],
    plan: PortPlan,
    batch: int,
    context: int,
    rounds: int,
    device: str,
    seed: int,
) -> dict[str, WorldSamples]:
    where = own_device(parallel, device)
    worlds: dict[str, _World] = {}
    for name, one in plans.items():
        size = one.world_size
        group = dist.new_group(list(range(size)))  # made by every rank, members or not
        if parallel.rank < size:
            arrange = one.arrange or parts_side_by_side
            place = CountedParallel(parallel.rank, size, None if size == 1 else group, arrange)
            worlds[name] = _World(one, plan, place, batch, context, where, seed)
    _check(worlds)
    _take_turns(parallel, worlds, list(plans), rounds)
    return {name: world.found for name, world in worlds.items()}


def _take_turns(
    parallel: TensorParallel, worlds: dict[str, _World], names: list[str], rounds: int
) -> None:
    """Round by round, each time from another one on; the first world comes twice. The turn before the
    first is the warm-up."""
    order = [*names, ""]
    for turn in range(-1, rounds):
        for k in range(len(order)):
            name = order[(turn + k) % len(order)]
            dist.barrier(parallel.group)
            world = worlds.get(name or names[0])
            if world is None or (turn < 0 and not name):
                continue
            (world.first if turn < 0 else world.sample if name else world.sample_again)()


def _check(worlds: dict[str, _World]) -> None:
    """The gate: every world's logits against those of the smallest one here, as check/equivalence.py
    does."""
    answers = {name: world.answer() for name, world in worlds.items()}
    reference = next(iter(answers.values()))
    for name, rows in answers.items():
        found = worlds[name].found
        found.difference = min(difference(a, b) for a, b in zip(reference, rows, strict=True))
        if found.difference > TOLERANCE["float32"]:
            raise PortError(
                f"{name}: the logits or the chosen experts differ ({found.difference:.1e}) from "
                f"those of {next(iter(answers))}; nothing was timed. Are the folders of one checkpoint?"
            )

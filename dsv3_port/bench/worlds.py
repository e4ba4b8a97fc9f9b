"""A decode step over 1, 2, ... ranks, timed side by side in one set of processes."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from ..check.equivalence import PROMPTS, Rows, difference, padding, random_ids, run
from ..check.rank_calls import own_device, stored_bytes
from ..count.traffic import Collective, CountedParallel
from ..engine.device import synchronize
from ..engine.launch import run_ranks
from ..engine.loading import load_model
from ..errors import PortError
from ..parallel import TensorParallel
from ..plan import PortPlan
from ..steps import TOLERANCE
from .machine import BUSY_SHARE, BusyWatch, device_info
from .records import Record, Results
from .workload import Workload

PHASE = "decode over ranks"
# steps of which a sample is the median: the scheduler, with several processes, disturbs single ones
_REPEATS = 5


@dataclass
class WorldSamples:
    """One world size on one rank; a value for each round."""

    steps: list[float] = field(default_factory=list)  # seconds of a step
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

    @property
    def share(self) -> float:
        """Collectives' part of the step, the median over rounds."""
        return statistics.median(c / s for c, s in zip(self.inside, self.steps, strict=True))


@dataclass(frozen=True)
class WorldTimes:
    results: Results  # rank 0's records "1 rank", "2 ranks", ...
    worlds: dict[int, WorldSamples]


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
) -> WorldTimes:
    """Time one decode step at `context` cached tokens for each world size; folders: world size ->
    its checkpoint.

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
    texts = {w: str(f) for w, f in sorted(folders.items())}
    busy = BusyWatch().share  # before there are ranks: afterwards they are the others
    worlds = run_ranks(
        _time_rank, max(texts), texts, plan, batch, context, rounds, device, seed, device=device
    )[0]
    info, together = device_info(device), secrets.token_hex(6)
    return WorldTimes(
        Results(
            [
                Record(
                    name=world_name(w),
                    samples=s.steps,
                    run=together,
                    phase=PHASE,
                    batch=batch,
                    context=context,
                    step_ids=plan.step_ids,
                    dtype="float32",
                    label=label,
                    profile=profile,
                    first_call_seconds=s.first,
                    busy=busy > BUSY_SHARE,
                    busy_share=round(busy, 4),
                    **info,
                )
                for w, s in worlds.items()
            ]
        ),
        worlds,
    )


class _World:
    """This rank's model of one world size."""

    def __init__(
        self,
        path: str,
        plan: PortPlan,
        place: CountedParallel,
        batch: int,
        context: int,
        device: str,
        seed: int,
    ) -> None:
        self.place, self.calls = place, 0
        self.threads = max(1, (os.cpu_count() or 1) // place.world_size)
        self.model = load_model(path, plan, device, "float32", place)
        self.device = self.model.device
        self.work = Workload({"": self.model}, "decode", batch=batch, size=context, seed=seed)
        cache = self.work.caches[""]
        self.found = WorldSamples(
            parameter_bytes=stored_bytes(self.model), cache_bytes=cache.nbytes
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

    def sample(self) -> None:
        """One value for each list: that of the median step of a few."""
        torch.set_num_threads(self.threads)
        found = sorted(
            (self.step(), sum(c.seconds for c in self.place.log)) for _ in range(_REPEATS)
        )
        step, inside = found[_REPEATS // 2]
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
    folders: dict[int, str],
    plan: PortPlan,
    batch: int,
    context: int,
    rounds: int,
    device: str,
    seed: int,
) -> dict[int, WorldSamples]:
    where = own_device(parallel, device)
    worlds: dict[int, _World] = {}
    for size, path in folders.items():
        group = dist.new_group(list(range(size)))  # made by every rank, members or not
        if parallel.rank < size:
            place = CountedParallel(parallel.rank, size, None if size == 1 else group)
            worlds[size] = _World(path, plan, place, batch, context, where, seed)
    _check(worlds)
    order = list(folders)
    for turn in range(-1, rounds):  # the turn before the first is the warm-up
        for k in range(len(order)):
            size = order[(turn + k) % len(order)]
            dist.barrier(parallel.group)
            if size in worlds:
                worlds[size].first() if turn < 0 else worlds[size].sample()
    return {size: world.found for size, world in worlds.items()}


def _check(worlds: dict[int, _World]) -> None:
    """The gate: every world's logits against those of the smallest one here, as check/equivalence.py
    does."""
    answers = {size: world.answer() for size, world in worlds.items()}
    reference = next(iter(answers.values()))
    for size, rows in answers.items():
        found = worlds[size].found
        found.difference = min(difference(a, b) for a, b in zip(reference, rows, strict=True))
        if found.difference > TOLERANCE["float32"]:
            raise PortError(
                f"{world_name(size)}: the logits or the chosen experts differ ({found.difference:.1e}) from "
                f"those of {world_name(next(iter(answers)))}; nothing was timed. Are the folders of one checkpoint?"
            )

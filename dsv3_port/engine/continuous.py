"""Continuous batching: B slots, each one request's for as long as it runs. A slot that is done takes
the next request at once, and nobody waits for the longest of a batch (Orca, OSDI 2022).

The decode step has the same shapes and the same addresses whatever runs: token ids, positions, the
block table and padding lie in memory that stays, and what a request changes is written there. So one
graph serves all, captured before the first request. A prompt is prefilled eagerly, into its row's
blocks, between two steps.

This is a library loop, for learning: no server, no preemption, no prefix cache. vLLM with
vllm-ascend is that (https://docs.vllm.ai/projects/ascend).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..model.row_cache import RowCache
from .graph import eagerly, graphs_made
from .nonfinite import first_nonfinite
from .sampler import Sampler, Sampling

# keys of every row in each step of the warm-up: npugraph_ex takes them for constants until it sees
# them change, and has symbols for them from then on
WARM_UPS = (0, 1, 2)

# (of each row, whether it has a request; blocks that each waiting request may need, in order of
# arrival; blocks that are neither held nor promised) -> (row, which of the waiting) pairs
Admission = Callable[[list[bool], list[int], int], Sequence[tuple[int, int]]]


def in_order(running: list[bool], waiting: list[int], blocks: int) -> list[tuple[int, int]]:
    """The requests that begin before the next step, each in an idle row: those that came first, as long
    as there are rows and blocks. One that waits for blocks keeps those behind it waiting too: none
    is overtaken for ever."""
    idle = (row for row, runs in enumerate(running) if not runs)
    taken = []
    for k, (row, need) in enumerate(zip(idle, waiting, strict=False)):
        if need > blocks:
            break
        blocks -= need
        taken.append((row, k))
    return taken


def when_all_idle(running: list[bool], waiting: list[int], blocks: int) -> list[tuple[int, int]]:
    """Static batching as a rule of the same loop: nobody begins before the whole batch has ended."""
    return [] if any(running) else in_order(running, waiting, blocks)


@dataclass(frozen=True)
class Request:
    """One prompt. `seed`: of its own draws, so that they do not depend on what else runs."""

    ids: tuple[int, ...]
    max_new_tokens: int
    seed: int = 0

    @property
    def positions(self) -> int:
        """That it may fill: its last token is not run."""
        return len(self.ids) + self.max_new_tokens - 1


@dataclass
class Result:
    """What a request became. admitted, ended: the number of decode steps before; row: that it had."""

    number: int  # of the request, from 0 in order of arrival
    admitted: int
    token_ids: list[int] = field(default_factory=list)
    ended_by: Literal["", "eos", "length"] = ""
    ended: int = 0
    row: int = 0


class ContinuousBatch:
    """`slots` rows of one model over a paged cache, each of at most `positions`; Paging.blocks of
    model.paging bounds all of them together.

    stop: ids that end a text. prefill_chunk: positions of a prompt computed at once, 0: all.
    `admission` says who begins where; the model's own, else `in_order`.
    `occupancy` has the number of running rows of every step so far.
    """

    def __init__(
        self,
        model: DeepseekV3,
        slots: int,
        positions: int,
        stop: Collection[int] = (),
        sampling: Sampling | None = None,
        prefill_chunk: int = 0,
    ) -> None:
        if model.plan.cache != "paged":
            raise PortError(
                f"slots need a paged cache, and this plan's is {model.plan.cache!r}: take the step "
                "'paged_cache'"
            )
        if slots < 1:
            raise PortError(f"{slots} slots: one at least is needed")
        cache = model.new_cache(slots, positions, RowCache)
        assert isinstance(cache, RowCache)
        self.model, self.cache, self.slots = model, cache, slots
        self.admission: Admission = model.admission or in_order
        self.stop, self.prefill_chunk = frozenset(stop), prefill_chunk
        self.ids = torch.zeros(slots, 1, dtype=torch.int64, device=model.device)
        self.running: dict[int, tuple[Request, Result]] = {}  # by row
        self.sample = Sampler(sampling or Sampling(), [0] * slots, self._explain)
        self.occupancy: list[int] = []
        self.most_blocks = 0  # that were in use at once
        self.others = graphs_made(model, cache)  # graphs that are not of this batch

    @property
    def captures(self) -> int:
        """Graphs that were made for this batch."""
        return graphs_made(self.model, self.cache) - self.others

    def warm_up(self) -> None:
        """Steps of idle rows, which read zeros: what is to be compiled or captured is, before there is a
        request."""
        for keys in WARM_UPS:
            self.cache.idle_length = keys
            self.model(self.ids, cache=self.cache)
        self.cache.idle_length = 0

    def require(self, request: Request) -> None:
        """PortError where a request can never run, whatever else does."""
        blocks = self.cache.blocks_of(request.positions)
        if not request.ids or request.max_new_tokens < 1:
            raise PortError(
                f"{len(request.ids)} prompt tokens and {request.max_new_tokens} new ones: one of each at "
                "least is needed"
            )
        if request.positions > self.cache.max_length or blocks > self.cache.blocks:
            room = min(self.cache.max_length, self.cache.blocks * self.cache.block_size)
            raise PortError(
                f"a prompt of {len(request.ids)} tokens with {request.max_new_tokens} new ones fills "
                f"{request.positions} positions ({blocks} blocks of {self.cache.block_size}), and a slot "
                f"has {room} ({self.cache.blocks} blocks are all): it would wait for ever"
            )

    def chosen(self, waiting: list[int]) -> list[tuple[int, int]]:
        """(row, which of the waiting) pairs that begin now, by `admission`. waiting: the blocks that each
        request may need. PortError for a row or a request that is not there, or is named twice."""
        if len(self.running) == self.slots:
            return []
        named = self.admission(list(self.cache.running), list(waiting), self.cache.available)
        pairs = [(int(row), int(k)) for row, k in named]
        seen: set[int] = set()
        for row, k in pairs:
            if not (0 <= row < self.slots and 0 <= k < len(waiting)) or k in seen:
                raise PortError(
                    f"admission: request {k} of the {len(waiting)} that wait was given row {row} of "
                    f"{self.slots}: there is no such row or request, or it has a row already"
                )
            seen.add(k)
        return pairs

    def admit(self, number: int, request: Request, row: int) -> Result:
        """Prefill a request in an idle row, and choose its first token; no other row is touched. The
        result grows with every step until `ended_by` says something. PortError where the row runs
        another, or where its blocks are not there."""
        self.require(request)
        one = self.cache.begin(row, request.positions)
        result = Result(number, admitted=len(self.occupancy), row=row)
        self.running[row] = request, result
        self.sample.begin(row, request.seed)
        prompt = torch.tensor([request.ids], device=self.model.device)
        with eagerly(self.model):
            logits = self.model.prefill(prompt, None, one, self.prefill_chunk)
        token, chosen = self.sample.drawn(logits[:, -1], row)
        self.ids[row].copy_(token[0])
        self._took({row: chosen[0]})
        return result

    def step(self) -> list[Result]:
        """One token for every running row; those that are done."""
        rows = set(self.running)
        logits = self.model(self.ids, cache=self.cache)[:, -1]
        self.occupancy.append(len(rows))
        token, chosen = self.sample.drawn(logits, idle=set(range(self.slots)) - rows)
        self.ids.copy_(token.unsqueeze(1))
        return self._took({row: chosen[row] for row in sorted(rows)})

    def _took(self, chosen: dict[int, int]) -> list[Result]:
        """Row → its new token; rows that are done give their blocks back and are idle."""
        self._require_rank_0s(chosen)
        self.most_blocks = max(self.most_blocks, self.cache.in_use)
        done = []
        for row, token in chosen.items():
            request, result = self.running[row]
            result.token_ids.append(token)
            if token in self.stop:
                result.ended_by = "eos"
            elif len(result.token_ids) == request.max_new_tokens:
                result.ended_by = "length"
            if result.ended_by:
                result.ended = len(self.occupancy)
                del self.running[row]
                self.cache.end(row)
                done.append(result)
        return done

    def _require_rank_0s(self, chosen: dict[int, int]) -> None:
        """Rank 0 schedules: what is admitted and what ends follows from its tokens. A rank that chose
        others would run other rows, and every collective after that would wait for ever."""
        parallel = self.model.parallel
        if parallel.world_size == 1:
            return
        mine = torch.tensor(list(chosen.values()), device=self.model.device)
        its = parallel.all_reduce(mine * (parallel.rank == 0)).tolist()
        for (row, token), other in zip(chosen.items(), its, strict=True):
            if token != other:
                raise PortError(
                    f"rank {parallel.rank} chose token {token} for request {self.running[row][1].number}, "
                    f"rank 0 chose {other}: do all have the same files and settings?"
                )

    def _explain(self, row: int) -> str:
        request, result = self.running[row]
        says = first_nonfinite(self.model, [*request.ids, *result.token_ids])
        return f"request {result.number}: {says}"


def run_requests(
    batch: ContinuousBatch,
    requests: Sequence[Request],
    on_step: Callable[[list[Result]], None] | None = None,
) -> list[Result]:
    """Every request to its end, admitted by the batch's rule as slots and blocks become free; their
    results in the order of the requests. The rule is asked before each step until it gives nobody: one
    that ends with its first token leaves its row at once. PortError, before anything runs, where a
    request can never run, and where all rows are idle and the rule lets nobody begin.
    on_step(results): after each step, with those that ended since the last."""
    for request in requests:
        batch.require(request)
    needs = [batch.cache.blocks_of(request.positions) for request in requests]
    waiting, results = list(range(len(requests))), dict[int, Result]()
    while waiting or batch.running:
        done: list[Result] = []
        while waiting and (pairs := batch.chosen([needs[n] for n in waiting])):
            for row, k in pairs:
                number = waiting[k]
                results[number] = batch.admit(number, requests[number], row)
                done += [results[number]] if results[number].ended_by else []
            waiting = [n for n in waiting if n not in results]
        if waiting and not batch.running:
            raise PortError(
                f"admission: all rows are idle, {len(waiting)} requests wait, and none of them was let in: "
                "they would wait for ever"
            )
        done += batch.step() if batch.running else []
        if on_step is not None:
            on_step(done)
    return [results[number] for number in sorted(results)]

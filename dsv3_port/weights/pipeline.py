"""The workers that stream a checkpoint, and the commits that make what they wrote safe.

Sources go through a pool of threads in the order of the files. A further thread flushes what is
written and then notes it in the journals, while the next tensors are on their way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress

import torch
from tqdm import tqdm

from .checkpoint import Checkpoint
from .rank_files import Block
from .ranks import RankJob
from .stream import Reader, split_source


@contextmanager
def _one_thread() -> Iterator[None]:
    """The workers are the parallelism: each computes with one thread of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stream(
    checkpoint: Checkpoint,
    order: list[str],
    table: dict[str, list[Block]],
    todo: list[RankJob],
    jobs: int,
    progress: bool,
    commit_bytes: int,
) -> tuple[int, int]:
    """Every source tensor through the workers; returns (bytes read, tensors that an earlier run had
    written)."""
    missing = {name: [r for r in todo if not r.journal.done[i]] for i, name in enumerate(order)}
    open_names = [name for name in order if missing[name]]
    sizes = {name: checkpoint.place(name)[2] for name in open_names}
    reader, stop = Reader(checkpoint), threading.Event()
    with (
        _one_thread(),
        ThreadPoolExecutor(jobs, "shard") as pool,
        _Commits(commit_bytes) as commits,
        tqdm(
            total=sum(sizes.values()),
            desc="shard",
            unit="B",
            unit_scale=True,
            mininterval=0.5,
            disable=None if progress else True,
        ) as bar,
    ):
        running: dict[Future[dict[int, bytes]], str] = {}
        try:
            for name in open_names:
                if len(running) >= 2 * jobs:
                    _collect(running, missing, sizes, table, commits, bar)
                writers = {r.rank: r.writer for r in missing[name]}
                running[pool.submit(split_source, reader, name, table[name], writers, stop)] = name
            while running:
                _collect(running, missing, sizes, table, commits, bar)
        except BaseException:
            stop.set()
            for future in running:
                future.cancel()
            raise
        finally:
            wait(running)
            reader.close()
            for (
                future,
                name,
            ) in running.items():  # where the job ends early: what was whole by then counts
                if not future.cancelled() and future.exception() is None:
                    _add(name, future.result(), missing, table, commits)
    return sum(sizes.values()), len(order) - len(open_names)


def _collect(
    running: dict[Future[dict[int, bytes]], str],
    missing: dict[str, list[RankJob]],
    sizes: dict[str, int],
    table: dict[str, list[Block]],
    commits: _Commits,
    bar: tqdm,
) -> None:
    ready, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in sorted(
        ready, key=lambda f: f.exception() is not None
    ):  # what is whole first, then the error
        name = running.pop(future)
        _add(name, future.result(), missing, table, commits)
        bar.update(sizes[name])


def _add(
    name: str,
    digests: dict[int, bytes],
    missing: dict[str, list[RankJob]],
    table: dict[str, list[Block]],
    commits: _Commits,
) -> None:
    commits.add(
        name,
        {r: digests[r.rank] for r in missing[name]},
        sum(b.nbytes for b in table[name]) * len(digests),
    )


class _Commits:
    """Groups what is written; a thread of its own flushes a group to the disk while the next one is
    being made."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._held: dict[RankJob, list[tuple[str, bytes]]] = {}
        self._pool = ThreadPoolExecutor(1, "commit")
        self._running: Future[None] | None = None

    def __enter__(self) -> _Commits:
        return self

    def add(self, source: str, digests: dict[RankJob, bytes], nbytes: int) -> None:
        for rank, digest in digests.items():
            self._held.setdefault(rank, []).append((source, digest))
        self._bytes += nbytes
        if self._bytes >= self._limit:
            self._start()

    def _start(self) -> None:
        self._settle()
        held, self._held, self._bytes = self._held, {}, 0
        self._running = self._pool.submit(_commit, held)

    def _settle(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """What is whole is kept even where the job ends early; then a further error must not hide
        the first."""
        with suppress(*(() if kind is None else (OSError,))):
            self._start()
            self._settle()
        self._pool.shutdown()


def _commit(held: dict[RankJob, list[tuple[str, bytes]]]) -> None:
    for rank, written in held.items():
        rank.writer.sync()
        rank.journal.record(written)

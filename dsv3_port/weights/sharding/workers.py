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

from .contents import Contents
from .plan import Source
from .ranks import RankJob
from .source import Reader, Written, split_source


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
    sources: list[Source],
    todo: list[RankJob],
    jobs: int,
    progress: bool,
    commit_bytes: int,
    contents: Contents,
) -> tuple[int, int]:
    """Every source tensor through the workers; returns (bytes read, tensors that an earlier run had
    written). One that is written and whose hash is not known is read once more for that alone."""
    missing = {s.name: [r for r in todo if not r.journal.done[i]] for i, s in enumerate(sources)}
    unread = [s for s in sources if missing[s.name]]
    read = sum(s.nbytes for s in unread)
    unread = [s for s in sources if missing[s.name] or s.name not in contents.known]
    reader, stop = Reader(), threading.Event()
    with (
        _one_thread(),
        ThreadPoolExecutor(jobs, "shard") as pool,
        _Commits(commit_bytes) as commits,
        tqdm(
            total=sum(s.nbytes for s in unread),
            desc="shard",
            unit="B",
            unit_scale=True,
            mininterval=0.5,
            disable=None if progress else True,
        ) as bar,
    ):
        running: dict[Future[Written], Source] = {}
        try:
            for source in unread:
                if len(running) >= 2 * jobs:
                    _collect(running, missing, commits, bar)
                writers = {r.rank: r.writer for r in missing[source.name]}
                work = pool.submit(split_source, reader, source, writers, stop, contents)
                running[work] = source
            while running:
                _collect(running, missing, commits, bar)
        except BaseException:
            stop.set()
            for future in running:
                future.cancel()
            raise
        finally:
            wait(running)
            # where the job ends early: what was whole by then counts
            for future, source in running.items():
                if not future.cancelled() and future.exception() is None:
                    _add(source, future.result(), missing, commits)
    return read, sum(not m for m in missing.values())


def _collect(
    running: dict[Future[Written], Source],
    missing: dict[str, list[RankJob]],
    commits: _Commits,
    bar: tqdm,
) -> None:
    ready, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in sorted(
        ready, key=lambda f: f.exception() is not None
    ):  # what is whole first, then the error
        source = running.pop(future)
        _add(source, future.result(), missing, commits)
        bar.update(source.nbytes)


def _add(
    source: Source,
    written: Written,
    missing: dict[str, list[RankJob]],
    commits: _Commits,
) -> None:
    commits.add(
        source.name,
        written.content,
        {r: written.digests[r.rank] for r in missing[source.name]},
        sum(b.nbytes for b in source.blocks) * len(written.digests),
    )


class _Commits:
    """Groups what is written; a thread of its own flushes a group to the disk while the next one is
    being made."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._held: dict[RankJob, list[tuple[str, bytes, str]]] = {}
        self._pool = ThreadPoolExecutor(1, "commit")
        self._running: Future[None] | None = None

    def __enter__(self) -> _Commits:
        return self

    def add(self, source: str, content: str, digests: dict[RankJob, bytes], nbytes: int) -> None:
        for rank, digest in digests.items():
            self._held.setdefault(rank, []).append((source, digest, content))
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


def _commit(held: dict[RankJob, list[tuple[str, bytes, str]]]) -> None:
    for rank, written in held.items():
        rank.writer.sync()
        rank.journal.record(written)

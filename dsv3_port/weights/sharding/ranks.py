"""The ranks that a run of the splitter writes: taken up where an earlier run stopped, and given
their names at the end.

A rank is in one of three states: not begun; `rank-….partial` with a journal in `.shard/`; or
complete under its name, with a manifest. Names change by rename, so that a kill leaves one of the
three.
"""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...errors import PortError
from ...files import sync_folder, write_json
from ..content import hash_bytes
from .contents import Contents
from .estimate import require_space
from .identity import differences
from .journal import Journal, lock_rank
from .manifest import MANIFEST, WORK, earlier_contents, rank_folder, read_rank_manifest
from .plan import CODES, INDEX, FilePlan, RankPlan, Source


class RankWriter:
    """The open files of one rank, at their full size from the start (a sparse file takes no room
    before its values)."""

    def __init__(self, folder: Path, files: list[FilePlan], mode: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._fds: list[int] = []
        self._guard, self._unsynced = threading.Lock(), set(range(len(files)))
        try:
            for file in files:
                fd = os.open(folder / file.name, os.O_RDWR | os.O_CREAT, mode)
                self._fds.append(fd)
                if os.fstat(fd).st_size != file.size:
                    os.ftruncate(fd, file.size)
                os.pwrite(fd, file.head, 0)
        except OSError:
            self.close()
            raise

    def write(self, file: int, offset: int, values: memoryview) -> None:
        while len(values):
            done = os.pwrite(self._fds[file], values, offset)
            values, offset = values[done:], offset + done
        with self._guard:
            self._unsynced.add(file)

    def sync(self) -> None:
        """Everything whose write has returned is on the disk afterwards; other threads may go on
        writing."""
        with self._guard:
            files, self._unsynced = self._unsynced, set()
        for file in sorted(files):
            os.fsync(self._fds[file])

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []


class RankJob:
    """One unfinished rank: its open files and its journal."""

    def __init__(
        self,
        rank: int,
        output: Path,
        job: dict[str, Any],
        plan: RankPlan,
        sources: list[Source],
        resume: bool,
    ) -> None:
        name = rank_folder(rank, job["world_size"])
        self.rank, self.job, self.plan = rank, job, plan
        self.mode = modes_of(sources)
        self.final, self.partial = output / name, output / f"{name}.partial"
        self.journal = Journal(output / WORK / f"{name}.jsonl", job, sources, len(plan.blocks))
        self.fresh = not (resume and self.journal.load() and self._files_whole())
        if self.fresh:
            self.journal = Journal(self.journal.path, job, sources, len(plan.blocks))

    def _files_whole(self) -> bool:
        """Whether the files that the journal speaks of are there, at their full size."""
        return all(
            (self.partial / f.name).is_file() and (self.partial / f.name).stat().st_size == f.size
            for f in self.plan.files
        )

    @property
    def bytes_to_write(self) -> int:
        return sum(b.nbytes for b in self.plan.blocks if not any(self.journal.digest(b.number)))

    def open(self) -> None:
        if self.fresh:
            self.journal.path.unlink(
                missing_ok=True
            )  # first what says that values are there, then the values
            shutil.rmtree(self.partial, ignore_errors=True)
        self.writer = RankWriter(self.partial, self.plan.files, self.mode)
        self.journal.open()

    def close(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()
        self.journal.close()

    def finish(self, content: str) -> None:
        """Index, manifest, and the name that says the rank is complete. content: the hash of all
        that was read."""
        left = self.journal.done.count(0)
        if left:
            raise AssertionError(f"{self.final}: {left} source tensors are not written")
        self.writer.sync()
        self.close()
        tensors = {
            t.name: {
                "shape": list(t.shape),
                "dtype": CODES[t.dtype(self.plan.dtype)],
                "xxh3": tensor_hash([self.journal.digest(b.number) for b in blocks]),
            }
            for t, blocks in self.plan.by_target()
        }
        write_json(self.partial / INDEX, self.plan.index())
        sizes = {f.name: f.size for f in self.plan.files}
        for name, values in self.plan.beside.items():
            sizes[name] = len(write_json(self.partial / name, values))
        write_json(
            self.partial / MANIFEST,
            {
                **self.job,
                "content": content,
                "rank": self.rank,
                "tensors": tensors,
                "files": sizes,
            },
        )
        os.replace(self.partial, self.final)
        sync_folder(self.final.parent)
        self.journal.path.unlink(missing_ok=True)


def modes_of(sources: list[Source]) -> int:
    """Who may read what is written: nobody whom a file of the source keeps out."""
    mode = 0o666
    for file in dict.fromkeys(s.file for s in sources):
        mode &= file.stat().st_mode
    return mode | 0o600


def tensor_hash(digests: list[bytes]) -> str:
    """XXH3 of a tensor's bytes where one published tensor fills it; of its blocks' hashes, in order,
    where several do: blocks arrive in any order, and each is hashed as it is written."""
    return digests[0].hex() if len(digests) == 1 else hash_bytes(b"".join(digests))


def open_ranks(
    stack: ExitStack,
    output: Path,
    chosen: list[int],
    job: dict[str, Any],
    plan: RankPlan,
    sources: list[Source],
    resume: bool,
    contents: Contents,
) -> list[RankJob]:
    """Lock the ranks, refuse what belongs to another job, and open those that are not complete."""
    _refuse_other_worlds(output, job["world_size"])
    found: list[RankJob] = []
    for rank in chosen:
        final = output / rank_folder(rank, job["world_size"])
        if final.exists():
            _refuse_other_job(final, job, resume)
    for rank in chosen:
        name = rank_folder(rank, job["world_size"])
        if not (output / name).exists():
            lock = lock_rank(output / WORK, rank, name)
            stack.callback(lock.release)
        if not (
            output / name
        ).exists():  # it may have been finished while this run waited for the lock
            found.append(RankJob(rank, output, job, plan, sources, resume))
        else:
            (output / WORK / f"{name}.jsonl").unlink(
                missing_ok=True
            )  # killed between the rename and this
    contents.expect(earlier_contents(output, job))
    for rank_job in found:
        contents.expect(rank_job.journal.contents, rank_job.journal.fresh)
    contents.recall()
    require_space(output, sum(r.bytes_to_write for r in found))
    allow_open_files(len(found) * (len(plan.files) + 1))
    for rank_job in found:
        stack.callback(rank_job.close)
        rank_job.open()
    return found


def allow_open_files(count: int) -> None:
    """All ranks' files are open at once; raise the limit as far as this user may."""
    import resource

    need = count + 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and need > soft:
        if hard != resource.RLIM_INFINITY and need > hard:
            raise PortError(
                f"{count} files are written at once and this user may open {hard}; raise `ulimit -n`, or "
                "write fewer ranks in one run with --ranks"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def _refuse_other_worlds(output: Path, world_size: int) -> None:
    for folder in sorted(output.glob("rank-*-of-*")):
        if not folder.name.removesuffix(".partial").endswith(f"-of-{world_size:05d}"):
            raise PortError(
                f"{output}: holds {folder.name}, written for another world size; give an empty folder"
            )


def _refuse_other_job(final: Path, job: dict[str, Any], resume: bool) -> None:
    if not resume:
        raise PortError(
            f"{final}: is already there; remove it, or leave out --no-resume to keep it"
        )
    manifest = read_rank_manifest(final)
    other = differences(manifest, job)
    if other:
        raise PortError(f"{final}: is already there and differs in {other}; give an empty folder")
    for name, size in manifest["files"].items():
        if not (final / name).is_file() or (final / name).stat().st_size != size:
            raise PortError(
                f"{final / name}: is damaged (not {size} bytes); remove {final} and split again"
            )

"""Interrupted at any moment: nothing looks complete, the next run goes on, and the bytes are those
of one run."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsv3_port import DeepseekV3Config, PortError, load_model
from dsv3_port.parallel import TensorParallel
from dsv3_port.weights.sharding import rank_folder, ranks, shard_checkpoint
from dsv3_port.weights.sharding import source as stream
from dsv3_port.weights.sharding.journal import lock_rank
from dsv3_port.weights.synthetic import synthetic_checkpoint
from tests import forks

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The files of an uninterrupted split of the embedded model for two ranks."""
    out = tmp_path_factory.mktemp("whole") / "out"
    shard_checkpoint(TINY, out, 2)
    return contents(out)


def words_of(out: Path) -> list[str]:
    """The command that splits the embedded model for two ranks."""
    return ["shard", "--model-path", str(TINY), "--output-path", str(out), "--world-size", "2"]


def not_usable(out: Path) -> None:
    for rank in (0, 1):
        with pytest.raises(
            PortError, match="split was not finished|rank's folder is missing|No such|no such"
        ):
            load_model(out, device="cpu", parallel=TensorParallel(rank, 2))


def entries(out: Path) -> int:
    journals = [out / ".shard" / f"{rank_folder(r, 2)}.jsonl" for r in (0, 1)]
    return sum(j.read_bytes().count(b"\n") for j in journals if j.exists())


def test_killed_at_random_moments(tmp_path):
    """kill -9 a split at its start, then three times after a random number of tensors; then let one
    get through."""
    config = DeepseekV3Config.preset("small").replace(num_hidden_layers=3, n_routed_experts=64)
    source = synthetic_checkpoint(config, cache_dir=tmp_path / "source")
    total = 2 * shard_checkpoint(source, tmp_path / "whole", 2).tensors_read
    want, out, moments = contents(tmp_path / "whole"), tmp_path / "out", random.Random(0)
    found = [0]
    for attempt in range(4):
        run = forks.FORKS.Process(
            target=shard_checkpoint,
            args=(source, out, 2),
            kwargs={"jobs": 2, "commit_bytes": 1 << 16},
        )
        run.start()
        enough = found[-1] + moments.uniform(0.02, 0.2) * total if attempt else 0
        deadline = time.monotonic() + 60
        while entries(out) < enough and run.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.01))
        run.kill()
        run.join()
        assert run.exitcode == -signal.SIGKILL, "it was done before it was killed"
        not_usable(out)
        found.append(entries(out))
    assert found == sorted(found) and found[-1] > found[1], (
        "each run goes on where the one before was killed"
    )
    report = shard_checkpoint(source, out, 2, verify=True)
    assert 0 < report.tensors_resumed < report.tensors_read
    assert report.complete and contents(out) == want


@pytest.mark.parametrize("after", [0, 1, 37, 10_000])
def test_going_on_reads_only_what_is_missing(after, whole, tmp_path, monkeypatch):
    """Stopped after a number of tensors, as by Ctrl-C; the next run reads the others and no more."""
    out, done = tmp_path / "out", iter(range(10**9))
    real = stream.split_source

    def split(*args):
        if next(done) >= after:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr("dsv3_port.weights.sharding.workers.split_source", split)
    if after < 1000:
        with pytest.raises(KeyboardInterrupt):
            shard_checkpoint(TINY, out, 2, jobs=1)
        not_usable(out)
    monkeypatch.undo()
    report = shard_checkpoint(TINY, out, 2)
    assert report.tensors_resumed == (after if after < 1000 else 0)
    assert contents(out) == whole


def test_a_torn_journal_and_a_lost_file(whole, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def interrupt() -> None:
        count = iter(range(10**9))
        real = stream.split_source

        def split(*args):
            if next(count) >= 50:
                raise KeyboardInterrupt
            return real(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("dsv3_port.weights.sharding.workers.split_source", split)
            shard_checkpoint(TINY, out, 2, jobs=1)

    interrupt()
    journal = out / ".shard" / f"{rank_folder(0, 2)}.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])  # the last line was being written
    next(
        (out / f"{rank_folder(1, 2)}.partial").glob("*.safetensors")
    ).unlink()  # rank 1 must begin anew
    report = shard_checkpoint(TINY, out, 2)
    assert report.tensors_resumed == 0 and contents(out) == whole


def test_begin_anew(whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(
        "dsv3_port.weights.sharding.workers.split_source",
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        shard_checkpoint(TINY, out, 2, dtype="fp32")
    monkeypatch.undo()
    with pytest.raises(
        PortError, match=r"unfinished split is here that differs in dtype \(fp32, not bf16\)"
    ):
        shard_checkpoint(TINY, out, 2)
    assert shard_checkpoint(TINY, out, 2, resume=False).tensors_resumed == 0
    assert contents(out) == whole


@pytest.mark.parametrize("step", ["before the name", "after the name"])
def test_killed_while_a_rank_gets_its_name(step, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    name = "replace" if step == "before the name" else "unlink"
    real = getattr(os, name)

    def dies(first, *rest, **how):
        if str(first).endswith((".partial", ".jsonl")):
            raise KeyboardInterrupt
        return real(first, *rest, **how)

    if name == "replace":
        monkeypatch.setattr(ranks.os, "replace", dies)
    else:
        monkeypatch.setattr(Path, "unlink", lambda self, **how: dies(self))
    with pytest.raises(KeyboardInterrupt):
        shard_checkpoint(TINY, out, 2, resume=True)
    monkeypatch.undo()
    not_usable(out)
    shard_checkpoint(TINY, out, 2)
    assert contents(out) == whole


def test_a_file_size_limit_stops_like_a_full_disk(whole, tmp_path):
    """The kernel refuses writes past the limit, in a process of its own; the message says what
    happened."""
    out = tmp_path / "out"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))

    words = words_of(out)
    command = [sys.executable, "-m", "dsv3_port", *words]
    run = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert run.returncode == 2 and "writing stopped: File too large" in run.stderr
    not_usable(out)
    assert forks.command(*words).returncode == 0
    assert contents(out) == whole


def test_no_space_in_the_middle(whole, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", iter(range(10**9))
    real = os.pwrite

    def write(fd, data, place):
        if next(calls) > 100:
            raise OSError(28, "No space left on device")
        return real(fd, data, place)

    monkeypatch.setattr("dsv3_port.weights.sharding.ranks.os.pwrite", write)
    with pytest.raises(PortError, match="No space left on device; the same command goes on"):
        shard_checkpoint(TINY, out, 2, jobs=2)
    monkeypatch.undo()
    not_usable(out)
    report = shard_checkpoint(TINY, out, 2)
    assert report.tensors_resumed > 0 and contents(out) == whole


def test_a_source_that_shrinks_while_it_is_read(whole, tmp_path, monkeypatch):
    source, out = Path(shutil.copytree(TINY, tmp_path / "source")), tmp_path / "out"
    real, count = stream.split_source, iter(range(10**9))
    index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    last = source / index["model.norm.weight"]
    kept = last.read_bytes()

    def split(*args):
        if next(count) == 40:
            os.truncate(last, 1 << 16)
        return real(*args)

    monkeypatch.setattr("dsv3_port.weights.sharding.workers.split_source", split)
    with pytest.raises(PortError, match=f"{last.name}: ends inside .*cut short while it was read"):
        shard_checkpoint(source, out, 2, jobs=1)
    monkeypatch.undo()
    not_usable(out)
    with pytest.raises(PortError, match="truncated or damaged, download it again"):
        shard_checkpoint(source, out, 2)
    last.write_bytes(kept)
    assert shard_checkpoint(source, out, 2).tensors_resumed > 30
    assert contents(out) == whole


def test_two_runs_on_one_output_are_kept_apart(whole, tmp_path):
    out = tmp_path / "out"
    lock = lock_rank(out / ".shard", 1, rank_folder(1, 2))
    try:
        run = forks.command(*words_of(out))
        assert run.returncode == 2 and b"another run is writing rank 1" in run.stderr
        shard_checkpoint(TINY, out, 2, ranks=[0])  # another rank is nobody's
    finally:
        lock.release()
    assert not json.loads((out / "manifest.json").read_text())["complete"]
    shard_checkpoint(TINY, out, 2)
    assert contents(out) == whole


def test_hosts_that_run_at_once_complete_one_manifest(whole, tmp_path):
    out = tmp_path / "out"
    started = [forks.start(*words_of(out), "--ranks", str(rank), "--json") for rank in (0, 1)]
    hosts = [each.end() for each in started]
    reports = [json.loads(host.stdout) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0] and any(r["complete"] for r in reports)
    assert contents(out) == whole

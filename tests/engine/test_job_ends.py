"""How a job starts and ends on the command line: torchrun, two nodes, a killed rank, a busy port,
no orphans.

Real processes and real signals; every wait has a limit, and no test leaves a process behind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dsv3_port.weights.sharding import rank_folder, shard_checkpoint
from tests import forks

ROOT = Path(__file__).parents[2]
TINY = ROOT / "data" / "tiny-dsv3"
LIMIT = 60.0  # seconds; generous, because no test asserts a time
INFER = ["-m", "dsv3_port", "infer", "--device", "cpu", "--prompt", "The", "--max-new-tokens", "6"]


def environment(**values: str) -> dict[str, str]:
    """Without what an outer launcher may have set."""
    names = ("RANK", "RANK_ID", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {
        k: v for k, v in os.environ.items() if k not in names and not k.startswith("TORCHELASTIC")
    }
    return kept | {"OMP_NUM_THREADS": "1"} | values


def start(*words: str, **values: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        text=True,
        env=environment(**values),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr; killed with all its children if it does not end."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        raise
    return process.returncode, out, err


def ended(*started: forks.Started) -> list[tuple[int, str, str]]:
    """The same of commands that ran as forks."""
    found = [each.end(LIMIT) for each in started]
    return [(done.returncode, done.stdout.decode(), done.stderr.decode()) for done in found]


def infer(*words: str, **values: str) -> forks.Started:
    """A rank or a refusal; jobs that start ranks of their own are real processes here: `start`."""
    return forks.start(*INFER[2:], *words, env=environment(**values))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ranks_of(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    """The rank processes of a running launcher, in the order of ranks, once all have loaded their
    libraries."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        found = sorted(
            (
                c
                for c in psutil.Process(process.pid).children()
                if "--multiprocessing-fork" in c.cmdline()
            ),
            key=lambda c: c.create_time(),
        )
        if len(found) == count and all(
            c.num_threads() > 1 and c.memory_info().rss > 200e6 for c in found
        ):
            return found
        time.sleep(0.05)
    raise AssertionError(f"{count} ranks did not start: {end(process)}")


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=LIMIT / 2)[1]


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ends") / "tp2"
    shard_checkpoint(TINY, folder, 2, dtype="fp32")
    return folder


@pytest.fixture(scope="module")
def want(tmp_path_factory) -> list[int]:
    """What one rank generates."""
    file = tmp_path_factory.mktemp("want") / "one.json"
    ((code, _, err),) = ended(infer("--model-dir", str(TINY), "--json", str(file)))
    assert code == 0, err
    return said(file)


def said(file: Path) -> list[int]:
    return json.loads(file.read_text())["generations"][0]["token_ids"]


def test_ranks_start_from_one_command_and_report(halves, want, tmp_path):
    file = tmp_path / "two.json"
    code, out, err = end(start(*INFER, "--model-dir", str(halves), "--json", str(file)))
    assert code == 0, err
    assert (
        out.startswith("The") and "2 ranks" in out and out.count("The") == 1
    )  # rank 0 alone speaks
    assert said(file) == want and [r["rank"] for r in json.loads(file.read_text())["ranks"]] == [
        0,
        1,
    ]


def test_two_nodes_meet_by_torchrun(halves, want, tmp_path):
    """Two agents with a rank each, meeting by c10d on loopback: what two machines would do with one
    address."""
    file, at = tmp_path / "nodes.json", f"127.0.0.1:{free_port()}"
    nodes = [
        start(
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
            "--nproc-per-node",
            "1",
            "--node-rank",
            str(n),
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            at,
            "--rdzv-id",
            "test",
            "--local-addr",
            "127.0.0.1",
            *INFER,
            "--model-dir",
            str(halves),
            "--json",
            str(file),
        )
        for n in range(2)
    ]
    ends = [end(node) for node in nodes]
    assert [code for code, *_ in ends] == [0, 0], ends
    assert sum("2 ranks" in out for _, out, _ in ends) == 1
    assert said(file) == want


def test_ranks_started_one_by_one_as_the_old_sample_did(halves, want, tmp_path):
    """RANK_ID and LOCAL_RANK in the environment of each process, no launcher."""
    file = tmp_path / "old.json"
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "MODEL_DIR": str(halves),
    }
    ranks = [
        infer("--json", str(file), RANK_ID=str(r), LOCAL_RANK=str(r), **shared) for r in range(2)
    ]
    ends = ended(*ranks)
    assert [code for code, *_ in ends] == [0, 0], ends
    assert said(file) == want and ends[1][1] == ""


def test_a_killed_rank_ends_the_job_and_is_named(halves):
    job = start(*INFER, "--model-dir", str(halves), "--max-new-tokens", "1000")
    ranks = ranks_of(job, 2)
    ranks[1].kill()
    code, _, err = end(job)
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith(
        f"dsv3-port: rank 1 of 2 failed on {socket.gethostname()}, process {ranks[1].pid}: "
    )
    assert "Signal 9" in last and gone(ranks)


def test_ranks_end_when_their_launcher_is_killed(halves):
    job = start(*INFER, "--model-dir", str(halves), "--max-new-tokens", "1000")
    ranks = ranks_of(job, 2)
    job.kill()
    end(job)
    assert gone(ranks)


def test_an_interrupt_ends_all_ranks(halves):
    job = start(*INFER, "--model-dir", str(halves), "--max-new-tokens", "1000")
    ranks = ranks_of(job, 2)
    job.send_signal(signal.SIGINT)
    code, _, err = end(job)
    assert code == 130 and "interrupted" in err and gone(ranks)


def test_a_bad_file_of_one_rank_is_the_cause_that_is_told(halves, tmp_path):
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", halves, broken], check=True)
    (file,) = (broken / rank_folder(1, 2)).glob("*.safetensors")
    os.truncate(file, file.stat().st_size // 2)
    code, out, err = end(start(*INFER, "--model-dir", str(broken)))
    assert code == 2 and out == ""
    assert err.strip().splitlines()[-1].startswith("dsv3-port: rank 1 of 2 failed"), err
    assert "Traceback" not in err  # one sentence and no stack
    assert (
        "rank 1 of 2 failed" in err and str(file) in err and "write it again with --ranks 1" in err
    )
    shared = {"WORLD_SIZE": "2", "MASTER_PORT": str(free_port()), "MODEL_DIR": str(broken)}
    ends = ended(*[infer(RANK_ID=str(r), **shared) for r in range(2)])
    assert all(code for code, *_ in ends) and str(file) in ends[1][2]
    assert (
        "another rank is gone: rank 1 (" in ends[0][2] and str(file) in ends[0][2]
    )  # the cause, from the other rank


def test_a_busy_port_is_said(halves):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        folder = ("--model-dir", str(halves))
        launcher, rank = ended(
            infer(*folder, "--master-port", str(port)),
            infer(*folder, RANK_ID="0", WORLD_SIZE="2", MASTER_PORT=str(port)),
        )
        code, _, err = launcher
        assert code == 2 and f"MASTER_PORT {port} is in use on 127.0.0.1: choose another" in err
        code, _, err = rank
        assert code == 2 and f"MASTER_PORT {port} is in use on " in err


def test_an_address_of_another_machine_is_refused(halves):
    """192.0.2.1 is reserved for documentation (RFC 5737)."""
    ((code, _, err),) = ended(infer("--model-dir", str(halves), "--master-addr", "192.0.2.1"))
    assert code == 2 and "need an address of this machine" in err and "torchrun" in err


def test_a_rank_that_never_starts_is_waited_for_so_long(halves):
    words = ("--model-dir", str(halves), "--job-timeout", "2")
    ((code, _, err),) = ended(
        infer(*words, RANK_ID="0", WORLD_SIZE="2", MASTER_PORT=str(free_port()))
    )
    assert code == 2 and "did not all start within 2 s" in err


def test_a_rank_without_rank_0_is_told_where_it_looked(halves):
    port = free_port()
    words = ("--model-dir", str(halves), "--job-timeout", "2")
    ((code, _, err),) = ended(infer(*words, RANK_ID="1", WORLD_SIZE="2", MASTER_PORT=str(port)))
    assert code == 2 and f"found no rank 0 at 127.0.0.1:{port}" in err

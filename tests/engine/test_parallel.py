"""Real processes and real gloo: the cut model gives the whole model's answer, and a failing rank is
named."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest
import torch

from dsv3_port import PortError, PortPlan, files, load_model
from dsv3_port.engine.launch import run_ranks
from dsv3_port.parallel import TensorParallel
from dsv3_port.weights.sharding import shard_checkpoint

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
IDS = torch.randint(3, 900, (3, 12), generator=torch.Generator().manual_seed(5))


def logits_of_rank(parallel: TensorParallel, path: str, plan: PortPlan) -> torch.Tensor:
    model = load_model(path, plan, "cpu", "float32", parallel)
    cache = model.new_cache(3, 16)
    first = model(IDS[:, :-1], cache=cache)[:, -1:]
    return torch.cat((first, model(IDS[:, -1:], cache=cache)), 1)


def fail_on_one(parallel: TensorParallel) -> None:
    if parallel.rank == 1:
        raise PortError("the shard of this rank is broken")
    torch.distributed.barrier()


def die_on_one(parallel: TensorParallel) -> None:
    if parallel.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    parallel.all_reduce(torch.ones(1))


def hang_on_one(parallel: TensorParallel) -> None:
    if parallel.rank == 1:
        threading.Event().wait()
    parallel.all_reduce(torch.ones(1))


def differ_on_one(parallel: TensorParallel) -> None:
    if parallel.rank == 0:
        parallel.all_reduce(torch.ones(1))
    raise RuntimeError("a defect of rank 1" if parallel.rank else "never here")


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_equal_the_whole_model(world, tmp_path):
    """Batch of three, so that a gather which mixes rows would show (a defect of the old sample)."""
    plan = PortPlan.full()
    want = logits_of_rank(TensorParallel(), str(TINY), plan)
    shard_checkpoint(TINY, tmp_path / "out", world, dtype="fp32")
    results = run_ranks(logits_of_rank, world, str(tmp_path / "out"), plan)
    for got in results:
        assert float((got - want).abs().max() / want.abs().max()) <= 1e-5
        assert torch.equal(got, results[0])


@pytest.mark.usefixtures("real_starts")
def test_ranks_of_the_upstream_forms_straight_from_the_checkpoint():
    plan = PortPlan.with_steps("tensor_parallel")
    want = logits_of_rank(TensorParallel(), str(TINY), plan)
    for got in run_ranks(logits_of_rank, 2, str(TINY), plan):
        assert float((got - want).abs().max() / want.abs().max()) <= 1e-5


def test_a_failing_rank_is_named():
    with pytest.raises(
        PortError, match=r"rank 1 of 2 failed on .*, process .*: the shard of this rank is broken"
    ):
        run_ranks(fail_on_one, 2)


@pytest.mark.usefixtures("real_starts")
def test_a_rank_that_dies_is_named():
    with pytest.raises(PortError, match=r"rank 1 of 2 failed on .*: Signal 9"):
        run_ranks(die_on_one, 2)


def test_a_rank_that_hangs_is_named_by_those_that_waited():
    """Three ranks: the two that gave up tell each other, so that only the one that hangs is left."""
    with pytest.raises(
        PortError, match=r"no answer within 3 s from rank 1 \(.*process \d+\): it hangs"
    ):
        run_ranks(hang_on_one, 3, timeout_seconds=3)


def test_a_defect_keeps_its_stack(tmp_path, monkeypatch):
    """One sentence is enough for bad input; an error in the code is told with where it happened."""
    monkeypatch.setattr(files, "user_log_path", lambda name: tmp_path)
    with pytest.raises(
        PortError,
        match=r"rank 1 of 2 failed on .*: RuntimeError: a defect of rank 1; the full traceback is in",
    ):
        run_ranks(differ_on_one, 2)
    (kept,) = tmp_path.iterdir()
    assert "differ_on_one" in kept.read_text()


def test_a_port_that_is_taken_or_an_address_elsewhere_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortError, match=f"MASTER_PORT {port} is in use on 127.0.0.1"):
            run_ranks(rank_only, 2, port=port)
    assert run_ranks(rank_only, 2, port=port) == [0, 1]  # free again, and taken as asked
    with pytest.raises(PortError, match="need an address of this machine"):
        run_ranks(rank_only, 2, host="192.0.2.1")  # reserved for documentation (RFC 5737)


def test_a_cut_model_without_ranks_says_what_to_do():
    model = load_model(TINY, PortPlan.full(), "cpu", "float32", TensorParallel(0, 2))
    with pytest.raises(PortError, match="needs a process group"):
        model(IDS)
    with pytest.raises(PortError, match="needs the step 'tensor_parallel'"):
        load_model(TINY, PortPlan.upstream(), "cpu", "float32", TensorParallel(0, 2))


def rank_only(parallel: TensorParallel) -> int:
    return parallel.rank


@pytest.mark.usefixtures("real_starts")
def test_the_launcher_leaves_signal_handlers_as_they_were():
    """torchrun's launcher sets its own; a Jupyter kernel could then not be interrupted."""
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert run_ranks(rank_only, 1) == [0]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before

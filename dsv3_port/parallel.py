"""Tensor parallelism: who this rank is, what it holds, and the two collectives the model needs."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from .errors import PortError

BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # torch 2.13 deprecates the old name


@dataclass(frozen=True)
class TensorParallel:
    """This rank's place. `group` None means world size 1, and no process group is needed."""

    rank: int = 0
    world_size: int = 1
    group: Any = None

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise PortError(f"rank {self.rank} of world size {self.world_size} does not exist")

    def share(self, total: int, what: str) -> int:
        """total / W, or an error that says which world sizes would do."""
        if total % self.world_size:
            fit = [w for w in range(1, total + 1) if total % w == 0 and w <= 4 * self.world_size]
            raise PortError(f"{what} = {total} cannot be cut over {self.world_size} ranks; world sizes that fit: {fit}")
        return total // self.world_size

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over ranks. With a world size of 1 the tensor comes back as it is."""
        if self.world_size > 1:
            self._need_group()
            dist.all_reduce(x, group=self.group)
        return x

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        """[..., V/W] on each rank -> [..., V] in rank order, rows kept apart for any batch size."""
        if self.world_size == 1:
            return x
        self._need_group()
        x = x.contiguous()
        out = x.new_empty((self.world_size * x.shape[0], *x.shape[1:]))
        all_gather(out, x, group=self.group)
        # [W, ..., V/W] -> [..., W, V/W] -> [..., V]: without the move batch rows of different ranks would mix
        parts = out.view(self.world_size, *x.shape)
        return parts.movedim(0, -2).flatten(-2)

    def _need_group(self) -> None:
        if self.group is None:
            raise PortError(f"a model cut for {self.world_size} ranks needs a process group: start it with "
                            "dsv3_port.parallel.run_ranks or torchrun, or use world size 1")


SINGLE = TensorParallel()


def init_ranks(device: str = "cpu", timeout_seconds: float = 300.0) -> TensorParallel:
    """Join the process group that torchrun's environment describes (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    kind = torch.device(device).type
    if not dist.is_initialized():
        dist.init_process_group(BACKENDS.get(kind, "gloo"), timeout=datetime.timedelta(seconds=timeout_seconds))
    return TensorParallel(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)


def _rank_main(fn: Callable[..., Any], device: str, threads: int, args: tuple[Any, ...]) -> Any:
    torch.set_num_threads(threads)
    parallel = init_ranks(device)
    result = fn(parallel, *args)
    dist.destroy_process_group()  # not after an error: closed connections would make the other ranks fail first
    return result


def _follows(failure: Any) -> bool:
    """Whether a rank failed only because another one had gone; times are in whole seconds and do not tell."""
    return any(sign in str(failure.message) for sign in ("Connection closed by peer", "Connection reset by peer"))


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Give this process its signal handlers back: the launcher sets its own, and a Jupyter kernel could then neither be
    interrupted nor end in peace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, n)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, device: str = "cpu") -> list[Any]:
    """Run `fn(parallel, *args)` in `world_size` new processes on this machine and return their results by rank.

    `fn` and `args` must be picklable: a function of a module, not of a notebook cell. Uses torchrun's own launcher,
    so a rank that raises ends the others and its error is the one reported.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=world_size, rdzv_backend="c10d",
                          rdzv_endpoint="127.0.0.1:0", max_restarts=0, monitor_interval=0.1, start_method="spawn",
                          run_id=secrets.token_hex(8))
    threads = max(1, (os.cpu_count() or 1) // world_size)
    try:
        with _own_signals():
            results = elastic_launch(config, _rank_main)(fn, device, threads, args)
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: (_follows(item[1]), item[1].timestamp))
        message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
        raise PortError(f"rank {rank} of {world_size} failed: {message}") from error
    return [results[rank] for rank in range(world_size)]

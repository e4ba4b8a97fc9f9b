"""Tensor parallelism: who this rank is, the two collectives the model needs, and how ranks start,
meet and end.

A job ends as a whole: a rank that raises or dies ends the others, a rank that hangs makes the
others give up after the timeout, and the message names the rank, its machine and the first cause.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import gc
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from . import hostnpu
from .errors import PortError

BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
all_gather = getattr(
    dist, "all_gather_single", dist.all_gather_into_tensor
)  # torch 2.13 deprecates the old name


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
            raise PortError(
                f"{what} = {total} cannot be cut over {self.world_size} ranks; world sizes that fit: {fit}"
            )
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
        # [W, ..., V/W] -> [..., W, V/W] -> [..., V]: without the move batch rows of different ranks
        # would mix
        parts = out.view(self.world_size, *x.shape)
        return parts.movedim(0, -2).flatten(-2)

    def _need_group(self) -> None:
        if self.group is None:
            raise PortError(
                f"a model cut for {self.world_size} ranks needs a process group: start it with "
                "dsv3_port.parallel.run_ranks or torchrun, or use world size 1"
            )


SINGLE = TensorParallel()
TIMEOUT = 300.0  # seconds that a rank waits for the others
GRACE = 3.0  # seconds within which ranks that wait for the same one give up
_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process has exited",
)
_LATE = ("timed out", "timeout", "time out")
LOST = "another rank is gone"


@dataclass(frozen=True)
class Address:
    """Where ranks meet, given by whoever started this process: rank 0's machine, port, this rank
    and all ranks."""

    host: str
    port: int
    rank: int
    world_size: int

    def store(self, timeout: datetime.timedelta) -> Any:
        """The key-value store of the job; torchrun's agent or rank 0 serves it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        try:
            return next(
                dist.rendezvous(
                    f"tcp://{host}:{self.port}", self.rank, self.world_size, timeout=timeout
                )
            )[0]
        except dist.DistNetworkError as error:
            text = str(error)
            if "EADDRINUSE" in text or "already in use" in text:
                raise PortError(
                    f"MASTER_PORT {self.port} is in use on {socket.gethostname()}: choose another, or "
                    "leave it out where one machine runs all ranks"
                ) from error
            raise PortError(
                f"rank {self.rank} found no rank 0 at {self.host}:{self.port} within "
                f"{timeout.total_seconds():g} s: {text.splitlines()[0]}"
            ) from error


def init_ranks(
    device: str = "cpu", timeout_seconds: float = TIMEOUT, address: Address | None = None
) -> TensorParallel:
    """Join the process group at `address`, or the one of torchrun's environment (RANK, WORLD_SIZE,
    MASTER_ADDR, MASTER_PORT). A collective gives up after `timeout_seconds`."""
    return _join(device, timeout_seconds, address)[0]


def _join(
    device: str, timeout_seconds: float, address: Address | None
) -> tuple[TensorParallel, Any]:
    kind = torch.device(device).type
    wait = datetime.timedelta(seconds=timeout_seconds)
    if dist.is_initialized():
        return TensorParallel(dist.get_rank(), dist.get_world_size(), dist.group.WORLD), None
    if address is None:
        store, rank, size = next(dist.rendezvous("env://", timeout=wait))
    else:
        store, rank, size = address.store(wait), address.rank, address.world_size
    store.set_timeout(wait)
    store.set(f"dsv3/place/{rank}", _place())
    dist.init_process_group(
        BACKENDS.get(kind, "gloo"),
        store=dist.PrefixStore("dsv3", store),
        rank=rank,
        world_size=size,
        timeout=wait,
    )
    return TensorParallel(rank, size, dist.group.WORLD), store


@contextlib.contextmanager
def joined(
    device: str = "cpu", timeout_seconds: float = TIMEOUT, address: Address | None = None
) -> Iterator[TensorParallel]:
    """init_ranks for the length of a `with`; a failed collective becomes a PortError that says
    which rank is missing.

    After an error the process group stays: connections that close would make the other ranks fail
        first.
    """
    store = None
    try:
        parallel, store = _join(device, timeout_seconds, address)
        yield parallel
    except Exception as error:
        text = str(error)
        late = any(sign in text.lower() for sign in _LATE)
        if isinstance(error, RuntimeError) and (late or any(sign in text for sign in _GONE)):
            raise PortError(
                _who_is_late(store, timeout_seconds) if late else _who_is_gone(store, text)
            ) from error
        if store is not None:  # for the ranks that now lose this one, on whatever machine
            with contextlib.suppress(RuntimeError):
                store.set(
                    "dsv3/cause",
                    f"rank {dist.get_rank()} ({_place()}): {text or type(error).__name__}",
                )
        raise
    dist.destroy_process_group()
    # a model holds the group in a cycle, and a group that is left for the interpreter's end aborts
    # it
    gc.collect()


def _place() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"


def _who_is_gone(store: Any, text: str) -> str:
    """What the rank that went first left as its cause. A launcher that sees the first one end ends
    this one meanwhile, so that it is not this follower that is reported."""
    cause = text.splitlines()[0]
    time.sleep(GRACE)
    with contextlib.suppress(
        RuntimeError
    ):  # rank 0 may have served the store, and be the one that is gone
        if store is not None and store.check(["dsv3/cause"]):
            cause = store.get("dsv3/cause").decode()
    return f"{LOST}: {cause}"


def _who_is_late(store: Any, timeout_seconds: float) -> str:
    """The ranks that do not also give up within GRACE are the ones that everybody waited for."""
    if store is None:
        return (
            f"the ranks did not all start within {timeout_seconds:g} s: is every one running, and does each have "
            "the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE?"
        )
    size, mine = dist.get_world_size(), dist.get_rank()
    store.set(f"dsv3/late/{mine}", b"1")
    end = time.monotonic() + GRACE
    missing = [r for r in range(size) if r != mine]
    while missing and time.monotonic() < end:
        time.sleep(0.1)
        missing = [r for r in missing if not store.check([f"dsv3/late/{r}"])]
    if not missing:
        return f"all {size} ranks waited for each other for {timeout_seconds:g} s: they made different collective calls"
    named = "; ".join(f"rank {r} ({store.get(f'dsv3/place/{r}').decode()})" for r in missing)
    return f"no answer within {timeout_seconds:g} s from {named}: it hangs, or is much slower than the others"


def _rank_main(
    fn: Callable[..., Any],
    device: str,
    threads: int,
    timeout_seconds: float,
    host_npus: int,
    args: tuple[Any, ...],
) -> Any:
    torch.set_num_threads(threads)
    if host_npus:
        hostnpu.enable(host_npus)
        torch.get_device_module("npu").set_device(int(os.environ["LOCAL_RANK"]))
    with joined(device, timeout_seconds) as parallel:
        return fn(parallel, *args)


def _follows(failure: Any) -> bool:
    """Whether a rank failed only because another one had gone; times are in whole seconds and do
    not tell."""
    return (
        any(sign in str(failure.message) for sign in (LOST, *_GONE))
        or failure.exitcode == -signal.SIGTERM
    )


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Give this process its signal handlers back: the launcher sets its own, and a Jupyter kernel
    could then neither be interrupted nor end in peace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [
        getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, n)
    ]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _own_words() -> Iterator[None]:
    """The launcher logs the stack of every rank that ends; run_ranks says the first cause in one
    sentence instead."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.distributed.elastic.multiprocessing.api", "torch.multiprocessing.spawn")
    ]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def check_port(host: str, port: int) -> None:
    """PortError where this machine cannot listen on host:port; port 0 (take a free one) is always
    possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortError(
                    f"MASTER_PORT {port} is in use on {host}: choose another, or leave it out and a free "
                    "one is taken"
                ) from error
            raise PortError(
                f"MASTER_ADDR {host} with MASTER_PORT {port}: {error.strerror or error}; ranks that start "
                "here need an address of this machine. On several machines start with torchrun"
            ) from error


def run_ranks(
    fn: Callable[..., Any],
    world_size: int,
    *args: Any,
    device: str = "cpu",
    timeout_seconds: float = TIMEOUT,
    host: str = "127.0.0.1",
    port: int = 0,
) -> list[Any]:
    """Run `fn(parallel, *args)` in `world_size` new processes on this machine and return their
    results by rank.

    `fn` and `args` must be picklable: a function of a module, not of a notebook cell. Uses
    torchrun's own launcher, so a rank that raises ends the others and its error is the one
    reported. They meet at host:port; port 0 is a free one. A rank that does not come to a
    collective within `timeout_seconds` ends the job too.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_port(host, port)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{host}:{port}",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
        run_id=secrets.token_hex(8),
    )
    threads = max(1, (os.cpu_count() or 1) // world_size)
    # the stand-in belongs to a process: where this one has it, each rank enables its own
    host_npus = (
        max(world_size, hostnpu.devices()) if device.startswith("npu") and hostnpu.enabled() else 0
    )
    try:
        with _own_signals(), _own_words():
            results = elastic_launch(config, _rank_main)(
                fn, device, threads, timeout_seconds, host_npus, args
            )
    except ChildFailedError as error:
        rank, failure = min(
            error.failures.items(), key=lambda item: (_follows(item[1]), item[1].timestamp)
        )
        raise PortError(
            f"rank {rank} of {world_size} failed on {socket.gethostname()}, process {failure.pid}: "
            f"{_cause(failure)}"
        ) from error
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error
        raise SystemExit(128 + error.sigval) from error
    return [results[rank] for rank in range(world_size)]


def _cause(failure: Any) -> str:
    """What the rank raised, or how it ended. The stack of an error that is not for the user is
    logged."""
    if not isinstance(failure.message, dict):
        return str(failure.message)
    message = str(failure.message["message"])
    if not message.startswith("PortError: "):
        logging.getLogger(__name__).error(
            failure.message.get("extraInfo", {}).get("py_callstack", "")
        )
    return message.removeprefix("PortError: ")

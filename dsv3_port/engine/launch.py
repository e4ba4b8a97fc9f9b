"""Ranks of this machine in new processes, by torchrun's own launcher."""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .. import hostnpu
from ..errors import PortError
from ..files import keep_traceback
from .device import use_card
from .ranks import GONE, LOST, TIMEOUT, joined
from .settings import environment

START_METHOD = "spawn"  # a new Python for each rank, as torchrun starts them


def _rank_main(
    fn: Callable[..., Any],
    device: str,
    host_npus: int,
    threads: int,
    timeout_seconds: float,
    args: tuple[Any, ...],
) -> Any:
    torch.set_num_threads(threads)
    use_card(device, int(environment("LOCAL_RANK") or 0), host_npus)
    with joined(device, timeout_seconds) as parallel:
        return fn(parallel, *args)


def _follows(failure: Any) -> bool:
    """Whether a rank failed only because another one had gone; times are in whole seconds and do
    not tell."""
    return (
        any(sign in str(failure.message) for sign in (LOST, *GONE))
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


def check_semaphores() -> None:
    """PortError where this system has none, which a rank's result comes back through."""
    try:
        multiprocessing.get_context("spawn").Lock()
    except (OSError, ImportError) as error:
        raise PortError(
            f"no rank can be started here: the system gives no semaphores ({error}); /dev/shm must be there "
            "and writable (mount -t tmpfs tmpfs /dev/shm; in a container --shm-size=64m)"
        ) from error


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

    check_semaphores()
    check_port(host, port)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{host}:{port}",
        max_restarts=0,
        monitor_interval=0.1,
        start_method=START_METHOD,
        run_id=secrets.token_hex(8),
        local_addr=host,  # what the ranks are told to meet on, else this host's name, known or not
    )
    threads = max(1, (os.cpu_count() or 1) // world_size)
    # the stand-in belongs to a process: where this one has it, each rank enables its own
    host_npus = (
        max(world_size, hostnpu.devices()) if device.startswith("npu") and hostnpu.enabled() else 0
    )
    try:
        with _own_signals(), _own_words():
            results = elastic_launch(config, _rank_main)(
                fn, device, host_npus, threads, timeout_seconds, args
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
    kept in a file."""
    if not isinstance(failure.message, dict):
        return str(failure.message)
    message = str(failure.message["message"])
    if message.startswith("PortError: "):
        return message.removeprefix("PortError: ")
    stack = failure.message.get("extraInfo", {}).get("py_callstack", "")
    return f"{message}; {keep_traceback(stack)}"

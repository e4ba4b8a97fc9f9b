"""Ranks of one job: where they meet, how they join, and what is said when one is late or gone.

A job ends as a whole: a rank that raises or dies ends the others, a rank that hangs makes the
others give up after the timeout, and the message names the rank, its machine and the first cause.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ..errors import PortError
from ..parallel import TensorParallel

BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
TIMEOUT = 300.0  # seconds that a rank waits for the others
GRACE = 3.0  # seconds within which ranks that wait for the same one give up
GONE = (
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
    if dist.get_backend() == "gloo":
        # every rank has its connections once all are here: one that had nothing to do would end
        # before, and close those that the others are still making
        dist.barrier()
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
        if isinstance(error, RuntimeError) and (late or any(sign in text for sign in GONE)):
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

"""HCCL on the host: torch_npu's ProcessGroupHCCL is real, the data moves through gloo.

A communicator is a name that its ranks share (cann_host.c); each gets a gloo group of that name
over the store of the default process group.
"""

from __future__ import annotations

import ctypes
import datetime
import traceback
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import kernels, library

# HcclDataType and HcclReduceOp, in their order
DTYPES = (
    torch.int8,
    torch.int16,
    torch.int32,
    torch.float16,
    torch.float32,
    torch.int64,
    torch.uint64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.float64,
    torch.bfloat16,
)
REDUCTIONS: tuple[Any, ...] = (
    dist.ReduceOp.SUM,
    dist.ReduceOp.PRODUCT,
    dist.ReduceOp.MAX,
    dist.ReduceOp.MIN,
)
REDUCTION_NAMES = ("sum", "prod", "max", "min")  # as GE calls them
# the enum of cann_hccl.c
ALL_REDUCE, BROADCAST, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, BARRIER = range(6)
REDUCE, SCATTER, SEND, RECV, BATCH, ALL_TO_ALL_V = range(6, 12)
HCCL_E_INTERNAL = 4
TIMEOUT = datetime.timedelta(minutes=5)
_groups: dict[str, Any] = {}
_callback: Any = None  # must live as long as the process


def _group(name: str, size: int, rank: int) -> Any:
    if name not in _groups:
        store = dist.PrefixStore(name, dist.distributed_c10d._get_default_store())
        _groups[name] = dist.ProcessGroupGloo(store, rank, size, TIMEOUT)
    return _groups[name]


def _tensor(address: int, count: int, dtype: torch.dtype) -> Tensor:
    return kernels.at_address(address, count * dtype.itemsize, dtype, (count,), (1,))


def _gathered(group: Any, mine: Tensor, size: int) -> list[Tensor]:
    parts = [torch.empty_like(mine) for _ in range(size)]
    group.allgather([parts], [mine]).wait()
    return parts


def _reduced(group: Any, value: Tensor, reduction: int) -> Tensor:
    options = dist.AllreduceOptions()
    options.reduceOp = REDUCTIONS[reduction]
    group.allreduce([value], options).wait()
    return value


class Item(ctypes.Structure):
    """HcclSendRecvItem: kind 0 sends, 1 receives."""

    _fields_ = [
        ("kind", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("count", ctypes.c_uint64),
        ("dtype", ctypes.c_int),
        ("rank", ctypes.c_uint32),
    ]


class Parts(ctypes.Structure):
    """struct parts of cann_hccl.c: what goes to, or comes from, each rank, in elements."""

    _fields_ = [
        ("buffer", ctypes.c_void_p),
        ("counts", ctypes.POINTER(ctypes.c_uint64)),
        ("offsets", ctypes.POINTER(ctypes.c_uint64)),
    ]


Message = tuple[int, int, int, torch.dtype, int]  # 0 send or 1 receive, address, count, dtype, rank


def _messages(kind: int, size: int, send: int, recv: int, count: int, dtype: int) -> list[Message]:
    """The point-to-point messages of BATCH and ALL_TO_ALL_V, read now: the caller's arrays do not
    outlive the call, and a captured graph moves the data later."""
    if kind == BATCH:
        items = (Item * count).from_address(send)
        return [(i.kind, i.buffer or 0, i.count, DTYPES[i.dtype], i.rank) for i in items]
    found = []
    for way, address in ((0, send), (1, recv)):
        parts, width = Parts.from_address(address), DTYPES[dtype].itemsize
        for rank in range(size):
            place = (parts.buffer or 0) + parts.offsets[rank] * width
            found.append((way, place, parts.counts[rank], DTYPES[dtype], rank))
    return found


def _exchange(group: Any, rank: int, messages: list[Message]) -> None:
    """Send and receive all of them; a message to oneself is a copy. Order holds between two ranks."""
    own = [[m for m in messages if m[0] == way and m[4] == rank and m[2]] for way in (0, 1)]
    for out, into in zip(*own, strict=True):
        _tensor(into[1], into[2], into[3]).copy_(_tensor(out[1], out[2], out[3]).clone())
    waits = []
    for way, address, count, dtype, other in messages:
        if other == rank or not count:
            continue
        value = _tensor(address, count, dtype)
        if way == 0:
            waits.append(group.send([value.clone()], other, 0))
        else:
            waits.append(group.recv([value], other, 0))
    for wait in waits:
        wait.wait()


def _rooted(
    kind: int,
    group: Any,
    rank: int,
    send: int,
    recv: int,
    count: int,
    dtype: torch.dtype,
    root: int,
) -> None:
    """REDUCE (root << 8 | reduction) and SCATTER."""
    if kind == REDUCE:
        value = _reduced(group, _tensor(send, count, dtype).clone(), root & 255)
        if rank == root >> 8:
            _tensor(recv, count, dtype).copy_(value)
        return
    options, out = dist.ScatterOptions(), torch.empty(count, dtype=dtype)
    options.rootRank = root
    parts = []
    if rank == root:
        parts = [list(_tensor(send, count * group.size(), dtype).clone().split(count))]
    group.scatter([out], parts, options).wait()
    _tensor(recv, count, dtype).copy_(out)


def _move(
    kind: int,
    group: Any,
    size: int,
    rank: int,
    send: int,
    recv: int,
    count: int,
    dtype: torch.dtype,
    argument: int,
) -> None:
    """One collective on host memory; `count` elements of each rank, `argument` the reduction or the
    root."""
    if kind == BARRIER:
        group.barrier().wait()
    elif kind in (REDUCE, SCATTER):
        _rooted(kind, group, rank, send, recv, count, dtype, argument)
    elif kind in (SEND, RECV):
        _exchange(group, rank, [(kind - SEND, send or recv, count, dtype, argument)])
    elif kind == BROADCAST:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = argument, 0
        group.broadcast([_tensor(recv, count, dtype)], options).wait()
    elif kind == ALL_REDUCE:
        value = _tensor(send, count, dtype).clone()
        _tensor(recv, count, dtype).copy_(_reduced(group, value, argument))
    elif kind == ALL_GATHER:
        mine = _tensor(send, count, dtype).clone()
        _tensor(recv, count * size, dtype).copy_(torch.cat(_gathered(group, mine, size)))
    elif kind == REDUCE_SCATTER:
        value = _reduced(group, _tensor(send, count * size, dtype).clone(), argument)
        _tensor(recv, count, dtype).copy_(value[rank * count : (rank + 1) * count])
    else:
        mine = _tensor(send, count * size, dtype).clone()
        parts = [part[rank * count : (rank + 1) * count] for part in _gathered(group, mine, size)]
        _tensor(recv, count * size, dtype).copy_(torch.cat(parts))


def named(name: str) -> Any:
    """The gloo group behind an HCCL communicator of this process; None where no process group has
    that name."""
    if name in _groups:
        return _groups[name]
    if not dist.is_initialized():
        return None
    for group in list(dist.distributed_c10d._world.pg_map):
        rank, hccl = dist.get_rank(group), None
        if rank >= 0 and dist.get_backend(group) == "hccl":
            backend: Any = group._get_backend(torch.device("npu"))
            hccl = backend.get_hccl_comm_name(dist.get_rank(), init_comm=False)
        if hccl == name:
            return _group(name, dist.get_world_size(group), rank)
    return None


def all_reduce(group: Any, x: Tensor, reduction: str) -> Tensor:
    """x [...] of every rank, combined: "sum", "prod", "max" or "min". x is not changed."""
    return _reduced(
        group, x.clone(memory_format=torch.contiguous_format), REDUCTION_NAMES.index(reduction)
    )


def all_gather(group: Any, x: Tensor) -> Tensor:
    """x [n, ...] of every rank -> [W n, ...] in rank order."""
    return torch.cat(_gathered(group, x.contiguous(), group.size()))


def _on_collective(
    kind: int,
    name: bytes,
    size: int,
    rank: int,
    send: int,
    recv: int,
    count: int,
    dtype: int,
    argument: int,
) -> int:
    fn: Any
    args: tuple[Any, ...]
    try:
        group = _group(name.decode(), size, rank)
        if kind in (BATCH, ALL_TO_ALL_V):
            messages = _messages(kind, size, send, recv, count, dtype)
            fn, args = _exchange, (group, rank, messages)
        else:
            fn, args = _move, (kind, group, size, rank, send, recv, count, DTYPES[dtype], argument)
        if kernels.recorder.capturing():
            kernels.recorder.record(fn, args, {}, [])
        else:
            kernels.recorder.flush()
            fn(*args)
        return 0
    except BaseException:  # cannot cross the C frames; torch_npu raises for the code
        traceback.print_exc()
        return HCCL_E_INTERNAL


def install() -> None:
    global _callback
    c = ctypes
    _callback = c.CFUNCTYPE(
        c.c_int,
        c.c_int,
        c.c_char_p,
        c.c_uint32,
        c.c_uint32,
        c.c_void_p,
        c.c_void_p,
        c.c_uint64,
        c.c_int,
        c.c_int,
    )(_on_collective)
    library.loaded().hostcann_set_collective(_callback)

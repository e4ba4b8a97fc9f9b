"""Graph capture and replay on the host NPU: a tape of kernel calls, behind CANN's aclmdlRI
functions.

torch_npu's own code decides when a capture begins and what is replayed; cann_host.c reports these
calls here. Between begin and end kernels go on the tape and nothing is computed; a replay runs the
tape on the memory it was recorded with.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import library

Key = tuple[str, int]  # ("group", handle) or ("event", address): a replay waits there


@dataclass
class Entry:
    """One recorded call. `outs` are its results' memory at the time of the capture, which a replay
    writes again."""

    fn: Callable[..., Any]
    args: Any
    kwargs: Any
    outs: list[Tensor]

    def run(self) -> None:
        results = [
            t for t in tree_leaves(self.fn(*self.args, **self.kwargs)) if isinstance(t, Tensor)
        ]
        for place, value in zip(self.outs, results, strict=bool(self.outs)):
            if place.data_ptr() != value.data_ptr():
                place.copy_(value)

    @property
    def name(self) -> str:
        """`aten::mm` for an operator, else the function's name (npu:: operators, copies of the
        runtime)."""
        if isinstance(self.fn, torch._ops.OpOverload):
            return str(self.fn._schema.name)
        return str(getattr(self.fn, "__name__", self.fn))


Graph = list[Entry | Key]


class Tapes:
    """The `kernels.Recorder` of this process: one tape for every captured graph that is alive.

    Operators whose arguments are host numbers (attention with key lengths) are captured in a task
    group. torchair replays first and updates their arguments afterwards, so a replay stops at a
    group until its update ended. If anything else comes first (a kernel, a copy, a
    synchronisation), there is no update and it ends with what it has.
    """

    def __init__(self) -> None:
        self.graphs: dict[int, Graph] = {}
        self.captured = self.replayed = 0  # since the start
        self._groups: dict[int, list[Entry]] = {}
        self._waiting: dict[Key, Iterator[Entry | Key]] = {}
        self._signalled: set[Key] = set()
        self._recording: Graph | None = None
        self._group: list[Entry] | None = None
        self._update: Iterator[Entry] | None = None
        self._pending = ctypes.c_int.in_dll(library.loaded(), "hostcann_pending")
        self._playing = False
        self.events = self._events()

    # ---- what kernels.py calls -------------------------------------------------------------------

    def capturing(self) -> bool:
        return self._recording is not None

    def updating(self) -> bool:
        return self._update is not None

    def record(self, fn: Callable[..., Any], args: Any, kwargs: Any, outs: list[Tensor]) -> None:
        entry = Entry(fn, args, kwargs, outs)
        assert self._recording is not None
        self._recording.append(entry)
        if self._group is not None:
            self._group.append(entry)

    def update(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        assert self._update is not None
        entry = next(self._update, None)
        if entry is None:
            raise RuntimeError("a task update calls more operators than its task group captured")
        entry.fn, entry.args, entry.kwargs = fn, args, kwargs

    def flush(self) -> None:
        """No update came: finish waiting replays with the arguments they have."""
        while self._waiting and not self._playing:
            self._resume(next(iter(self._waiting)), stop=False)

    # ---- what cann_host.c reports, in the order of its enum, beginning with 1 --------------------

    def _events(self) -> list[Callable[..., None]]:
        def append(entry: Entry | Key) -> None:
            assert self._recording is not None
            self._recording.append(entry)

        return [
            self._begin,
            self._end,
            lambda graph, *_: self._execute(graph),
            lambda graph, *_: self._destroy(graph),
            self._group_begin,
            self._group_end,
            lambda group, *_: setattr(self, "_update", iter(self._groups[group])),
            self._update_end,
            lambda *copy: append(Entry(ctypes.memmove, copy, {}, [])),
            lambda *fill: append(Entry(ctypes.memset, fill, {}, [])),
            lambda event, *_: append(("event", event)),
            lambda event, *_: self._signal(("event", event)),
            lambda *_: self.flush(),
        ]

    def _begin(self, graph: int, *_: int) -> None:
        self.captured += 1
        self._recording = self.graphs[graph] = []

    def _end(self, *_: int) -> None:
        self._recording = self._group = None

    def _destroy(self, graph: int) -> None:
        for entry in self.graphs.pop(graph, []):
            if isinstance(entry, tuple):
                self._groups.pop(entry[1], None)
                self._signalled.discard(entry)

    def _group_begin(self, group: int, *_: int) -> None:
        assert self._recording is not None
        self._group = self._groups[group] = []
        self._recording.append(("group", group))

    def _group_end(self, *_: int) -> None:
        self._group = None

    def _update_end(self, group: int, *_: int) -> None:
        self._update = None
        self._signal(("group", group))

    def _execute(self, graph: int) -> None:
        self.flush()  # an earlier replay comes first on the stream
        self.replayed += 1
        self._play(iter(self.graphs[graph]))

    # ---- replay ----------------------------------------------------------------------------------

    def _play(self, entries: Iterator[Entry | Key], stop: bool = True) -> None:
        self._playing = True
        try:
            with torch._C._DisableTorchDispatch(), torch.inference_mode():
                for entry in entries:
                    if isinstance(entry, Entry):
                        entry.run()
                    elif entry in self._signalled:
                        self._signalled.discard(entry)
                    elif stop:
                        self._waiting[entry], self._pending.value = entries, 1
                        return
        finally:
            self._playing = False

    def _resume(self, key: Key, stop: bool = True) -> None:
        entries = self._waiting.pop(key)
        self._pending.value = len(self._waiting)
        self._play(entries, stop)

    def _signal(self, key: Key) -> None:
        if key in self._waiting:
            self._resume(key)
        else:
            self._signalled.add(key)


tapes: Tapes | None = None
_callback: Any = None  # must live as long as the process


def _on_event(event: int, *args: int) -> int:
    """0: done. An exception cannot cross the C frames: its text goes to where torch_npu asks for
    the last error."""
    assert tapes is not None
    try:
        tapes.events[event - 1](*args)
        return 0
    except Exception as error:
        library.loaded().hostcann_set_error(
            f"host stand-in: {type(error).__name__}: {error}".encode()[:250]
        )
        return 1


def install() -> Tapes:
    global tapes, _callback
    tapes = Tapes()
    number = ctypes.c_uint64
    _callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, number, number, number)(_on_event)
    library.loaded().hostcann_set_callback(_callback)
    return tapes

"""Host kernels behind the npu device: CPU operators on the memory that torch_npu allocated.

A kernel sees npu storage through a CPU tensor on the same memory, runs the CPU operator (or one of
`operators`) and puts new results into npu tensors. While torch_npu captures a graph nothing is
computed: the call goes to the `Recorder` that graphs.py sets, and only shapes are worked out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from . import fallback, formats, generators, placement, registry
from .memory import alias, at_address, like, plain, to_host

__all__ = ["Kernel", "alias", "at_address", "recorder", "set_recorder", "to_host"]

Function = Callable[..., Any]
calls = {"kernel": 0}  # kernels run or recorded since the start


class Recorder(Protocol):
    """What capture and replay see of every kernel; arguments are CPU tensors on npu memory."""

    def capturing(self) -> bool:
        """Whether a graph is being captured: kernels are then recorded, not run."""

    def updating(self) -> bool:
        """Whether a task update is open: a kernel's call then replaces the arguments of a recorded
        one."""

    def record(self, fn: Function, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
        """fn(*args, **kwargs) was called in a capture; its tensor results belong into outs, in
        order."""

    def update(self, fn: Function, args: Any, kwargs: Any) -> None:
        """The same during a task update."""

    def flush(self) -> None:
        """A kernel is about to run outside of any capture: finish replays that wait for an update."""


class NoRecorder:
    """Before graphs.py puts its own in place: nothing is ever captured."""

    def capturing(self) -> bool:
        return False

    def updating(self) -> bool:
        return False

    def record(self, fn: Function, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
        raise RuntimeError("a graph is being captured, but nothing records it")

    def update(self, fn: Function, args: Any, kwargs: Any) -> None:
        raise RuntimeError("a captured graph is being updated, but nothing recorded it")

    def flush(self) -> None:
        pass


recorder: Recorder = NoRecorder()


def set_recorder(new: Recorder) -> None:
    global recorder
    recorder = new


# ---- between npu and host ------------------------------------------------------------------------


def _copy(out: Tensor, host: Tensor) -> None:
    if host.numel():
        plain(out).copy_(host)


def _leave(out: Tensor, host: Tensor) -> None:
    """In place of _copy while a graph is captured."""


def _device(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Where results belong: on the first npu argument's device, or the one that is asked for, or
    the current one."""
    for value in (*args, *kwargs.values()):
        first = value[0] if isinstance(value, (list, tuple)) and value else value
        where = first.device if isinstance(first, Tensor) else first
        if isinstance(where, torch.device) and where.type == "npu":
            return where
    return torch.device("npu")


# ---- one kernel ----------------------------------------------------------------------------------


class Kernel:
    """The PrivateUse1 kernel of the operator of a full name. choose(operator): what is called with CPU
    tensors; None: the operator itself."""

    op: Any
    fn: Function

    def __init__(self, name: str, choose: Callable[[Any], Function | None]) -> None:
        self.name, self.choose, self.prepared = name, choose, False  # most are never called

    def prepare(self) -> None:
        """The operator, and what its schema says: at the first call."""
        self.op = registry.overload_of(self.name)
        self.fn = self.choose(self.op) or self.op
        arguments = self.op._schema.arguments
        kinds = [str(a.type) for a in arguments]
        self.check = placement.check_of(self.op, kinds)
        self.draws = generators.draws(self.op, kinds)
        self.written = [
            (i, a.name)
            for i, a in enumerate(arguments)
            if a.alias_info is not None and a.alias_info.is_write
        ]
        self.packs = self.name == "aten::_pack_padded_sequence"
        self.has_out = any(a.is_out for a in arguments)
        self.prepared = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        calls["kernel"] += 1
        if not self.prepared:
            self.prepare()
        where, several = None, bool(kwargs) or self.packs  # first device; whether to look closer
        host_args = []
        for value in args:
            if isinstance(value, Tensor):
                device = value.device
                if device != where:
                    several = several or where is not None or device.type != "npu"
                    where = where or device
                host_args.append(to_host(value))
            else:
                several = several or isinstance(value, (list, tuple))
                host_args.append(value if isinstance(value, (int, float)) else to_host(value))
        if several and self.check is not None:
            self.check(args, kwargs)
        host_kwargs = {k: to_host(v) for k, v in kwargs.items()}
        if where is None or several:
            where = _device(args, kwargs)
        fn = self.fn
        if self.draws:
            fn = generators.bound(self.op, fn, where, host_args, host_kwargs)
        if self.has_out:
            self._own_empty(args, kwargs, host_args, host_kwargs)
        if nz := formats.nz_arguments(self.op, self.written, args, kwargs):
            if recorder.updating() or recorder.capturing():
                fn = formats.Reading(fn, nz)
            else:
                host_args, host_kwargs = formats.replaced(nz, host_args, host_kwargs)
        if recorder.updating():
            recorder.update(fallback.Call(fn, self.op, self.written), host_args, host_kwargs)
            return tuple(
                torch.empty(0, device="npu") for _ in self.op._schema.returns
            )  # nobody uses it
        if recorder.capturing():
            return self._capture(fn, where, args, kwargs, host_args, host_kwargs)
        recorder.flush()
        result = fallback.run(fn, self.op, self.written, host_args, host_kwargs)
        if self.packs:
            sizes = result[1]  # batch sizes are for the host, on a device too
            return self._collect(
                result[0], where, args, kwargs, host_args, host_kwargs, _copy
            ), sizes
        return self._collect(result, where, args, kwargs, host_args, host_kwargs, _copy)

    def _own_empty(self, args: Any, kwargs: Any, host_args: Any, host_kwargs: Any) -> None:
        """An empty out= argument gets memory of its own: the operator will resize it, which an
        alias does not allow."""
        for where, key, _ in self._written(args, kwargs, host_args, host_kwargs):
            if isinstance(where[key], Tensor) and where[key].numel() == 0:
                where[key] = torch.empty_like(where[key])

    def _capture(
        self,
        fn: Function,
        where: torch.device,
        args: Any,
        kwargs: Any,
        host_args: Any,
        host_kwargs: Any,
    ) -> Any:
        """As on the device, nothing is computed: static inputs hold garbage now, and caches must
        not change.

        Shapes come from the operator's own meta kernel, and from a run on zeros where there is
        none.
        """
        self._refuse_wait(args, kwargs)
        shapes = tree_map_only(Tensor, lambda t: like(t, "meta"), (host_args, host_kwargs))
        if fn is self.op and fallback.numbers(self.op, host_args):
            fn = fallback.for_numbers(self.op, host_args)
        shape = fn if isinstance(fn, torch._ops.OpOverload) else self.op
        try:
            result = shape(*shapes[0], **shapes[1])
        except NotImplementedError:
            shapes = tree_map_only(
                Tensor, lambda t: like(t, "cpu").zero_(), (host_args, host_kwargs)
            )
            with torch.random.fork_rng(devices=[], enabled=self.draws):
                result = fallback.run(self.fn, self.op, self.written, *shapes)
        result = self._collect(result, where, args, kwargs, shapes[0], shapes[1], _leave)
        for container, key, npu in self._written(args, kwargs, host_args, host_kwargs):
            if isinstance(npu, Tensor) and npu.device.type == "npu":
                container[key] = alias(npu)  # it may have been resized, and then lies elsewhere
        outs = [
            alias(t) if t.device.type == "npu" else t
            for t in tree_leaves(result)
            if isinstance(t, Tensor)
        ]
        recorder.record(fallback.Call(fn, self.op, self.written), host_args, host_kwargs, outs)
        return result

    def _written(
        self, args: Any, kwargs: Any, host_args: Any, host_kwargs: Any
    ) -> Iterator[tuple[Any, Any, Any]]:
        """(container and key of the host argument, npu argument) of each written argument given."""
        for i, name in self.written:
            if i < len(args):
                yield host_args, i, args[i]
            elif name in kwargs:
                yield host_kwargs, name, kwargs[name]

    def _refuse_wait(self, args: Any, kwargs: Any) -> None:
        """A blocking copy to the host, as in .cpu() and .tolist(), waits for the device: refused in
        a capture."""
        if self.name == "aten::copy_" and args[0].device.type == "cpu":
            if not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False)):
                raise RuntimeError(
                    "the host waits for the device while a graph is captured: a blocking copy to the "
                    "host (a hidden synchronisation: .cpu(), .tolist(), .numpy())"
                )

    def _collect(
        self,
        result: Any,
        where: torch.device,
        args: Any,
        kwargs: Any,
        host_args: Any,
        host_kwargs: Any,
        put: Callable[[Tensor, Tensor], None],
    ) -> Any:
        """Results in npu memory: a written argument stays the object it was, everything else is
        new."""
        same: dict[int, Tensor] = {}
        written = self._written(args, kwargs, host_args, host_kwargs) if self.written else ()
        for container, key, npu in written:
            host = container[key]
            for destination, source in (
                [(npu, host)]
                if isinstance(npu, Tensor)
                else zip(npu or (), host or (), strict=True)
            ):
                if destination.device.type != "npu":
                    continue
                same[id(source)] = destination
                if destination.shape != source.shape:  # an out= argument that the operator resized
                    put(destination.resize_(source.shape), source)
                elif source.data_ptr() != destination.data_ptr():  # it was given memory of its own
                    put(destination, source)

        def give(host: Tensor) -> Tensor:
            if id(host) in same:
                return same[id(host)]
            out = like(host, where)
            put(out, host)
            return out

        return give(result) if isinstance(result, Tensor) else tree_map_only(Tensor, give, result)

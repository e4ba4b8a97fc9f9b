"""Host kernels behind the npu device: CPU operators on the memory that torch_npu allocated.

A kernel sees npu storage through a CPU tensor on the same memory, runs the CPU operator (or one of
`operators`) and puts new results into npu tensors. While torch_npu captures a graph nothing is
computed: the call goes to the `Recorder` that graphs.py sets, and only shapes are worked out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

Function = Callable[..., Any]
calls = {"kernel": 0}  # kernels run or recorded since the start
_libraries: dict[str, torch.library.Library] = {}
_generators: dict[torch.Generator, torch.Generator] = {}


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


def at_address(
    address: int, nbytes: int, dtype: torch.dtype, shape: Any, stride: Any, offset: int = 0
) -> Tensor:
    """A CPU tensor on existing memory, which it does not own."""
    storage = torch._C._construct_storage_from_data_pointer(address, torch.device("cpu"), nbytes)
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


def alias(x: Tensor) -> Tensor:
    """The memory of an npu tensor as a CPU tensor."""
    storage = x.untyped_storage()
    return at_address(
        storage.data_ptr(), storage.nbytes(), x.dtype, x.size(), x.stride(), int(x.storage_offset())
    )


def to_host(value: Any) -> Any:
    """An argument as the CPU operator wants it; lists are walked through."""
    if isinstance(value, Tensor):
        return alias(value) if value.device.type == "npu" else value
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "npu" else value
    if isinstance(value, torch.Generator):  # reproducible, though not the device's sequence
        if value not in _generators:
            _generators[value] = torch.Generator().manual_seed(value.initial_seed())
        return _generators[value]
    return type(value)(to_host(v) for v in value) if isinstance(value, (list, tuple)) else value


def _like(x: Tensor, device: str | torch.device) -> Tensor:
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=device)


def _copy(out: Tensor, host: Tensor) -> None:
    if host.numel():
        alias(out).copy_(host)


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
    """The PrivateUse1 kernel of an operator. `fn` is called with CPU tensors; default: the operator
    itself."""

    def __init__(self, op: Any, fn: Function | None = None) -> None:
        self.op, self.fn = op, fn or op
        self.written = [
            (i, a.name)
            for i, a in enumerate(op._schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write
        ]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        calls["kernel"] += 1
        host_args, host_kwargs = (
            [to_host(a) for a in args],
            {k: to_host(v) for k, v in kwargs.items()},
        )
        self._own_empty(host_args, host_kwargs)
        if recorder.updating():
            recorder.update(self.fn, host_args, host_kwargs)
            return tuple(
                torch.empty(0, device="npu") for _ in self.op._schema.returns
            )  # nobody uses it
        if recorder.capturing():
            return self._capture(args, kwargs, host_args, host_kwargs)
        recorder.flush()
        result = self.fn(*host_args, **host_kwargs)
        return self._collect(result, args, kwargs, host_args, host_kwargs, _copy)

    def _own_empty(self, host_args: list[Any], host_kwargs: dict[str, Any]) -> None:
        """An empty out= argument gets memory of its own: the operator will resize it, which an
        alias does not allow."""
        for i, name in self.written:
            where, key = (host_args, i) if i < len(host_args) else (host_kwargs, name)
            value = where[key] if key in host_kwargs or where is host_args else None  # type: ignore[index]
            if isinstance(value, Tensor) and value.numel() == 0:
                where[key] = torch.empty_like(value)  # type: ignore[index]

    def _capture(self, args: Any, kwargs: Any, host_args: Any, host_kwargs: Any) -> Any:
        """As on the device, nothing is computed: static inputs hold garbage now, and caches must
        not change.

        Shapes come from the operator's own meta kernel, and from a run on zeros where there is
        none.
        """
        self._refuse_wait(args, kwargs)
        shapes = tree_map_only(Tensor, lambda t: _like(t, "meta"), (host_args, host_kwargs))
        try:
            result = self.op(*shapes[0], **shapes[1])
        except NotImplementedError:
            shapes = tree_map_only(
                Tensor, lambda t: _like(t, "cpu").zero_(), (host_args, host_kwargs)
            )
            result = self.fn(*shapes[0], **shapes[1])
        result = self._collect(result, args, kwargs, shapes[0], shapes[1], _leave)
        outs = [
            alias(t) if t.device.type == "npu" else t
            for t in tree_leaves(result)
            if isinstance(t, Tensor)
        ]
        recorder.record(self.fn, host_args, host_kwargs, outs)
        return result

    def _refuse_wait(self, args: Any, kwargs: Any) -> None:
        """A blocking copy to the host, as in .cpu() and .tolist(), waits for the device: refused in
        a capture."""
        if self.op is torch.ops.aten.copy_.default and args[0].device.type == "cpu":
            if not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False)):
                raise RuntimeError(
                    "the host waits for the device while a graph is captured: a blocking copy to the "
                    "host (a hidden synchronisation: .cpu(), .tolist(), .numpy())"
                )

    def _collect(
        self,
        result: Any,
        args: Any,
        kwargs: Any,
        host_args: Any,
        host_kwargs: Any,
        put: Callable[[Tensor, Tensor], None],
    ) -> Any:
        """Results in npu memory: a written argument stays the object it was, everything else is
        new."""
        same: dict[int, Tensor] = {}
        for i, name in self.written:
            host = host_args[i] if i < len(args) else host_kwargs.get(name)
            npu = args[i] if i < len(args) else kwargs.get(name)
            pairs = (
                [(npu, host)]
                if isinstance(npu, Tensor)
                else list(zip(npu or (), host or (), strict=True))
            )
            for destination, source in pairs:
                if destination.device.type == "npu":
                    if (
                        destination.shape != source.shape
                    ):  # an out= argument that the operator resized
                        put(destination.resize_(source.shape), source)
                    same[id(source)] = destination
        where = _device(args, kwargs)

        def give(host: Tensor) -> Tensor:
            if id(host) in same:
                return same[id(host)]
            out = _like(host, where)
            put(out, host)
            return out

        return tree_map_only(Tensor, give, result)


# ---- all of them ---------------------------------------------------------------------------------

# Allocation, views and storage stay torch_npu's own, and out of every capture.
NATIVE = frozenset(
    """
_copy_from_and_resize _has_compatible_shallow_copy_type _lazy_clone _local_scalar_dense _pin_memory _reshape_alias
_to_copy alias as_strided as_strided_ contiguous detach empty empty_like empty_strided empty_with_format is_pinned
is_set_to lift_fresh new_empty new_empty_strided pin_memory record_stream resize_ resize_as_ select set_ slice unfold
unsafe_empty_with_format view view_as_complex view_as_real
""".split()
)


def full_name(schema: Any) -> str:
    return schema.name + ("." + schema.overload_name if schema.overload_name else "")


def overloads(namespace: str) -> Iterator[Any]:
    """Every operator overload of a namespace that the dispatcher knows (TorchScript has more)."""
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith(namespace + "::") and torch._C._dispatch_has_kernel(
            full_name(schema)
        ):
            packet = getattr(getattr(torch.ops, namespace), schema.name.split("::")[1])
            yield getattr(packet, schema.overload_name or "default")


def has_kernel(op: Any, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(full_name(op._schema), key)


def register(op: Any, kernel: Function) -> None:
    """Put a kernel in the place of torch_npu's, without PyTorch's warning about that."""
    namespace = op._schema.name.split("::")[0]
    if namespace not in _libraries:
        _libraries[namespace] = torch.library.Library(namespace, "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _libraries[namespace].impl(full_name(op._schema), kernel, "PrivateUse1")


def install() -> int:
    """Host kernels for all aten operators that torch_npu has kernels for, or would hand to its CPU
    fallback, which copies and cannot be captured. Returns how many."""
    count = 0
    for op in overloads("aten"):
        is_view = any(
            r.alias_info is not None and not r.alias_info.is_write for r in op._schema.returns
        )
        covered = (
            has_kernel(op, "PrivateUse1")
            or has_kernel(op, "CPU")
            and not has_kernel(op, "CompositeExplicitAutograd")
        )
        if covered and not is_view and op._schema.name.removeprefix("aten::") not in NATIVE:
            register(op, Kernel(op))
            count += 1
    return count

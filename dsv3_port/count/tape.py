"""Capture and replay, small enough to read: what a captured graph keeps, what it forbids, where it
goes wrong.

A Tape is no aclgraph: it launches recorded operators from Python, one by one, and it computes while
it captures (a device capture only records). What it shares with one are the rules: operators and
addresses are kept, the Python code that chose them is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import PortError
from ..model.cache import Cache
from ..model.decoder import DeepseekV3
from .operators import whole_operators

_READS = {"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}
_UNFILLED = {
    "aten::empty",
    "aten::new_empty",
    "aten::empty_like",
    "aten::empty_strided",
}  # an address, no values


@dataclass(frozen=True)
class Launch:
    """One operator with its arguments: tensors by address, everything else by value, frozen at
    capture."""

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]  # new tensors; an operator that writes in place has none
    into: dict[str, Tensor] | None = None  # the operator's own `out` arguments, where it has them

    def __call__(self) -> None:
        if self.into is not None:
            self.fn(*self.args, **self.kwargs, **self.into)
            return
        result = self.fn(*self.args, **self.kwargs)
        for place, value in zip(self.outputs, _tensors(result), strict=bool(self.outputs)):
            place.copy_(value)


Step = Callable[[Tensor, Tensor, "Cache | None", bool], Tensor]
Capture = Callable[..., "Tape"]


class Tape:
    """The operators of one call, with fixed buffers. Make one with `Tape.capture`."""

    def __init__(self, launches: list[Launch], inputs: list[Tensor], output: Any) -> None:
        self.launches, self.inputs, self.output = launches, inputs, output

    @classmethod
    def capture(cls, fn: Callable[..., Any], *inputs: Tensor) -> Tape:
        """Run fn on static copies of `inputs` and record what it launches.

        PortError where the host reads a tensor's values, or where a shape depends on them.
        """
        static = [t.clone() for t in inputs]
        recorder = _Recorder()
        with torch.no_grad(), recorder.whole(), _NoReads(recorder), recorder:
            output = fn(*static)
        return cls(recorder.launches, static, output)

    def replay(self, *inputs: Tensor) -> Any:
        """Copy inputs into the static ones and launch everything again; the next replay overwrites
        the output."""
        if len(inputs) != len(self.inputs):
            raise PortError(
                f"the tape was captured with {len(self.inputs)} inputs, this call has {len(inputs)}"
            )
        for place, value in zip(self.inputs, inputs, strict=True):
            if place.shape != value.shape or place.dtype != value.dtype:
                raise PortError(
                    f"the tape was captured for {list(place.shape)} {place.dtype}, this call has "
                    f"{list(value.shape)} {value.dtype}: every shape needs a capture of its own"
                )
            place.copy_(value)
        return self.run()

    def run(self) -> Any:
        """Launch everything on whatever stands in the static inputs now."""
        with torch.no_grad():
            for launch in self.launches:
                launch()
        return self.output

    @property
    def nbytes(self) -> int:
        """Bytes of the results in between, which stay allocated as long as the tape: no reuse
        within it."""
        storages = {
            t.untyped_storage()._cdata: t.untyped_storage().nbytes()
            for launch in self.launches
            for t in launch.outputs
        }
        return sum(storages.values())


def replayed(step: Step, capture: Capture, clone_output: bool = True) -> Step:
    """step(input_ids, pad, cache, first) -> logits, as a function of the same arguments that runs the
    prompt eagerly, records the first cached step of each cache, and replays it from then on.

    capture(fn, ids) records fn on its own copy of ids and computes it once (`Tape.capture`).
    """
    known: dict[int, tuple[Cache, Tape]] = {}

    def run_step(input_ids: Tensor, pad: Tensor, cache: Cache | None, first: bool) -> Tensor:
        if cache is None or first:
            return step(input_ids, pad, cache, first)
        if id(cache) in known:  # other buffers, other addresses: a tape belongs to one cache
            logits: Tensor = known[id(cache)][1].replay(input_ids)
        else:
            tape = capture(lambda ids: step(ids, pad, cache, first), input_ids)
            known[id(cache)] = cache, tape
            logits = tape.output
        return logits.clone() if clone_output else logits

    return run_step


def taped(model: DeepseekV3, clone_output: bool = False) -> list[Tape]:
    """Put tapes under a model's decode steps: one is captured for each cache, then replayed.
    Prefill stays eager.

    Returns the list that the captured tapes are added to. Logits are overwritten by the next step
    unless `clone_output`. `run_eager` (engine/graph.py) takes the tapes off again.
    """
    tapes: list[Tape] = []

    def capture(fn: Callable[..., Any], *inputs: Tensor) -> Tape:
        tapes.append(Tape.capture(fn, *inputs))
        return tapes[-1]

    step: Any = replayed(model.forward_step, capture, clone_output)
    model.run_step = step
    return tapes


# ---- recording -----------------------------------------------------------------------------------


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def _needs_values(func: Any, args: Any) -> bool:
    """Whether the result, or its shape, is known only when the device has finished."""
    if func is torch.ops.aten.index.Tensor:  # tagged for masks; with indices the shape is known
        return any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1]))
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.inside = 0  # > 0 within an NPU operator, which is recorded as one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        if _needs_values(func, args):
            raise PortError(
                f"{func.name()} needs values on the host while the step is captured; every replay "
                "would use those of the capture"
            )
        result = func(*args, **kwargs)
        if not func.is_view and func._schema.name not in _UNFILLED:
            self.add(func, args, kwargs, result, func._schema.is_mutable)
        return result

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Within it an operator of `ops` that torch_npu has as one is recorded as one, its meaning
        on a CPU and all."""

        def add(fn: Any, args: Any, kwargs: Any, result: Any) -> None:
            self.add(fn, args, kwargs, result, in_place=fn.__name__.endswith("_"))

        # its form with lengths in a tensor is one operator of a graph, and looks at the table on a CPU
        return whole_operators(self, add, "paged_attention")

    def add(self, fn: Any, args: Any, kwargs: Any, result: Any, in_place: bool = False) -> None:
        known = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        outputs = _tensors(result)
        aliases = bool(outputs) and all(t.untyped_storage()._cdata in known for t in outputs)
        if aliases and not in_place:
            return  # a view by another name
        name = getattr(fn, "__name__", str(fn))
        args = tree_map(
            lambda t: t.detach() if isinstance(t, Tensor) else t, args
        )  # keeps shape and address
        into = None if aliases else _out_form(fn, outputs)
        self.launches.append(
            Launch(
                name,
                into[0] if into else fn,
                args,
                kwargs,
                [] if aliases else outputs,
                into[1] if into else None,
            )
        )


class _NoReads(TorchFunctionMode):
    """Refuses what a dispatcher does not see on a CPU: values read through the tensor's memory."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READS and not self.recorder.inside:
            raise PortError(
                f"tensor.{name}() reads values on the host while the step is captured: the host would wait "
                "for the device, and every replay would use the values of the capture"
            )
        return func(*args, **(kwargs or {}))


def _out_form(fn: Any, outputs: list[Tensor]) -> tuple[Any, dict[str, Tensor]] | None:
    """The overload that writes into given tensors (`aten::mm.out`), if this operator has one."""
    if not isinstance(fn, torch._ops.OpOverload):
        return None
    wanted = [(a.name, str(a.type)) for a in fn._schema.arguments]
    for overload in fn.overloadpacket.overloads():
        form = getattr(fn.overloadpacket, overload)
        places = [a.name for a in form._schema.arguments if a.is_out]
        plain = [(a.name, str(a.type)) for a in form._schema.arguments if not a.is_out]
        if plain == wanted and len(places) == len(outputs) > 0:
            return form, dict(zip(places, outputs, strict=True))
    return None

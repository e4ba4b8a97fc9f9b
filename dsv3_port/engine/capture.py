"""A step captured once and replayed: `torch.cuda.CUDAGraph` on cuda, `torch.npu.NPUGraph` on npu,
which share their interface.

A capture keeps the kernels that a step launches, with their addresses; a replay launches all of
them by one call, and none of the step's Python runs. So what changes between steps is written into
memory that stays: token ids into a static buffer, rows into the cache, the position into
`cache.slot`, which the step itself advances.
"""

from __future__ import annotations

import linecache
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import PortError
from ..model.cache import Cache
from ..model.decoder import DeepseekV3
from ..model.paged_cache import PagedCache

# (input_ids, pad, cache, first, further tensors) -> logits, or a tuple that begins with them
Step = Callable[..., Any]
GRAPHS = {"cuda": "CUDAGraph", "npu": "NPUGraph"}  # device -> its class in torch.cuda, torch.npu
WARM_UPS = 3  # allocators, handles and compilers settle, as torch's notes on CUDA graphs ask for
CAPTURES = 64  # graphs of one model; each keeps the memory of its results
PACKAGE = Path(__file__).parents[1]


@dataclass
class Graph:
    """One captured step. `addresses`: of all memory that it reads and writes beside its own, in the
    order of `CapturedStep.name_of`."""

    graph: Any  # torch.cuda.CUDAGraph or torch.npu.NPUGraph
    ids: Tensor  # [B, S] int64, the static input
    pad: Tensor  # [B] int64: the cache's own, or static where there is no cache
    more: tuple[Tensor, ...]  # further static inputs
    logits: Any  # where every replay writes its result: logits, or a tuple that begins with them
    addresses: list[int]


class CapturedStep:
    """run_step of a model: the first call of each (batch, length, cache) captures, every call
    replays.

    step: what is captured, the model's own `forward_step` (the same kernels, one launch) or its
    compiled form. clone_output: False hands out the graph's own logits, which the next replay
    overwrites. PortError where a step cannot be captured (with the operator and the reason) and
    where captured memory has moved; nothing ever runs eagerly instead.
    """

    def __init__(
        self,
        model: DeepseekV3,
        step: Step,
        *,
        clone_output: bool = True,
        captures: int = CAPTURES,
    ) -> None:
        kind = model.device.type
        require_graphs(kind)
        self.model, self.step = model, step
        self.clone_output, self.captures = clone_output, captures
        self.eager = step in model.steps.values()
        self.runtime: Any = torch.get_device_module(kind)
        self.new_graph = getattr(self.runtime, GRAPHS[kind])
        self.stream = self.runtime.Stream()
        self.pool: Any = None  # one for all: results in between are never needed at the same time
        self.places = list(_places(model))
        # torch_npu's graphs can take new host numbers for their fused attentions
        self.updates = kind == "npu" and model.plan.cache == "paged"
        # a graph goes with its cache, whose memory it holds the addresses of
        self.of_cache: weakref.WeakKeyDictionary[Cache, dict[Any, Graph]] = (
            weakref.WeakKeyDictionary()
        )
        self.without_cache: dict[Any, Graph] = {}

    @property
    def graphs(self) -> list[Graph]:
        """All that are alive."""
        return [g for kept in (*self.of_cache.values(), self.without_cache) for g in kept.values()]

    def __call__(
        self, input_ids: Tensor, pad: Tensor, cache: Cache | None, first: bool, *more: Tensor
    ) -> Any:
        """As the step that it captured: input_ids [B, S], pad [B] -> logits."""
        kept = self.without_cache if cache is None else self.of_cache.setdefault(cache, {})
        key = (*input_ids.shape, first)
        if key not in kept:
            kept[key] = self.capture(input_ids, pad, cache, first, *more)
        graph = kept[key]
        self._same_addresses(graph, pad, cache)
        for kept_input, new in zip((graph.ids, *graph.more), (input_ids, *more), strict=True):
            kept_input.copy_(new)
        if cache is None:
            graph.pad.copy_(pad)
        graph.graph.replay()
        if isinstance(cache, PagedCache) and self.updates:
            # host numbers of the captured attentions: a replay waits for them
            graph.graph.update(cpu_update_input=[{"actual_seq_kvlen": cache.kv_lengths}])
        return tree_map(torch.clone, graph.logits) if self.clone_output else graph.logits

    def capture(
        self, input_ids: Tensor, pad: Tensor, cache: Cache | None, first: bool, *more: Tensor
    ) -> Graph:
        """Warm up, then capture; nothing is computed but what the warm-up writes, at positions that
        the first replay writes again."""
        if len(self.graphs) >= self.captures:
            raise PortError(
                f"{self.captures} graphs are captured, one for each batch, prompt length and cache: pad "
                "prompts to a fixed length and keep one cache, or drop caches that are no longer needed"
            )
        if (
            not self.graphs
        ):  # torch_npu takes no pool again whose graphs have all gone with their caches
            self.pool = self.runtime.graph_pool_handle()
        ids, more = input_ids.clone(), tuple(m.clone() for m in more)
        pad = pad.clone() if cache is None else pad
        graph = self.new_graph()
        before = self._addresses(pad, cache)
        here = self.runtime.current_stream()
        self.stream.wait_stream(here)
        with self.runtime.stream(self.stream), torch.no_grad():
            self._warm_up(ids, pad, cache, first, *more)
            result = self._record(graph, ids, pad, cache, first, *more)
        here.wait_stream(self.stream)
        if moved := self._moved(before, pad, cache):
            raise PortError(
                f"the step cannot be captured: it puts {moved} into new memory, and every replay would "
                "write to the old; a form that writes in place is needed"
            )
        return Graph(graph, ids, pad, more, result, before)

    def _warm_up(self, ids: Tensor, pad: Tensor, cache: Cache | None, *more: Any) -> None:
        """The step advances the slot; it is put back, so that all calls are the same one."""
        slot = pad if cache is None else cache.slot
        kept = slot.clone()
        try:
            for turn in range(WARM_UPS):
                # what is compiled has been looked through by the compiler
                with _Meetings() if self.eager and turn == 0 else nullcontext():
                    self.step(ids, pad, cache, *more)
                slot.copy_(kept)
        except BaseException:
            slot.copy_(kept)
            raise

    def _record(self, graph: Any, *given: Any) -> Any:
        seen = _Last()
        try:
            with (
                self.runtime.graph(
                    graph,
                    pool=self.pool,
                    stream=self.stream,
                    capture_error_mode="thread_local",
                    **({"auto_dispatch_capture": True} if self.updates else {}),
                ),
                seen if self.eager else nullcontext(),
            ):
                return self.step(*given)
        except Exception as error:
            # ending a capture that failed raises too: the first error says more
            cause = error.__context__ or error
            text = " ".join(f"{type(cause).__name__}: {cause}".split())[:400]
            place = _place(reversed(list(traceback.walk_tb(cause.__traceback__))))
            raise PortError(
                f"the step cannot be captured: {seen.name}{place} is refused: {text}"
            ) from error

    def _addresses(self, pad: Tensor, cache: Cache | None) -> list[int]:
        """Before each replay: names are made when one is needed."""
        found = [owner[key].data_ptr() for _, owner, key in self.places]
        if cache is not None:
            found += [pad.data_ptr(), cache.slot.data_ptr()]
            found += [buffer.data_ptr() for layer in cache.buffers for buffer in layer]
            if isinstance(cache, PagedCache):
                found.append(cache.table.data_ptr())
        return found

    def name_of(self, number: int, cache: Cache | None) -> str:
        """Of an address: weights and buffers of the model, then the cache's."""
        if number < len(self.places) or cache is None:
            return self.places[number][0]
        number -= len(self.places)
        if number < 2:
            return ("the cache's padding", "the cache's slot")[number]
        layer, buffer = divmod(number - 2, len(cache.widths))
        if layer == len(cache.buffers):
            return "the cache's block table"
        return f"buffer {buffer} of the cache's layer {layer}"

    def _moved(self, before: list[int], pad: Tensor, cache: Cache | None) -> str:
        """The first name whose address is another; "" where none is."""
        now = self._addresses(pad, cache)
        if before == now:
            return ""
        changed = (i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
        return self.name_of(next(changed), cache)

    def _same_addresses(self, graph: Graph, pad: Tensor, cache: Cache | None) -> None:
        if moved := self._moved(graph.addresses, pad, cache):
            raise PortError(
                f"{moved} lies at another address than when the step was captured, and a replay would use "
                "the old memory: write new values in place (tensor.copy_), or compile the model again"
            )


def require_graphs(kind: str) -> None:
    """PortError where a device of that kind has nothing to capture into."""
    if kind not in GRAPHS:
        raise PortError(
            f"device {kind!r} has no graph to capture a step into: use device cuda or npu, or graph mode "
            "ge, which compiles"
        )


def _places(model: DeepseekV3) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(name, dict that holds it, key) of every weight and buffer: what stands there now, whatever
    was put in its place."""
    for path, module in model.named_modules():
        for owner in (module._parameters, module._buffers):
            for key, tensor in owner.items():
                if tensor is not None:
                    yield f"{path}.{key}" if path else key, owner, key


class _Last(TorchDispatchMode):
    """Knows the operator that was called last."""

    name = "compiled code"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.name = func.name()
        return func(*args, **(kwargs or {}))


class _Meetings(TorchDispatchMode):
    """Refuses what makes the host and the device meet, by operator and place: a capture that runs
    into it leaves the device in a state of error, and CUDA's own message names neither."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if reason := _meets(func, args, kwargs):
            place = _place(traceback.walk_stack(sys._getframe(1)))
            raise PortError(f"the step cannot be captured: {func.name()}{place} {reason}")
        return func(*args, **kwargs)


def _meets(func: Any, args: Any, kwargs: dict[str, Any]) -> str:
    """Why an operator needs the host; "" where it does not."""
    aten = torch.ops.aten
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    source = tensors[0].device.type if tensors else ""
    target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else source
    if func is aten.copy_.default:
        source, target = args[1].device.type, args[0].device.type
    if source and source != target:
        to_host = target == "cpu"
        return "reads values on the host" if to_host else "copies values from the host's memory"
    if all(t.device.type == "cpu" for t in tensors):
        return ""
    if func in (aten.index.Tensor, aten.index_put_.default):  # a mask's shape is in its values
        indices = [t for t in tree_leaves(args[1]) if isinstance(t, Tensor)]
        masked = any(t.dtype in (torch.bool, torch.uint8) for t in indices)
        return "takes a mask as index, whose number of rows the host must know" if masked else ""
    if torch.Tag.data_dependent_output in func.tags:
        return "reads values on the host"
    if torch.Tag.dynamic_output_shape in func.tags:
        return "has a result whose shape depends on values, which the host must know"
    return ""


def _place(frames: Iterable[tuple[FrameType, int]]) -> str:
    """The innermost line of this package, with the NPU operator around it: " in npu_grouped_matmul
    (ops/cuda.py: `ends = cumulative.tolist()`)". frames: innermost first."""
    place = operator = ""
    for frame, line in frames:
        file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if not file.is_relative_to(PACKAGE) or file == Path(__file__):
            continue
        if not place:
            text = linecache.getline(str(file), line).strip()
            place = f" ({file.relative_to(PACKAGE).as_posix()}: `{text}`)"
        if not operator and name.startswith(("npu_", "scatter_update")):
            operator = f" in {name}"
    return operator + place

"""torch_npu's captured graphs: one used like a Tape, and what those of the host stand-in hold:
launches, addresses and bytes, and how many launches they take the place of."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..engine.graph import compile_steps
from ..engine.loading import load_model
from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..plan import PortPlan
from .tape import Tape


class DeviceTape(Tape):
    """A graph that torch_npu captured (torch.npu.graph), with a Tape's inputs, output, run and
    replay."""

    def __init__(self, graph: Any, inputs: list[Tensor], output: Any) -> None:
        super().__init__([], inputs, output)
        self.graph = graph

    @classmethod
    def capture(cls, fn: Callable[..., Any], *inputs: Tensor) -> DeviceTape:
        """Record fn on static copies of `inputs`, tensors on an NPU. A device records and computes
        nothing, so it is replayed once, for the result to be there as after Tape.capture."""
        npu: Any = vars(torch)["npu"]  # torch_npu puts it there
        static, graph = [t.clone() for t in inputs], npu.NPUGraph()
        with npu.graph(graph), torch.no_grad():
            output = fn(*static)
        made = cls(graph, static, output)
        made.run()
        return made

    def run(self) -> Any:
        self.graph.replay()
        return self.output


def load(
    path: str | Path,
    plan: PortPlan,
    device: str = "npu",
    dtype: str = "bfloat16",
    layers: int | None = None,
) -> DeepseekV3:
    """`load_model`, eager; `layers` keeps only the first ones. Two of the embedded model are a
    dense one and an MoE
    one: everything that a graph is made of, in half the time to compile it."""
    model = load_model(path, plan.replace(graph="eager"), device, dtype)
    return model if layers is None else first_layers(model, layers)


def first_layers(model: DeepseekV3, layers: int) -> DeepseekV3:
    """The model without the rest of its layers; returns it. A graph of one is as whole or as broken as
    of all, and takes less time to make."""
    model.model.layers = model.model.layers[:layers]
    model.config = dataclasses.replace(model.config, num_hidden_layers=layers)
    if model.mtp is not None:
        model.mtp.layer = layers  # its rows in a cache follow those of the last layer
    return model


def two_calls(model: DeepseekV3, batch: int, length: int) -> Any:
    """A prefill of [batch, length] zeros and one decode step; returns their cache."""
    ids = torch.zeros(batch, length, dtype=torch.int64, device=model.device)
    cache = model.new_cache(batch, length + 2)
    model(ids, cache=cache)
    model(ids[:, :1].contiguous(), cache=cache)
    return cache


@dataclass(frozen=True)
class Captured:
    """One captured graph of the host stand-in. A launch is a kernel or a copy on its tape."""

    launches: dict[str, int]  # by operator, most frequent first
    buffers: dict[
        int, int
    ]  # address -> bytes of the results that the graph writes, memory it keeps reserved
    caches: dict[int, int]  # address -> bytes of the cache buffers it was captured with

    @property
    def nbytes(self) -> int:
        return sum(self.buffers.values())

    def row(self, name: str) -> dict[str, str | int]:
        """For show.table."""
        return {
            "graph": name,
            "launches in one replay": sum(self.launches.values()),
            "static buffers": len(self.buffers),
            "KiB": f"{self.nbytes / 1024:.0f}",
            "first address": f"{min(self.buffers):#x}",
            "last": f"{max(self.buffers):#x}",
        }


def eager_launches(
    path: str | Path, plan: PortPlan, *, dtype: str = "bfloat16", batch: int = 2, length: int = 12
) -> int:
    """Kernels that the host launches one by one in one eager decode step on the host stand-in."""
    from ..hostnpu import kernels

    model = load(path, plan, dtype=dtype)
    cache = two_calls(model, batch, length)
    before = kernels.calls["kernel"]
    model(torch.zeros(batch, 1, dtype=torch.int64, device=model.device), cache=cache)
    return kernels.calls["kernel"] - before


def capture(
    path: str | Path,
    plan: PortPlan,
    *,
    dtype: str = "bfloat16",
    batch: int = 2,
    length: int = 12,
    layers: int | None = None,
) -> list[Captured]:
    """Capture prefill and decode as aclgraph and show the two tapes: [prefill, decode]."""
    from .. import hostnpu
    from ..hostnpu import tape

    if not hostnpu.enabled() or tape.tapes is None:
        raise PortError(
            "capture: only the host stand-in shows what a captured graph holds; hostnpu.enable() first"
        )
    torch._dynamo.reset()
    model = compile_steps(load(path, plan, dtype=dtype, layers=layers), "aclgraph")
    known = set(tape.tapes.graphs)
    cache = two_calls(model, batch, length)
    caches = {t.data_ptr(): t.nbytes for layer in cache.buffers for t in layer}
    new = [
        [e for e in g if isinstance(e, tape.Entry)]
        for key, g in tape.tapes.graphs.items()
        if key not in known
    ]
    return [_captured(entries, caches) for entries in new if entries]


def _captured(entries: list[Any], caches: dict[int, int]) -> Captured:
    outs = {t.data_ptr(): t.nbytes for e in entries for t in e.outs if t.data_ptr() not in caches}
    return Captured(
        dict(Counter(e.name.removeprefix("aten::") for e in entries).most_common()), outs, caches
    )


def memory_per_length(
    path: str | Path, plan: PortPlan, lengths: tuple[int, ...], **shape: Any
) -> dict[int, int]:
    """{padded prompt length: bytes that the captured prefill keeps}: every length is a capture of
    its own."""
    return {
        length: capture(path, plan, length=length, **shape)[0].nbytes
        for length in tqdm(
            lengths, desc="capture", unit="graph", leave=False, delay=2.0, file=sys.stdout
        )
    }

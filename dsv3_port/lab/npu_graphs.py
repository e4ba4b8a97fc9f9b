"""Notebooks 07 and 08: what torchair makes of a step, counted. GE operators per rung, launches, captured memory.

Everything here is a count, an address or a size, never a time: it holds on the host stand-in as it does on an NPU. The
model must be on device npu (`hostnpu.enable()`, or a real one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..engine.graph import compile_steps, converted_graphs, graph_blockers
from ..engine.runner import load_model
from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..steps import STEPS, PortPlan

# no kernel behind them: inputs, constants, outputs, and changes of shape alone
BOOKKEEPING = frozenset(("Data", "Const", "NetOutput", "Reshape", "Squeeze", "Unsqueeze", "Shape", "RefData"))


def rungs() -> dict[str, PortPlan]:
    """The ladder's rungs that can be one graph, by the step that was added last."""
    plans = {s.id: PortPlan.upto(s.id).replace(graph="eager") for s in STEPS if s.field != "graph"}
    return {name: plan for name, plan in plans.items() if not graph_blockers(plan)}


def ge_census(path: str | Path, plan: PortPlan, *, dtype: str = "bfloat16", batch: int = 2, length: int = 12
              ) -> dict[str, dict[str, int]]:
    """{"prefill": {GE operator type: how many}, "decode": ...} of torchair's conversion, most frequent first.

    path: a checkpoint folder. Prefill of [batch, length] tokens, decode with a cache of length + 2 positions.
    """
    torch._dynamo.reset()
    model = compile_steps(load_model(path, plan.replace(graph="eager"), "npu", dtype), "ge")
    with converted_graphs() as found:
        _two_calls(model, batch, length)
    if len(found) != 2:
        raise PortError(f"prefill and decode should be two GE graphs, torchair made {len(found)}")
    counts = [dict(sorted(Counter(op.type for op in graph.op).items(), key=lambda item: (-item[1], item[0])))
              for graph in found]
    return {"prefill": counts[0], "decode": counts[1]}


def ladder_census(path: str | Path, phase: str = "decode", **shape: Any) -> dict[str, dict[str, int]]:
    """{rung: {operator type: how many}} without BOOKKEEPING: what is left are kernels to launch."""
    return {name: {kind: n for kind, n in ge_census(path, plan, **shape)[phase].items() if kind not in BOOKKEEPING}
            for name, plan in rungs().items()}


def census_rows(census: Mapping[str, Mapping[str, int]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """A ladder_census as (header, rows) for show.table: operator types down, rungs across, the total last."""
    kinds = sorted({k for counts in census.values() for k in counts}, key=lambda k: (-max(
        counts.get(k, 0) for counts in census.values()), k))
    rows = [(kind, *(str(counts.get(kind, "")) for counts in census.values())) for kind in kinds]
    return ["GE operator", *census], [*rows, ("all", *(str(sum(counts.values())) for counts in census.values()))]


def _two_calls(model: DeepseekV3, batch: int, length: int) -> Any:
    ids = torch.zeros(batch, length, dtype=torch.int64, device=model.device)
    cache = model.new_cache(batch, length + 2)
    model(ids, cache=cache)
    model(ids[:, :1].contiguous(), cache=cache)
    return cache


# ---- host stand-in: what a capture recorded -------------------------------------------------------------------------

@dataclass(frozen=True)
class Captured:
    """One captured graph of the host stand-in. A launch is a kernel or a copy on its tape."""

    launches: dict[str, int]  # by operator, most frequent first
    buffers: dict[int, int]  # address -> bytes of the results that the graph writes, memory it keeps reserved
    caches: dict[int, int]  # address -> bytes of the cache buffers it was captured with

    @property
    def nbytes(self) -> int:
        return sum(self.buffers.values())


def launches(path: str | Path, plan: PortPlan, *, dtype: str = "bfloat16", batch: int = 2, length: int = 12
             ) -> dict[str, int]:
    """Host calls of one decode step: {"eager": kernels launched one by one, "graph": replays, "in it": recorded}."""
    from ..hostnpu import kernels

    eager = load_model(path, plan.replace(graph="eager"), "npu", dtype)
    cache = _two_calls(eager, batch, length)
    ids = torch.zeros(batch, 1, dtype=torch.int64, device=eager.device)
    before = kernels.calls["kernel"]
    eager(ids, cache=cache)
    return {"eager": kernels.calls["kernel"] - before, "graph": 1,
            "in it": sum(capture(path, plan, dtype=dtype, batch=batch, length=length)[-1].launches.values())}


def capture(path: str | Path, plan: PortPlan, *, dtype: str = "bfloat16", batch: int = 2, length: int = 12
            ) -> list[Captured]:
    """Capture prefill and decode as aclgraph and show the two tapes: [prefill, decode]."""
    from .. import hostnpu
    from ..hostnpu import tape

    if not hostnpu.enabled() or tape.tapes is None:
        raise PortError("capture: only the host stand-in shows what a captured graph holds; hostnpu.enable() first")
    torch._dynamo.reset()
    model = compile_steps(load_model(path, plan.replace(graph="eager"), "npu", dtype), "aclgraph")
    known = set(tape.tapes.graphs)
    cache = _two_calls(model, batch, length)
    caches = {t.data_ptr(): t.nbytes for layer in cache.buffers for t in layer}
    new = [[e for e in g if isinstance(e, tape.Entry)] for key, g in tape.tapes.graphs.items() if key not in known]
    return [_captured(entries, caches) for entries in new if entries]


def _captured(entries: list[Any], caches: dict[int, int]) -> Captured:
    outs = {t.data_ptr(): t.nbytes for e in entries for t in e.outs if t.data_ptr() not in caches}
    return Captured(dict(Counter(e.name.removeprefix("aten::") for e in entries).most_common()), outs, caches)


def memory_per_length(path: str | Path, plan: PortPlan, lengths: tuple[int, ...], **shape: Any) -> dict[int, int]:
    """{padded prompt length: bytes that the captured prefill keeps}: every length is a capture of its own."""
    return {length: capture(path, plan, length=length, **shape)[0].nbytes for length in lengths}

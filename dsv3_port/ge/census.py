"""Notebooks 07 and 08: what torchair makes of a step, counted. GE operators per rung, launches,
captured memory.

Everything here is a count, an address or a size, never a time: it holds on the host stand-in as it
does on an NPU. The model must be on device npu (`hostnpu.enable()`, or a real one).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..course.show import Shown, banner
from ..engine.graph import compile_steps, converted_graphs, graph_blockers
from ..engine.loading import load_model
from ..errors import PortError
from ..hostnpu.ge_cost import kernels_of as kernels_of
from ..model.decoder import DeepseekV3
from ..plan import PortPlan
from ..plots.style import title_of
from ..steps import STEPS

FULL = "full port"


@dataclass(frozen=True)
class HostNpu(Shown):
    """What `host_npu` shows; true where the host NPU is there."""

    ready: bool = False

    def __bool__(self) -> bool:
        return self.ready


def host_npu() -> HostNpu:
    """Enable the host NPU for a notebook: its banner, or one sentence why that part is left out
    here."""
    from .. import hostnpu

    try:
        hostnpu.enable()
        with (
            _no_stderr()
        ):  # the allocator's first call writes a line about padding there, past Python
            torch.empty(1, device="npu")
        _hide_torchairs_warnings()
    except PortError as error:
        return HostNpu(
            "", f"The part of this page that runs on the host NPU is left out here: {error}."
        )
    shown = banner("host-npu")
    return HostNpu(shown.html, shown.markdown, True)


def _hide_torchairs_warnings() -> None:
    """At every compilation: that weights must keep their address, which they do. torchair puts a
    filter of its own in front of everybody's, so a filter does not keep them off the page."""
    show = warnings.showwarning

    @functools.wraps(show)
    def others(message: Any, category: Any, filename: str, *args: Any, **kwargs: Any) -> None:
        if "torch_npu" not in Path(filename).parts:
            show(message, category, filename, *args, **kwargs)

    if not hasattr(show, "__wrapped__"):
        warnings.showwarning = others


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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
    if layers is not None:
        model.model.layers = model.model.layers[:layers]
        model.config = dataclasses.replace(model.config, num_hidden_layers=layers)
    return model


def forms() -> dict[str, PortPlan]:
    """The full port, and without each step that a graph can do without (on one card tensor_parallel
    changes none)."""
    full = PortPlan.full().replace(graph="eager")
    plans = {
        f"without {s.id}": full.minus(s.id)
        for s in STEPS
        if s.field not in ("graph", "tensor_parallel")
    }
    return {FULL: full, **{name: plan for name, plan in plans.items() if not graph_blockers(plan)}}


def ge_census(
    path: str | Path,
    plan: PortPlan,
    *,
    dtype: str = "bfloat16",
    batch: int = 2,
    length: int = 12,
    layers: int | None = 2,
) -> dict[str, dict[str, int]]:
    """{"prefill": {GE operator type: how many}, "decode": ...} of torchair's conversion, most
    frequent first.

    path: a checkpoint folder. Prefill of [batch, length] tokens, decode with a cache of length + 2
        positions.
    """
    torch._dynamo.reset()
    model = compile_steps(load(path, plan, dtype=dtype, layers=layers), "ge")
    with converted_graphs() as found:
        _two_calls(model, batch, length)
    if len(found) != 2:
        raise PortError(f"prefill and decode should be two GE graphs, torchair made {len(found)}")
    return {"prefill": count(found[0]), "decode": count(found[1])}


def count(graph: Any) -> dict[str, int]:
    """{operator type: how many} of a graph that `converted_graphs` collected, most frequent first."""
    return dict(
        sorted(Counter(op.type for op in graph.op).items(), key=lambda item: (-item[1], item[0]))
    )


def decode_census(path: str | Path) -> dict[str, dict[str, int]]:
    """{form: {operator type: how many}} of one decode step, for each of `forms` that changes it; no
    bookkeeping."""
    chosen = {
        name: plan for name, plan in forms().items() if plan.lm_head == PortPlan.full().lm_head
    }
    return {
        name: kernels_of(ge_census(path, plan)["decode"])
        for name, plan in tqdm(
            chosen.items(), desc="convert", unit="graph", leave=False, delay=2.0, file=sys.stdout
        )
    }


def census_changes(census: Mapping[str, Mapping[str, int]]) -> list[dict[str, str | int]]:
    """What each step takes out of the graph and puts in, from a census of `forms`; a row for each
    step."""
    full = Counter(census[FULL])

    def text(counts: Counter[str]) -> str:
        return ", ".join(f"{n} {kind}" for kind, n in counts.most_common()) or "nothing"

    return [
        {
            "step": title_of(name.removeprefix("without ")),
            "operators without it": sum(counts.values()),
            "with it": sum(full.values()),
            "goes": text(Counter(counts) - full),
            "comes": text(full - Counter(counts)),
        }
        for name, counts in census.items()
        if name != FULL
    ]


def census_rows(census: Mapping[str, Mapping[str, int]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """{form: {operator type: how many}} as (header, rows) for show.table: types down, forms across,
    the total last."""
    kinds = sorted(
        {k for counts in census.values() for k in counts},
        key=lambda k: (-max(counts.get(k, 0) for counts in census.values()), k),
    )
    rows = [(kind, *(str(counts.get(kind, "")) for counts in census.values())) for kind in kinds]
    return ["GE operator", *census], [
        *rows,
        ("all", *(str(sum(counts.values())) for counts in census.values())),
    ]


_FX = re.compile(r"^## FX Code: (.*?) = torch\.ops\.(\w+)\.(\w+)\.", re.M)
_GE = re.compile(r"= ge\.(\w+)\(")


def fx_beside_ge(dump: str, first: str = "", last: str = "") -> list[dict[str, str]]:
    """Rows of torchair's graph_dump "py": each FX operator with the GE operators that its converter
    made of it.

    dump: the text of export_graph's graph.py. first, last: FX operators (`npu_moe_init_routing`) to
        begin and end at.
    """
    found = list(_FX.finditer(dump))
    ends = [m.start() for m in found[1:]] + [len(dump)]
    rows = [
        {
            "FX node": m[1].split(":")[0],
            "FX operator": f"{m[2]}.{m[3]}",
            "GE operators": ", ".join(_GE.findall(dump[m.end() : end])) or "(none)",
        }
        for m, end in zip(found, ends, strict=True)
    ]
    names = [row["FX operator"].partition(".")[2] for row in rows]
    for name in (first, last):
        if name and name not in names:
            raise PortError(f"this dump has no FX operator {name!r}")
    start = names.index(first) if first else 0
    return rows[start : names.index(last, start) + 1 if last else None]


def _two_calls(model: DeepseekV3, batch: int, length: int) -> Any:
    ids = torch.zeros(batch, length, dtype=torch.int64, device=model.device)
    cache = model.new_cache(batch, length + 2)
    model(ids, cache=cache)
    model(ids[:, :1].contiguous(), cache=cache)
    return cache


# ---- host stand-in: what a capture recorded ------------------------------------------------------


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
    cache = _two_calls(model, batch, length)
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
    cache = _two_calls(model, batch, length)
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

"""What torchair makes of a forward call, counted: GE operators per form, and which FX operator they
came from.

Counts, never times: they hold on the host stand-in as they do on an NPU. The model must be on
device npu (`hostnpu.enable()`, or a real one).
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..count.captured import load, two_calls
from ..count.compiled import eager_prefill
from ..engine.graph import compile_steps, converted_graphs, graph_blockers
from ..errors import PortError
from ..hostnpu.ge_cost import kernels_of as kernels_of
from ..plan import PortPlan
from ..steps import STEPS, step

FULL = "full port"


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
    prefill: bool = True,
) -> dict[str, dict[str, int]]:
    """{"prefill": {GE operator type: how many}, "decode": ...} of torchair's conversion, most
    frequent first.

    path: a checkpoint folder. Prefill of [batch, length] tokens, decode with a cache of length + 2
        positions. prefill: False leaves the prompt eager, and only "decode" is converted.
    """
    torch._dynamo.reset()
    model = compile_steps(load(path, plan, dtype=dtype, layers=layers), "ge")
    phases = ("prefill", "decode") if prefill else ("decode",)
    if not prefill:
        eager_prefill(model)
    with converted_graphs() as found:
        two_calls(model, batch, length)
    if len(found) != len(phases):
        raise PortError(
            f"{' and '.join(phases)} should be a GE graph each, torchair made {len(found)}"
        )
    return {phase: count(graph) for phase, graph in zip(phases, found, strict=True)}


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
        name: kernels_of(ge_census(path, plan, prefill=False)["decode"])
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
            "step": f"{s.number} {s.title}",
            "operators without it": sum(counts.values()),
            "with it": sum(full.values()),
            "goes": text(Counter(counts) - full),
            "comes": text(full - Counter(counts)),
        }
        for name, counts in census.items()
        if name != FULL
        for s in [step(name.removeprefix("without "))]
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

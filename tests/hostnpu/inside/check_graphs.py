"""The whole model as a graph on device npu: GE graph, reduce-overhead and npugraph_ex, against
device cpu.

With the CPU's own faster kernels set aside both devices compute with the same ones, and everything
is equal to the
last bit: logits, greedy tokens and caches. Compiling is what takes time here, so cases are chosen
    to cover pairs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from dsv3_port import STEPS, PortPlan
from dsv3_port.engine.graph import compile_steps, converted_graphs, graph_blockers
from dsv3_port.engine.torchair import NPU_BACKENDS, npu_backend
from dsv3_port.hostnpu import graphs, tape
from dsv3_port.hostnpu.ge_table import OPERATORS
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.plan import CHOICES
from tests.hostnpu.inside import check_model
from tests.hostnpu.inside.short import load

FULL = PortPlan.full()
LENGTH = 10
NEEDED = ("experts", "cache")  # upstream's forms of these cannot be a graph
# check_mtp.py, check_int8.py, check_nz.py and check_prolog.py have the graphs of these
OWN = ("mtp", "quant", "weight_format", "mla_prolog", "kv_cache_dtype")
# decode_attention has a form of its own on cuda alone
FREE = tuple(f for f in CHOICES if f not in (*NEEDED, *OWN, "graph", "decode_attention"))
# Two sets of three rows out of five always share one, and none holds the other; with the row of no
# set that is every pair of forms of any two fields.
SETS = list(combinations(range(1, 6), 3))
PLANS = [
    FULL.replace(
        **{field: CHOICES[field][row in rows] for field, rows in zip(FREE, SETS, strict=True)}
    )
    for row in range(6)
]

same_kernels = check_model.same_kernels  # an autouse fixture


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


@dataclass
class Run:
    logits: list[Tensor]
    tokens: Tensor  # [steps, B]
    cache: list[Tensor]
    graphs: list[int]  # compiled so far, after prefill, after the first decode step and at the end


def run(model: DeepseekV3, batch: int, steps: int, length: int = LENGTH, cache: Any = None) -> Run:
    """Greedy decoding after a prompt whose first row is padded."""
    ids = torch.randint(
        3, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(7)
    )
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, :4] = 0
    cache = cache or model.new_cache(batch, length + steps)
    before, seen = counters["stats"]["unique_graphs"], []
    logits, tokens = [model(ids.to(model.device), mask.to(model.device), cache)], []
    for _ in range(steps):
        seen.append(counters["stats"]["unique_graphs"] - before)
        tokens.append(logits[-1][:, -1].argmax(-1))
        logits.append(model(tokens[-1].unsqueeze(1), cache=cache))
    seen.append(counters["stats"]["unique_graphs"] - before)
    return Run(
        [x.cpu() for x in logits],
        torch.stack(tokens).cpu(),
        [t.cpu() for layer in cache.buffers for t in layer],
        [*seen[:2], seen[-1]],
    )


def assert_equal(got: Run, want: Run) -> None:
    assert torch.equal(got.tokens, want.tokens)
    for a, b in zip(got.logits + got.cache, want.logits + want.cache, strict=True):
        assert torch.equal(a, b)


# every pair of mode, dtype and batch; 64 tokens in each mode (check_ge.py and notebooks: with all
# layers)
CASES = [
    ("ge", "float32", 1, 4),
    ("ge", "bfloat16", 3, 64),
    ("ge", "float16", 1, 4),
    ("npugraph_ex", "float32", 3, 4),
    ("npugraph_ex", "bfloat16", 1, 64),
    ("npugraph_ex", "float16", 3, 4),
    ("reduce-overhead", "float32", 1, 4),
    ("reduce-overhead", "bfloat16", 3, 64),
    ("reduce-overhead", "float16", 1, 4),
]


@dataclass
class Ported:
    """What the full port gave as graphs, beside device cpu: with a cache, and where graphs are captured
    with the same one again and with another."""

    want: Run
    runs: list[Run] = field(default_factory=list)
    captured: list[int] = field(default_factory=list)  # in each run
    replayed: list[int] = field(default_factory=list)
    broke: bool = False


@functools.cache
def ported(mode: str, dtype: str, batch: int, steps: int) -> Ported:
    """Compiling is what takes time here: a case runs once, and tests look at what it gave."""
    found, tapes = Ported(run(load(FULL, "cpu", dtype), batch, steps)), tape.tapes
    assert tapes is not None
    breaks = dict(counters["graph_break"])
    model = compile_steps(load(FULL, "npu", dtype), mode)
    cache = model.new_cache(batch, LENGTH + steps)
    caches = [cache]
    if dtype == "float32" and mode != "ge":
        caches += [cache, model.new_cache(batch, LENGTH + steps)]
    for here in caches:
        here.reset()
        before = tapes.captured, tapes.replayed
        found.runs.append(run(model, batch, steps, cache=here))
        found.captured.append(tapes.captured - before[0])
        found.replayed.append(tapes.replayed - before[1])
    found.broke = dict(counters["graph_break"]) != breaks
    return found


@pytest.mark.parametrize(("mode", "dtype", "batch", "steps"), CASES)
def test_full_port(mode: str, dtype: str, batch: int, steps: int) -> None:
    found = ported(mode, dtype, batch, steps)
    assert_equal(found.runs[0], found.want)
    assert found.runs[0].graphs == [1, 2, 2]  # one for prefill, one for decode, none later
    assert not found.broke
    assert found.replayed[0] == (0 if mode == "ge" else steps + 1)


@pytest.mark.parametrize("mode", ["npugraph_ex", "reduce-overhead"])
def test_another_cache_is_captured_again_and_a_known_one_is_not(mode: str) -> None:
    found = ported(*next(c for c in CASES if c[:2] == (mode, "float32")))
    assert len(found.runs) == 3
    for got in found.runs:
        assert_equal(got, found.want)
    assert [got.graphs for got in found.runs] == [[1, 2, 2], [0, 0, 0], [0, 0, 0]]
    assert found.captured[0] >= 2 and found.captured[1] == 0 and found.captured[2] >= 2


def test_ge_graphs_are_interpreted_here() -> None:
    assert graphs.engine() == "interpret"


def test_plans_hold_every_pair_of_forms() -> None:
    for first, second in combinations(FREE, 2):
        found = {(getattr(p, first), getattr(p, second)) for p in PLANS}
        # a third form, "plain" prefill, is the first one's operators on an NPU
        assert found == set(product(CHOICES[first][:2], CHOICES[second][:2]))


@dataclass
class Converted:
    """One of PLANS in GE graphs beside the eager model; `last`: both where the last of equal keys is
    sorted first."""

    got: Run
    want: Run
    graphs: list[Any]
    last: tuple[Run, Run] | None = None


KEYS = next(row for row, plan in enumerate(PLANS) if not plan.npu_routing_kernel)  # it sorts


@functools.cache
def converted(row: int) -> Converted:
    plan = PLANS[row]
    eager, model = load(plan), compile_steps(load(plan), "ge")
    with converted_graphs() as graphs:
        found = Converted(run(model, 2, 2), run(eager, 2, 2), graphs)
    if row == KEYS:
        with torch.library._scoped_library("aten", "IMPL") as library:
            library.impl("sort", last_first, "CPU")
            equal_keys()
            found.last = run(model, 2, 2), run(eager, 2, 2)
    return found


def last_first(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    values, order = x.flip(dim).sort(dim=dim, descending=descending, stable=True)
    return values, x.shape[dim] - 1 - order


def equal_keys() -> None:
    x, sort = torch.tensor([2, 1, 2, 1, 2, 1]), OPERATORS["Sort"].function
    assert x.sort()[1].tolist() == [5, 3, 1, 4, 2, 0]
    assert sort(x, -1, False, False)[1].tolist() == [5, 3, 1, 4, 2, 0]
    assert sort(x, -1, False, True)[1].tolist() == [1, 3, 5, 0, 2, 4]


@pytest.mark.parametrize("row", range(6))
def test_every_pair_of_forms_converts(row: int) -> None:
    """And the converted GE graphs themselves compute the same: enabled.py has them interpreted."""
    found = converted(row)
    assert_equal(found.got, found.want)
    assert len(found.graphs) == 2 and all(len(graph.op) > 100 for graph in found.graphs)


def test_equal_keys_in_any_order() -> None:
    """Experts are sorted without a promise about equal ones, and processors differ in what they do.
    Whatever sort() does, the converted graph does the same: here the last of equal ones is first."""
    last = converted(KEYS).last
    assert last is not None
    assert_equal(*last)
    assert last[0].graphs == [0, 0, 0], "the graphs of the first run"


def test_what_does_not_convert_says_why() -> None:
    """Of all combinations of steps exactly those with upstream's expert loop or cache, and both are
    refused alike."""
    ids = [s.id for s in STEPS if s.field != "graph"]
    for chosen in (c for n in range(len(ids) + 1) for c in combinations(ids, n)):
        reasons = " ".join(graph_blockers(PortPlan.with_steps(*chosen)))
        assert [i for i in ("gmm_routing", "fixed_kv_cache") if repr(i) in reasons] == [
            i for i in ("gmm_routing", "fixed_kv_cache") if i not in chosen
        ]


@pytest.mark.parametrize(("mode", "kernel"), [("ge", True), ("npugraph_ex", False)])
def test_dynamic_sizes(mode: str, kernel: bool) -> None:
    plan = FULL.replace(npu_routing_kernel=kernel)
    model, on_cpu, new = compile_steps(load(plan), mode, dynamic=True), load(plan, "cpu"), []
    for length in (9, 14):
        got = run(model, 2, 2, length)
        assert_equal(got, run(on_cpu, 2, 2, length))
        new.append(got.graphs)
    # npu_moe_init_routing's active_num is an int: a prefill graph for each length, one decode graph
    # for all
    assert new == [[1, 2, 2], [1, 1, 1] if kernel else [0, 0, 0]]


def test_aclgraph_means_npugraph_ex_here() -> None:
    assert npu_backend("aclgraph") == "npugraph_ex"
    assert set(NPU_BACKENDS) == {"ge", "npugraph_ex", "reduce-overhead"}

"""Capture away from a device that has it: what is refused, what is called how. On npu:
tests/hostnpu/inside/check_captured_step.py; on a GPU, where there is one: the end of this file."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from dsv3_port import PortPlan, generate, load_model, load_tokenizer
from dsv3_port.bench import cases
from dsv3_port.bench.records import Record
from dsv3_port.engine import graph
from dsv3_port.engine.capture import CapturedStep
from dsv3_port.engine.graph import compile_steps, label, made
from dsv3_port.engine.loading import with_plan
from dsv3_port.errors import PortError
from dsv3_port.model.decoder import DeepseekV3
from tests.random_models import random_model

ROOT = Path(__file__).parents[2]
TINY = ROOT / "data" / "tiny-dsv3"
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("mode", ["captured", "compiled-captured"])
def test_a_cpu_has_nothing_to_capture_into(mode: str) -> None:
    model = random_model(PortPlan.full())
    with pytest.raises(PortError, match="device 'cpu' has no graph.*graph mode ge"):
        compile_steps(model, mode)
    assert made(model) == "eager"


def test_aclgraph_on_a_cpu_is_called_what_it_is() -> None:
    model = compile_steps(random_model(PortPlan.full()), "aclgraph")
    assert (made(model), label(model)) == ("inductor", "ge")
    assert made(graph.run_eager(model)) == label(model) == "eager"


class NoGraph:
    """What CapturedStep asks torch.cuda for when it is made."""

    def __init__(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    ("mode", "is_made", "called"),
    [
        ("ge", "inductor", "ge"),
        ("aclgraph", "captured", "aclgraph"),
        ("captured", "captured", "aclgraph"),
        ("compiled-captured", "compiled-captured", "ge in aclgraph"),
    ],
)
def test_modes_on_cuda_without_a_gpu(mode: str, is_made: str, called: str) -> None:
    """Only what is handed to whom; nothing is captured here."""
    model, options = random_model(PortPlan.full()), {}
    runtime = SimpleNamespace(Stream=NoGraph, CUDAGraph=NoGraph, graph_pool_handle=NoGraph)

    def compile_(function: Any, **settings: Any) -> Any:
        options.update(settings)
        return lambda *args: function(*args)

    where = mock.PropertyMock(return_value=torch.device("cuda"))
    with (
        mock.patch.object(DeepseekV3, "device", where),
        mock.patch.object(torch, "get_device_module", lambda _: runtime),
        mock.patch.object(torch, "compile", compile_),
    ):
        compile_steps(model, mode)
    assert (made(model), label(model)) == (is_made, called)
    assert isinstance(model.run_step, CapturedStep) == (mode != "ge")
    if isinstance(model.run_step, CapturedStep):
        assert model.run_step.eager == (mode != "compiled-captured")
    assert bool(options) == (mode in ("ge", "compiled-captured"))
    # inductor's own CUDA graphs refuse a step that writes to its inputs, and say so in a log only
    assert not [name for name in options.get("options", {}) if "cudagraphs" in name]


def test_nobody_asks_for_inductors_cuda_graphs() -> None:
    for file in (*ROOT.glob("dsv3_port/**/*.py"), *ROOT.glob("ci/**/*.py")):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"triton\.cudagraphs|mode=[\"']reduce-overhead", text), file


def test_no_record_is_called_aclgraph_that_was_not_captured() -> None:
    def record(mode: str, tier: Any, name: str = "aclgraph") -> Record:
        info = {"device": tier, "device_name": "x", "versions": {}, "date": "2026-11-28"}
        return Record(name=name, samples=[1e-3], tier=tier, mode=mode, run="r", **info)

    for tier in ("cpu", "cuda"):
        with pytest.raises(PortError, match="'aclgraph' was compiled, and never captured"):
            cases.check_label(record("compiled", tier), "this")
    for right in (
        record("captured", "cuda"),
        record("compiled", "npu"),
        record("compiled", "cpu", "ge_graph"),
    ):
        cases.check_label(right, "this")
    with pytest.raises(PortError, match="a CPU captures no graph"):
        cases.graph_name("aclgraph", "cpu")
    assert cases.graph_name("aclgraph", "cuda:0") == "aclgraph"
    for bench in cases.load_all(ROOT / "data" / "recorded"):
        assert bench.tier != "cpu" or all(
            r.name != "aclgraph" for case in bench.cases for r in case.records
        )


# ---- on a GPU ------------------------------------------------------------------------------------


def decoded(model: DeepseekV3, steps: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 200, (2, 8 + steps), generator=generator).to(model.device)
    cache = model.new_cache(2, 8 + steps)
    return [model(p, cache=cache) for p in ids.split([8] + [1] * steps, dim=1)]


@gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["aclgraph", "compiled-captured"])
def test_captured_on_a_gpu(mode: str, dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    eager = load_model(TINY, PortPlan.full(), "cuda", dtype)
    model = compile_steps(with_plan(eager, eager.plan), mode)
    torch._logging.set_logs(perf_hints=True)
    for a, b in zip(decoded(eager), decoded(model), strict=True):
        if mode == "aclgraph":
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(a.abs().max()))
    step = model.run_step
    assert isinstance(step, CapturedStep) and len(step.graphs) == 2
    step.step = lambda *_: pytest.fail("the step's Python was entered")
    cache = next(iter(step.of_cache))
    cache.rewind(8)
    model(torch.ones(2, 1, dtype=torch.int64, device="cuda"), cache=cache)
    assert "skipping cudagraphs" not in caplog.text


@gpu
def test_text_on_a_gpu() -> None:
    eager = load_model(TINY, PortPlan.full(), "cuda", "float32")
    model, tokenizer = compile_steps(with_plan(eager, eager.plan), "aclgraph"), load_tokenizer(TINY)
    texts = [generate(m, tokenizer, ["Once upon a time"], 24, pad_to=16) for m in (eager, model)]
    assert texts[0][0].token_ids == texts[1][0].token_ids

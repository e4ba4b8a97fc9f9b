"""Slots on device npu: every request is itself alone on the fixed cache of device cpu, and the decode
step is captured once, whatever is admitted and ends."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import pytest
import torch

from dsv3_port import PortPlan
from dsv3_port.count.rows import row_log
from dsv3_port.engine import continuous
from dsv3_port.engine.capture import CapturedStep
from dsv3_port.engine.continuous import ContinuousBatch, Request, run_requests
from dsv3_port.engine.graph import compile_steps, converted_graphs
from dsv3_port.hostnpu import tape
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.model.paged_cache import NOBODY, Paging
from dsv3_port.model.row_cache import RowCache
from tests.hostnpu.inside import short

PAGED = PortPlan.upto("paged_cache")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def load(mode: str = "eager") -> DeepseekV3:
    model = short.load(PAGED)
    model.paging = Paging(16, poison=math.nan)
    return compile_steps(model, mode)


def requests_of(seed: int = 1) -> list[Request]:
    """Over blocks' boundaries, one that ends with its first token, and one of a single token."""
    rng = random.Random(seed)
    return [
        Request(tuple(rng.randrange(3, 900) for _ in range(length)), new)
        for length, new in ((14, 6), (16, 3), (5, 1), (1, 9), (31, 5), (7, 12))
    ]


@pytest.fixture(scope="module")
def want() -> list[list[int]]:
    model, found = short.load(PortPlan.full(), "cpu"), []
    for request in requests_of():
        cache = model.new_cache(1, 64)
        logits, text = model(torch.tensor([request.ids]), cache=cache), []
        while True:
            text.append(int(logits[0, -1].argmax()))
            if len(text) == request.max_new_tokens:
                break
            logits = model(torch.tensor([text[-1:]]), cache=cache)
        found.append(text)
    return found


def captured() -> int:
    assert tape.tapes is not None
    return int(tape.tapes.captured)


def serve(model: DeepseekV3, order: list[int], slots: int = 3) -> tuple[list[Any], ContinuousBatch]:
    requests = requests_of()
    batch = ContinuousBatch(model, slots, max(r.positions for r in requests), prefill_chunk=6)
    if model.run_step != model.forward_step:
        batch.warm_up()
    before = captured(), batch.captures
    results = run_requests(batch, [requests[n] for n in order])
    assert (captured(), batch.captures) == before, "nothing is captured or compiled after that"
    assert batch.cache.in_use == 0
    assert not any(bool(b[NOBODY].any()) for layer in batch.cache.buffers for b in layer)
    return [r.token_ids for r in results], batch


ORDERS = ((0, 1, 2, 3, 4, 5), (4, 2, 5, 0, 3, 1))


@functools.cache
def served(mode: str) -> tuple[list[list[Any]], dict[str, Any]]:
    """Compiling is what takes time here: each mode serves both orders once. The texts, and what stood
    after the first of them: the step, the cache, graphs made, captured and converted."""
    model, before = load(mode), captured()
    with converted_graphs() as graphs:
        first, batch = serve(model, list(ORDERS[0]))
        after = {
            "step": model.run_step,
            "cache": batch.cache,
            "made": batch.captures,
            "captured": captured() - before,
            "graphs": len(graphs),
        }
        second, _ = serve(model, list(ORDERS[1]))
    return [first, second], after


@pytest.mark.parametrize("mode", ["eager", "captured", "ge", "npugraph_ex", "reduce-overhead"])
def test_each_request_is_itself_alone(mode: str, want: list[list[int]]) -> None:
    for order, got in zip(ORDERS, served(mode)[0], strict=True):
        assert got == [want[n] for n in order]


def test_one_capture() -> None:
    """By hand: one NPUGraph for all steps, counted by CapturedStep and by the host NPU."""
    _, after = served("captured")
    assert isinstance(after["step"], CapturedStep)
    assert len(after["step"].of_cache[after["cache"]]) == 1
    assert after["made"] == after["captured"] == 1


def test_the_notebooks_log_counts_the_capture(want: list[list[int]]) -> None:
    """Notebook 14 records by the device's own graph where there is one."""
    before = captured()
    log = row_log(load(), requests_of(), 3)
    assert [r.token_ids for r in log.results] == want
    assert (log.recordings, captured() - before, log.held) == (1, 1, 0)


def test_one_ge_graph() -> None:
    _, after = served("ge")
    assert after["graphs"] == after["made"] == 1


def test_a_replay_that_keeps_the_lengths_of_the_capture_is_caught(
    want: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation: the captured attentions' host numbers are those of idle rows for ever."""
    expect = RowCache.expect

    def frozen(self: RowCache, new: int) -> None:
        expect(self, new)
        self.kv_lengths = [self.idle_length] * self.batch

    monkeypatch.setattr(RowCache, "expect", frozen)
    got, _ = serve(load("captured"), [0, 1, 2, 3, 4, 5])
    assert got != want


def test_a_warm_up_whose_lengths_stay_the_same_leaves_graphs_for_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Why it changes them: npugraph_ex would compile and capture again at the first requests."""
    monkeypatch.setattr(continuous, "WARM_UPS", (0, 0, 0))
    with pytest.raises(AssertionError, match="nothing is captured or compiled after that"):
        serve(load("npugraph_ex"), [0, 1, 2, 3, 4, 5])

"""Who had which row, over a decode step that is recorded once."""

from __future__ import annotations

import math

import pytest

from dsv3_port import PortError, PortPlan
from dsv3_port.count.batching import in_batches, in_slots
from dsv3_port.count.rows import row_log
from dsv3_port.engine.continuous import Request, when_all_idle
from dsv3_port.model.paged_cache import Paging
from tests.random_models import random_model

REQUESTS = [Request((5, 9, 11), n) for n in (9, 3, 4, 1, 5)]


@pytest.fixture(scope="module")
def model():
    made = random_model(PortPlan.upto("paged_cache"))
    made.paging = Paging(16, poison=math.nan)
    return made


def test_the_log_is_what_ran(model):
    """One recording, made before the first request; no two requests in a row at the same time."""
    log = row_log(model, REQUESTS, 2)
    assert log.tokens == [9, 3, 4, 1, 5] and log.occupancy == in_slots(log.tokens, 2).occupancy
    assert (log.steps, log.for_nobody, log.recordings, log.held) == (9, 1, 1, 0)
    had = [(r.row, step) for r in log.results for step in range(r.admitted, r.ended)]
    assert len(set(had)) == len(had) == sum(log.occupancy) and {row for row, _ in had} == {0, 1}
    assert [r.row for r in log.results] == [0, 1, 1, 1, 1] and log.most_blocks == 2
    assert model.run_step == model.forward_step and not model.device_lengths  # a twin ran


def test_another_rule_and_the_models_own(model, monkeypatch):
    static = row_log(model, REQUESTS, 2, admission=when_all_idle)
    assert static.occupancy == in_batches(static.tokens, 2).occupancy and static.recordings == 1
    assert (static.steps, static.for_nobody) == (15, 13)
    monkeypatch.setattr(model, "admission", when_all_idle)
    assert row_log(model, REQUESTS, 2) == static


def test_a_cache_without_blocks_is_refused():
    with pytest.raises(PortError, match="slots need a paged cache"):
        row_log(random_model(PortPlan.full()), REQUESTS, 2)

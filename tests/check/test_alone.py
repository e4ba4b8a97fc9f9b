"""Requests in shared rows are themselves alone; what is not, is named."""

from __future__ import annotations

import pytest

from dsv3_port import PortError, PortPlan
from dsv3_port.check.alone import check_alone, greedy_alone, require_alone
from dsv3_port.engine.continuous import Request, Result
from dsv3_port.model.paged_cache import Paging
from dsv3_port.model.row_cache import RowCache
from tests.random_models import random_model

REQUESTS = [
    Request((5, 9, 11), 9),
    Request((7,) * 15, 12),
    Request((4, 8), 1),
    Request((6,) * 3, 7),
]


@pytest.fixture(scope="module")
def fixed():
    return random_model(PortPlan.full())


@pytest.fixture
def paged():
    made = random_model(PortPlan.upto("paged_cache"))
    made.paging = Paging(16)
    return made


def test_every_order_is_looked_at(fixed, paged):
    logs = check_alone(fixed, paged, REQUESTS, 2, orders=3)
    assert logs[0].requests == tuple(REQUESTS) and len({log.requests for log in logs}) > 1
    assert [(log.recordings, log.held) for log in logs] == [(1, 0)] * 3
    for log in logs:
        assert set(log.requests) == set(REQUESTS)


def test_a_text_ends_where_it_does_alone(fixed):
    whole = greedy_alone(fixed, REQUESTS[0])
    assert len(whole) == 9
    stop = {whole[4]}
    assert greedy_alone(fixed, REQUESTS[0], stop) == whole[: whole.index(whole[4]) + 1]


def test_a_row_that_is_not_reset_is_named(fixed, paged, monkeypatch):
    """The mutation: a row's position counter stays where its last sequence ended."""
    begin = RowCache.begin

    def stale(self, row, limit):
        kept = self.slot[row].clone()
        one = begin(self, row, limit)
        self.slot[row] = kept.clamp(max=limit)
        return one

    monkeypatch.setattr(RowCache, "begin", stale)
    with pytest.raises(PortError, match=r"request \d in row \d: its token [1-9]\d* is another one"):
        check_alone(fixed, paged, REQUESTS, 2, orders=1)


def test_the_first_other_token_is_named():
    results = [Result(0, 0, [4, 5, 6]), Result(1, 2, [7, 8], row=3)]
    require_alone([[4, 5, 6], [7, 8]], results)
    with pytest.raises(
        PortError, match="request 1 in row 3: its token 1 is another one than alone"
    ):
        require_alone([[4, 5, 6], [7, 9]], results)
    with pytest.raises(PortError, match="request 0 in row 0: its token 2 is another one"):
        require_alone([[4, 5], [7, 8]], results)

"""Bytes written are counted exactly, and a fixed cache keeps its addresses."""

from __future__ import annotations

import pytest
import torch

from dsv3_port.count.copies import addresses, addresses_over, append_bytes, written_bytes
from dsv3_port.plan import PortPlan
from tests.random_models import random_model


def test_written_bytes():
    a, b = torch.zeros(4, 3), torch.ones(2, 3)

    def work():
        torch.cat((a, b))  # 6 x 3 floats
        a[:2].copy_(b)  # 2 x 3
        a.index_put_((torch.tensor([1]),), torch.ones(1, 3))  # 1 x 3, not 4 x 3
        a.t()

    counts = written_bytes(work)
    assert (
        counts["aten.cat"] == 72 and counts["aten.copy_"] == 24 and counts["aten.index_put_"] == 12
    )
    assert "aten.t" not in counts


@pytest.mark.parametrize("plan", [PortPlan.upstream(), PortPlan.with_steps("mla_low_rank")])
def test_growing_cache_copies_itself(plan):
    model = random_model(plan)
    cache = model.new_cache(2, 12)
    cache.fill_random(8)
    before, kept = addresses(cache), cache.nbytes
    assert append_bytes(cache) == kept // 8 * 9  # all 8 positions and the new one
    assert cache.length == 8 and cache.nbytes == kept
    model(torch.ones(2, 1, dtype=torch.int64), cache=cache)
    assert addresses(cache) != before


def test_fixed_cache_writes_one_position_in_place():
    model = random_model(PortPlan.full())
    cache = model.new_cache(2, 12)
    cache.fill_random(8)
    before, row = addresses(cache), cache.nbytes // 12
    assert row <= append_bytes(cache) <= row + 1000  # and the indices
    model(torch.ones(2, 1, dtype=torch.int64), cache=cache)
    assert addresses(cache) == before and len(before) == cache.layers


@pytest.mark.parametrize(("plan", "places"), [(PortPlan.upstream(), 3), (PortPlan.full(), 1)])
def test_addresses_over_steps_are_never_given_out_again(plan, places):
    model = random_model(plan)
    cache = model.new_cache(2, 12)
    cache.fill_random(8)
    token = torch.ones(2, 1, dtype=torch.int64)
    assert addresses_over(lambda: model(token, cache=cache), cache, 3) == places

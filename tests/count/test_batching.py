"""Steps and occupancy of batches and of slots, counted from lengths alone; engine/continuous.py's own
occupancy is held against it in tests/engine/test_continuous.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_port.count.batching import in_batches, in_slots
from dsv3_port.errors import PortError


def test_by_hand():
    """Two slots; 9, 3, 4, 1 and 5 tokens are 8, 2, 3, 0 and 4 decode steps."""
    tokens = [9, 3, 4, 1, 5]
    static, slots = in_batches(tokens, 2), in_slots(tokens, 2)
    assert static.occupancy == (2, 2, 1, 1, 1, 1, 1, 1) + (1, 1, 1) + (1, 1, 1, 1)
    assert slots.occupancy == (2,) * 8 + (1,)
    assert (static.steps, slots.steps) == (15, 9)
    assert static.share == 17 / 30 and slots.share == 17 / 18


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 6))
def test_slots_need_no_more_steps_than_batches_and_no_fewer_than_there_are(tokens, slots):
    static, running = in_batches(tokens, slots), in_slots(tokens, slots)
    work = sum(n - 1 for n in tokens)
    assert sum(static.occupancy) == sum(running.occupancy) == work
    least = max([-(-work // slots), *(n - 1 for n in tokens)])
    assert least <= running.steps <= static.steps
    assert all(1 <= n <= slots for n in (*static.occupancy, *running.occupancy))
    if slots == 1 or len(set(tokens)) <= 1:
        assert running.steps == static.steps


def test_no_step_at_all():
    assert in_batches([1, 1], 3).share == in_slots([], 3).share == 1.0


@pytest.mark.parametrize("count", [in_batches, in_slots])
def test_bad_input(count):
    with pytest.raises(PortError, match="0 slots"):
        count([3], 0)
    with pytest.raises(PortError, match="requests of 0 tokens"):
        count([3, 0], 2)

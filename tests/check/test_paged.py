"""Attention over blocks against its definition: equal for the right slots, and not for wrong ones."""

from __future__ import annotations

import math

import pytest

from dsv3_port.check.paged import paged_error
from dsv3_port.course.written import load_function
from dsv3_port.course.yours import slots
from dsv3_port.model.paged_cache import slot_mapping

SLOT = slots()["12.slots"]


@pytest.mark.parametrize("lengths", [(37, 16, 5), (1,), (48, 48), (17, 15, 33, 1)])
@pytest.mark.parametrize("block", [16, 32])
def test_the_finished_slots_are_the_definition(lengths, block):
    assert paged_error(slot_mapping, lengths, block) < 1e-12


@pytest.mark.parametrize("name", [n for n, w in SLOT.wrong.items() if w.seen_by == "model"])
def test_wrong_slots_are_not(name):
    try:
        worst = paged_error(load_function(SLOT.wrong[name].source, SLOT.name))
    except (RuntimeError, ValueError):  # a block that the table has no entry for
        return
    assert math.isnan(worst) or worst > 1e-3

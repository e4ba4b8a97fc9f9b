"""What-if for a port: only layouts that divide and fit, and the step to do next."""

from __future__ import annotations

import pytest

from dsv3_port.config import DeepseekV3Config
from dsv3_port.errors import PortError
from dsv3_port.forecast.what_if import layouts, suggested
from dsv3_port.plan import PortPlan

V3 = DeepseekV3Config.preset("v3-671b")


@pytest.fixture(scope="module")
def found():
    return {x.world_size: x for x in layouts(V3, [7, 8, 32, 64], batch=8)}


def test_only_what_divides_and_fits_has_a_time(found):
    assert not found[7].possible and "cannot be cut over 7 ranks" in found[7].reason
    assert "1, 2, 4, 8, 16, 32, 64, 128" in found[7].reason
    assert not found[8].possible and "32 ranks are the fewest that do" in found[8].reason
    assert found[32].possible and found[32].memory.fits


def test_the_fewest_ranks_that_are_as_quick_are_suggested(found):
    assert found[64].decode.ms < found[32].decode.ms * 1.2
    assert suggested(list(found.values())).world_size == 32


def test_nothing_possible_is_one_sentence(found):
    with pytest.raises(
        PortError, match="no layout is possible: 7 ranks: .*; 8 ranks: does not fit"
    ):
        suggested([found[7], found[8]])


def test_copies_on_the_cards_there_are():
    by = {x.world_size: x for x in layouts(V3, [32, 64], cards=96)}
    assert by[32].copies == 3
    assert by[64].reason == "96 cards are not a whole number of copies on 64 ranks"


def test_the_next_step_is_the_one_that_shortens_decode_most(found):
    x = found[32]
    assert x.next_step in ("aclgraph", "ge_graph") and x.after.ms < x.decode.ms / 2
    (first,) = layouts(V3, [32], batch=8, plan=PortPlan.upto("mla_low_rank"))
    assert first.next_step == "gmm_routing"  # a graph is blocked by the expert loop
    assert "launches" in first.decode.binds


def test_a_step_that_gains_nothing_is_not_named():
    plan = PortPlan.full().plus("aclgraph")
    (x,) = layouts(V3, [32], plan=plan)
    assert x.next_step == "" and x.after is None


def test_no_table_has_int8_times():
    with pytest.raises(PortError, match="w8a8's kernels"):
        layouts(V3, [32], plan=PortPlan.full().replace(quant="w8a8"))

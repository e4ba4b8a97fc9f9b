"""A step put together from measured kernels: sums, bands, waits, and what is not covered."""

from __future__ import annotations

import dataclasses

import pytest

from dsv3_port.config import DeepseekV3Config
from dsv3_port.count.step_work import Work, step_work
from dsv3_port.errors import PortError
from dsv3_port.forecast import compose as composing
from dsv3_port.forecast.compose import BAND, compose, in_order, ladder
from dsv3_port.forecast.kernel_model import published_model
from dsv3_port.forecast.kernels import by_id, find
from dsv3_port.forecast.waits import sent, wait
from dsv3_port.plan import PortPlan
from dsv3_port.steps import STEPS

V3 = DeepseekV3Config.preset("v3-671b")
SMALL = V3.replace(num_hidden_layers=4, first_k_dense_replace=1)


@pytest.fixture(scope="module")
def work():
    return step_work(SMALL, PortPlan.full(), world_size=8, batch=8, context=4096)


def test_a_measured_call_takes_its_samples():
    k = find("MatMulV2", "8x7168;512x7168")
    w = Work(
        "shared expert", "aten.mm", round(k.mb * 1e6), round(k.gflop * 1e9), False, 1, 8, 7340032
    )
    found = published_model().cost(w)
    assert (found.estimate.how, found.estimate.us) == ("measured", k.median)
    assert (found.estimate.low, found.estimate.high) == (k.low, k.high)
    assert found.estimate.rows == (k.id,)
    # other rows of the same weights are another call
    other = dataclasses.replace(w, rows=1, nbytes=7340032 + 2 * (7168 + 512))
    assert published_model().cost(other).estimate.how == "fitted"


def test_what_nothing_covers_has_a_range_with_rows(work):
    grouped = [w for w in work.work if w.op == "npu_grouped_matmul"]
    for w in grouped:
        found = published_model().cost(w)
        assert found.estimate.how == "bounded" and "times away" in found.missing
        nbytes = w.nbytes / 1e6
        fastest, slowest = (by_id()[r] for r in found.estimate.rows[:2])
        assert found.estimate.low == pytest.approx(nbytes * fastest.median / fastest.mb)
        assert found.estimate.high > nbytes * slowest.median / slowest.mb
        assert found.estimate.low < found.estimate.us < found.estimate.high


def test_float32_products_are_not_covered(work):
    gate = next(w for w in work.work if w.part == "gate" and w.flops)
    assert gate.float32 and "float32" in published_model().cost(gate).missing


def test_a_step_is_the_sum_of_its_kernels_and_waits(work):
    made = compose(work, "aclgraph")
    assert made.device == pytest.approx(
        sum(c.work.times * c.estimate.us for c in made.costed) / 1e3
    )
    assert made.idle == pytest.approx(work.launches * wait("aclgraph").us / 1e3)
    assert made.low < made.ms * (1 - BAND * 0.8) and made.high > made.ms * (1 + BAND * 0.8)
    assert {"g15"}.isdisjoint(made.rows) and set(wait("aclgraph").rows) <= set(made.rows)


def test_eager_is_launches_where_kernels_are_short(work):
    made = compose(work, "eager")
    launches = work.launches * wait("eager").us / 1e3
    assert launches <= made.ms <= launches + made.device
    assert "launches" in made.binds


def test_the_queue_by_hand(work, monkeypatch):
    """Two kernels of 100 µs and one of 1 µs, a launch every 10: the device waits for the first
    launch only."""
    costed = compose(work).costed[:3]
    times = [
        dataclasses.replace(
            c,
            work=dataclasses.replace(c.work, times=1),
            estimate=dataclasses.replace(c.estimate, us=us),
        )
        for c, us in zip(costed, (100, 100, 1), strict=True)
    ]
    assert composing._idle(work, times, "eager", 10, (3, 3)) == pytest.approx(0.010)
    assert composing._idle(work, times, "aclgraph", 1.2, (3, 3)) == pytest.approx(0.0036)


def test_a_host_that_waits_empties_the_queue():
    plan = PortPlan.upto("mla_low_rank")
    loop = step_work(SMALL, plan, world_size=8, batch=8, context=4096)
    assert loop.syncs == 3
    never = dataclasses.replace(loop, syncs=0)
    assert compose(loop).idle >= compose(never).idle


def test_operators_run_layer_by_layer(work):
    costed = compose(work).costed
    order = list(in_order(costed))
    assert len(order) == work.launches
    norms = [i for i, c in enumerate(order) if c.work.op == "npu_add_rms_norm"]
    assert max(b - a for a, b in zip(norms, norms[1:], strict=False)) < 80


def test_ladder_has_every_step_and_gets_shorter():
    found = ladder(SMALL, world_size=8, batch=8)
    assert [s.rung for s in found] == [s.id for s in STEPS]
    by = {s.rung: s for s in found}
    assert by["gmm_routing"].ms < by["mla_low_rank"].ms / 2
    assert by["add_rms_norm"].ms < by["rope_once"].ms
    assert by["aclgraph"].ms < by["last_token_head"].ms
    for s in found:
        assert s.low < s.ms < s.high and 0 <= s.covered <= 1 and s.rows


def test_one_rank_has_no_ladder():
    with pytest.raises(PortError, match="use 2 or more"):
        ladder(SMALL, world_size=1)


def test_waits_and_links():
    eager, graph = wait("eager"), wait("aclgraph")
    assert (eager.low, eager.us, eager.high, eager.rows) == (30.0, 41.28, 50.92, ("g15",))
    assert graph.us == 1.19 and graph.low < 1.05 < graph.high and len(graph.rows) == 3
    assert "no export says GE graph" in wait("ge").note
    with pytest.raises(PortError, match="mode 'turbo'"):
        wait("turbo")
    links = sent(56_000, 2)
    assert links.high == pytest.approx(1.0) and links.low == pytest.approx(56 / 784)
    assert links.rows == ("p13", "p14", "p15")

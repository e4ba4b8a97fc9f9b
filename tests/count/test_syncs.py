"""Host waits are counted wherever Python reads values, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from dsv3_port.count.activations import module_call
from dsv3_port.count.operators import count_ops
from dsv3_port.count.syncs import host_syncs
from dsv3_port.plan import PortPlan
from tests.random_models import random_model

X = torch.arange(4)


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda: X.tolist(), "tolist"),
        (lambda: X[1].item(), "item"),
        (lambda: bool(X[0]), "__bool__"),
        (lambda: float(X[1]), "__float__"),
        (lambda: [10, 20, 30][X[1]], "__index__"),
        (lambda: X.cpu(), "cpu"),
        (lambda: X[X > 1], "x[mask]"),
        (lambda: X.nonzero(), "nonzero"),
        (lambda: torch.equal(X, X), "equal"),
    ],
)
def test_reading_values_counts(read, name):
    assert host_syncs(read) == {name: 1}


def test_other_work_does_not_count():
    assert (
        host_syncs(lambda: (X[1:3] + 1, X[X], X.sort(), torch.where(X > 1, X, 0), X.shape[0])) == {}
    )


def test_the_loop_waits_once_a_layer_and_the_grouped_forms_never():
    ids = torch.randint(90, (2, 9))
    for plan, waits in (
        (PortPlan.upstream(), {"tolist": 2}),
        (PortPlan.with_steps("gmm_routing"), {}),
        (PortPlan.with_steps("gmm_routing").replace(npu_routing_kernel=False), {}),
    ):
        model = random_model(plan)
        assert host_syncs(lambda model=model: model(ids)) == waits


def test_grouped_launches_do_not_grow_with_the_tokens():
    name = "model.layers.1.mlp.experts"
    counts = {}
    for step in ("mla_low_rank", "gmm_routing"):
        model = random_model(PortPlan.upto(step))
        counts[step] = [
            sum(count_ops(module_call(model, torch.randint(90, (1, n)), name)).values())
            for n in (2, 40)
        ]
    assert (
        counts["gmm_routing"][0]
        == counts["gmm_routing"][1]
        < counts["mla_low_rank"][0]
        < counts["mla_low_rank"][1]
    )


def test_launches_leave_out_the_forms_that_only_a_cpu_has():
    """2 to 8 float32 rows are multiplied turned round on a CPU, which copies; 1 row is not."""
    name = "model.layers.1.mlp.shared_experts"
    model = random_model(PortPlan.upstream())
    few, one = (count_ops(module_call(model, torch.randint(90, (1, n)), name)) for n in (4, 1))
    assert few == one and "aten.clone" not in few

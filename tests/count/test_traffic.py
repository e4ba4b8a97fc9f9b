"""Counted collectives against what the layers must send."""

from __future__ import annotations

import pytest
import torch

from dsv3_port.config import DeepseekV3Config
from dsv3_port.count.traffic import (
    Collective,
    CountedParallel,
    count_traffic,
    handed_bytes,
    sent_bytes,
)
from dsv3_port.plan import PortPlan
from dsv3_port.plots.ranks import traffic_plot
from tests.random_models import CONFIG


@pytest.mark.parametrize(
    "plan",
    [
        PortPlan.full(),
        PortPlan.full().replace(npu_routing_kernel=False),
        PortPlan.with_steps("tensor_parallel", "gmm_routing"),
    ],
)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (3, 1), (2, 7)])
def test_two_all_reduces_a_layer_one_for_the_embedding_and_one_gather(plan, batch, tokens):
    found = count_traffic(CONFIG, plan, 4, batch=batch, tokens=tokens, dtype=torch.bfloat16)
    hidden = batch * tokens * CONFIG.hidden_size * 2
    rows = batch * (1 if plan.lm_head == "last" else tokens)
    want = [("all_reduce", hidden)] * (1 + 2 * CONFIG.num_hidden_layers) + [
        ("all_gather", rows * CONFIG.vocab_size // 4 * 2)
    ]
    assert [(c.kind, c.nbytes) for c in found] == want


def test_the_published_model_is_counted_without_its_weights():
    found = count_traffic(DeepseekV3Config.preset("v3-671b"), world_size=32)
    assert (
        len(found) == 2 * 61 + 2
        and found[1].nbytes == 7168 * 2
        and found[-1].nbytes == 129280 // 32 * 2
    )


def test_one_rank_sends_nothing():
    alone = CountedParallel()
    x = torch.ones(2, 3)
    assert alone.all_reduce(x) is x and alone.all_gather_last(x) is x and alone.log == []


def test_ring_bytes():
    calls = [Collective("all_reduce", 1000), Collective("all_gather", 10)]
    assert handed_bytes(calls) == 1010 and handed_bytes(calls, "all_gather") == 10
    assert (
        sent_bytes(calls, 1) == 0 and sent_bytes(calls, 2) == 1010 and sent_bytes(calls, 4) == 1530
    )


def test_plot_says_its_numbers():
    counted = {w: count_traffic(CONFIG, world_size=w) for w in (2, 4)}
    figure = traffic_plot(counted, "a test")
    assert (
        "2 ranks: 8 calls" in figure.alt_text
        and "a test" in figure.alt_text
        and len(figure.png()) > 2000
    )

"""Steps with and without a draft, timed side by side."""

from __future__ import annotations

import pytest
import torch

from dsv3_port import PortError, PortPlan
from dsv3_port.bench.drafts import ONE, PAIR, WHOLE, pair_times
from tests.random_models import random_model


@pytest.mark.parametrize("plan", [PortPlan.full().plus("mtp"), PortPlan.upto("mtp")])
@pytest.mark.parametrize("batch", [1, 3])
def test_records_and_the_work_behind_them(plan, batch, monkeypatch):
    """Every call begins at the same position: ONE runs the model over one token, PAIR over two, WHOLE
    also the MTP layer, with the model's own `accept`."""
    model = random_model(plan)
    seen = []

    def spy(name):
        real = getattr(model, name)

        def call(ids, pad, cache, first, *hidden):
            seen.append((name, tuple(ids.shape), int(cache.slot[0])))
            return real(ids, pad, cache, first, *hidden)

        monkeypatch.setattr(model, name, call)

    for name in ("run_step", "run_verify", "run_draft"):
        spy(name)
    real = model.accept
    monkeypatch.setattr(
        model, "accept", lambda *a: seen.append(("accept", tuple(a[1].shape), 0)) or real(*a)
    )
    results = pair_times(model, batch=batch, context=21, rounds=1, seed=3)
    assert [(r.name, r.phase, r.batch, r.context) for r in results] == [
        (name, "step", batch, 21) for name in (ONE, PAIR, WHOLE)
    ]
    assert set(seen) == {
        ("run_step", (batch, 1), 21),
        ("run_verify", (batch, 2), 21),
        ("run_draft", (batch, 2), 21),
        ("accept", (batch,), 0),
    }
    assert results.records[0].again and results.ratio(ONE, WHOLE).median > 0


def test_a_model_without_the_layer_is_refused():
    with pytest.raises(PortError, match="step 'mtp'"):
        pair_times(random_model(PortPlan.full()))
    assert torch.is_grad_enabled()

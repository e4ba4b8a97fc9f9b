"""What rounding costs, measured: against sums by hand, and the kept figures against this code."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3_port import PortError, PortPlan, load_model
from dsv3_port.check.quality import quality
from dsv3_port.engine.calibrate import calibrate
from dsv3_port.engine.loading import with_plan
from dsv3_port.model.c8 import set_kv_scales
from tests.random_models import random_model

ROOT = Path(__file__).parents[2]
TINY = ROOT / "data" / "tiny-dsv3"
ALL = PortPlan.full().minus("last_token_head")
IDS = torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(0))


def test_a_model_beside_itself() -> None:
    model = random_model(ALL)
    found = quality(model, model, [IDS])
    assert found.tokens == 20 and found.same_top1 == 1
    assert found.perplexity[0] == found.perplexity[1] > 1
    assert found.logit_rms == found.logit_largest == 0
    assert set(found.stages.values()) == {0.0} and set(found.experts.values()) == {0.0}


def test_numbers_by_hand() -> None:
    """Batches of other shapes add up to what one would be; each ratio by its definition."""
    a, b = random_model(ALL), random_model(ALL, seed=0)
    with torch.no_grad():
        b.lm_head.weight.mul_(0.5)
        b.model.layers[2].mlp.gate.weight.neg_()
    found = quality(a, b, [IDS[:1], IDS[1:, :11]])
    x, y = (m(IDS)[:, :-1].double() for m in (a, b))
    assert found.logit_rms == pytest.approx(
        float((x - y).square().sum().sqrt() / x.square().sum().sqrt())
    )
    assert found.logit_largest == pytest.approx(float((x - y).abs().max() / x.abs().max()))
    assert found.same_top1 == float((x.argmax(-1) == y.argmax(-1)).double().mean())
    for logits, perplexity in ((x, found.perplexity[0]), (y, found.perplexity[1])):
        chosen = logits.log_softmax(-1).gather(-1, IDS[:, 1:, None])
        assert perplexity == pytest.approx(math.exp(-float(chosen.mean())))
    assert found.stages["model.layers.1"] == 0 and found.stages["model.layers.2"] > 0
    assert found.experts["model.layers.1.mlp.gate"] == 0 < found.experts["model.layers.2.mlp.gate"]


def test_position_by_position_it_is_the_same() -> None:
    """Cached steps of the candidate, every stage and expert of them."""
    reference, paged = random_model(ALL), random_model(ALL.plus("paged_cache"))
    whole, steps = (quality(reference, paged, [IDS], cached=c) for c in (False, True))
    assert steps.tokens == whole.tokens and steps.same_top1 == 1 and steps.logit_rms < 1e-5
    assert set(steps.stages) == set(whole.stages) and max(steps.stages.values()) < 1e-5
    assert steps.experts == whole.experts and not any(steps.experts.values())
    assert steps.perplexity[1] == pytest.approx(whole.perplexity[1], rel=1e-5)


def test_refusals() -> None:
    with pytest.raises(PortError, match="every position's logits"):
        quality(random_model(PortPlan.full()), random_model(ALL), [IDS])
    with pytest.raises(PortError, match="no text of two tokens"):
        quality(random_model(ALL), random_model(ALL), [IDS[:, :1]])


@pytest.fixture
def w8a8(monkeypatch) -> Iterator[Any]:
    """The tool that writes data/recorded/w8a8.json."""
    monkeypatch.syspath_prepend(str(ROOT / "ci" / "tools"))
    before = set(sys.modules)
    import w8a8

    try:
        yield w8a8
    finally:
        for name in set(sys.modules) - before:
            if name in ("w8a8", "text", "grammar"):
                del sys.modules[name]


def test_the_kept_figures_of_a_cache_are_this_codes(w8a8) -> None:
    """Of both caches, token by token over a piece of the text: about as far off as over the whole of it, and
    the int8 one a little farther."""
    kept = json.loads(w8a8.RECORD.read_text())
    base = load_model(TINY, w8a8.STEPS, "cpu", "float32")
    scales = calibrate(base, w8a8.held_out(1, w8a8.CALIBRATION_SEED)[0][:, :128])
    reference, off = load_model(TINY, w8a8.FLOAT, "cpu", "float32"), []
    text = [w8a8.held_out(1)[0][:, :48]]
    for name, plan in w8a8.CACHED.items():
        model = with_plan(base, plan)
        if plan.kv_cache_dtype == "int8":
            set_kv_scales(model, scales)
        found = quality(reference, model, text, cached=True)
        assert found.tokens == 4 * 47 and kept[name]["tokens"] == 8 * 4 * 511
        off.append(found.logit_rms)
        assert 0.5 < off[-1] / kept[name]["logit_rms"] < 1.3
    print([f"{x:.2%}" for x in off])
    assert off[0] < off[1] < 1.3 * off[0]


def test_the_kept_figures_are_this_codes(w8a8) -> None:
    """data/recorded/w8a8.json, over its whole text, for W8A8; seconds on a CPU."""
    kept = json.loads(w8a8.RECORD.read_text())
    text = w8a8.held_out()
    reference = load_model(TINY, w8a8.FLOAT, "cpu", "float32")
    found = quality(
        reference, load_model(TINY, w8a8.FORMS["W8A8"], "cpu", "float32"), text
    ).to_dict()
    want = kept["W8A8"]
    assert found["tokens"] == want["tokens"] == 8 * 4 * 511
    assert found["perplexity"] == pytest.approx(want["perplexity"], rel=1e-3)
    assert found["same_top1"] == pytest.approx(want["same_top1"], abs=2e-3)
    assert found["logit_rms"] == pytest.approx(want["logit_rms"], rel=0.05)

"""What is emitted with drafts has the model's probabilities, and a wrong draw after a refusal has not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsv3_port import PortError, PortPlan, load_model, load_tokenizer
from dsv3_port.check.drafts import drawn_with_drafts, emitted
from dsv3_port.course.judge import EXERCISES
from dsv3_port.engine.sampler import Sampling

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"


@pytest.fixture(scope="module")
def ids():
    text = "One quiet evening Rosa went to the tower. There she kept a red clock."
    return torch.tensor([load_tokenizer(TINY).encode(text)])


@pytest.mark.parametrize("plan", [PortPlan.full().plus("mtp"), PortPlan.upto("mtp")])
@pytest.mark.parametrize(
    "how", [Sampling(1.0), Sampling(0.7, top_p=0.9), Sampling(1.3, 20)], ids=str
)
def test_the_emitted_distribution_is_the_models(plan, how, ids):
    model = load_model(TINY, plan, "cpu", "float32")
    drawn = drawn_with_drafts(model, ids, how)
    assert drawn.emitted < 1e-14 and drawn.drafted > 0.1 and 0.5 < drawn.stays < 1


@pytest.mark.parametrize("name", EXERCISES["13.residual"].wrong)
def test_what_the_exercise_calls_wrong_is_wrong(name):
    """Over the smallest distributions: its mistakes miss p, its solution does not."""
    form, _ = EXERCISES["13.residual"].wrong[name]
    p = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    q = torch.tensor([0.2, 0.5, 0.2, 0.1], dtype=torch.float64)
    assert float((emitted(p, q, form) - p).abs().max()) > 1e-2
    assert float((emitted(p, q, EXERCISES["13.residual"].solved()) - p).abs().max()) < 1e-15


def test_a_model_without_the_layer_is_refused(ids):
    model = load_model(TINY, PortPlan.full(), "cpu", "float32")
    with pytest.raises(PortError, match="step 'mtp'"):
        drawn_with_drafts(model, ids, Sampling(1.0))

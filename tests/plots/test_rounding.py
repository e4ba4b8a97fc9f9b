"""Distances in steps of a number format."""

from __future__ import annotations

import pytest
import torch

from dsv3_port.errors import PortError
from dsv3_port.plots.rounding import rounding_histogram, rounding_steps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_one_rounding_is_within_half_a_step(dtype):
    exact = torch.randn(20000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = rounding_steps(exact.to(dtype), exact)
    assert 0.45 < float(steps.max()) <= 0.5 and 0.2 < float(steps.mean()) < 0.3


def test_a_neighbour_is_one_step_away():
    exact = torch.tensor([1.0, 1.5, -3.0, 96.0], dtype=torch.float64)
    near = exact.to(torch.bfloat16)
    step = torch.tensor([2.0**-7, 2.0**-7, 2.0**-6, 2.0**-1], dtype=torch.float64)
    assert rounding_steps((near + step).to(torch.bfloat16), exact).tolist() == [1.0] * 4


def test_zero_and_subnormal_results_are_left_out():
    exact = torch.tensor([0.0, 1e-45, 2.0], dtype=torch.float64)
    assert len(rounding_steps(exact.to(torch.bfloat16), exact)) == 1


def test_wrong_input():
    with pytest.raises(PortError, match="float64"):
        rounding_steps(torch.ones(2), torch.ones(2))
    with pytest.raises(PortError, match="no results"):
        rounding_histogram({})


def test_histogram_says_what_it_shows():
    fig = rounding_histogram({"once": torch.tensor([0.1, 0.4]), "twice": torch.tensor([0.2, 1.2])})
    assert (
        "once: mean 0.250, largest 0.40; twice: mean 0.700, largest 1.20" in fig.alt_text
        and fig.png()
    )

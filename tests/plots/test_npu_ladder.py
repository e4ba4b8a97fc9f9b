"""The ladder composed from measured kernels, drawn: labels, rows, published figures."""

from __future__ import annotations

import pytest

from dsv3_port.config import DeepseekV3Config
from dsv3_port.errors import PortError
from dsv3_port.forecast.compose import SENTENCE
from dsv3_port.plots import npu_ladder as pictures
from dsv3_port.plots.npu_forward import npu_forward, shares
from dsv3_port.steps import STEPS

V3 = DeepseekV3Config.preset("v3-671b")


@pytest.fixture(scope="module")
def drawn():
    return pictures.npu_ladder(V3, (8, 32), (1,))


def test_says_what_it_is(drawn):
    text = drawn.alt_text
    assert SENTENCE[1:] in text and "NPU kernels measured by others" in text
    assert "TP 8, 1 tokens; does not fit 64 GiB cards" in text
    assert "TP 32, 1 tokens:" in text
    for s in STEPS:
        assert f"[~32/1/{s.number}]" in text


def test_numbers_have_rows_and_published_figures_are_there(drawn):
    assert {"g15", "p2", "p3", "k245"} <= set(drawn.npu_rows)
    assert all(t.rows for t in drawn.npu_derived)


def test_a_number_that_was_not_composed_is_refused(monkeypatch):
    monkeypatch.setattr(pictures, "traced", lambda s: [])
    with pytest.raises(PortError, match="nothing derived is called"):
        pictures.npu_ladder(V3, (32,), (1,))


def test_the_forward_kernel_by_kernel():
    fig = npu_forward()
    found = shares()
    assert sum(ms for _, _, ms, _ in found) == pytest.approx(897.4, abs=0.05)
    assert found[0][:2] == ("SwiGlu, allotted rows", 58)
    assert "287.7 ms [~SwiGlu, allotted rows], 32%" in fig.alt_text
    assert "NPU kernels measured by others" in fig.alt_text
    assert len(fig.npu_rows) == 2541

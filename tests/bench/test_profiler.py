"""The profile names the operator that takes the time, quietly, and the pictures of notebook 06
draw."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dsv3_port.bench.measure import measure
from dsv3_port.bench.profiler import top_operators
from dsv3_port.errors import PortError
from dsv3_port.plots.profile import where_time_goes
from dsv3_port.plots.ratios import ratio_chart

A = torch.rand(256, 256)


def test_top_operators(capfd):
    times = top_operators(lambda: (A @ A).relu(), calls=3)
    assert next(iter(times)) == "aten::mm" and times["aten::mm"] > times["aten::relu"] > 0
    assert capfd.readouterr().err == ""
    fig = where_time_goes({"before": times, "after": {"aten::mm": 1e-6}}, top=1)
    assert "aten::mm" in fig.alt_text and fig.png()
    labels = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert labels[0] == "aten::mm" and "others" in labels[1]


def test_refusals(monkeypatch):
    with pytest.raises(PortError, match="calls"):
        top_operators(lambda: None, calls=0)
    with pytest.raises(PortError, match="no times"):
        where_time_goes({})
    monkeypatch.setattr("dsv3_port.plots.profile.device_info", lambda device: {"tier": "host-npu"})
    with pytest.raises(PortError, match="never drawn"):
        where_time_goes({"a": {"aten::mm": 1.0}})


def _results():
    return measure(
        {"a": lambda: A @ A @ A, "b": lambda: A @ A, "c": lambda: A @ A @ A @ A @ A},
        rounds=3,
        meta={"phase": "decode"},
        progress=False,
    )


@pytest.mark.filterwarnings("ignore:other processes")
def test_ratio_chart():
    fig = ratio_chart(_results(), "a")
    assert (
        len(fig.axes) == 1
        and "decode b" in fig.alt_text
        and "against a" in fig.alt_text
        and fig.png()
    )


@pytest.mark.filterwarnings("ignore:other processes")
def test_ratio_chart_refuses_the_stand_in():
    results = _results()
    results.records = [dataclasses.replace(r, tier="host-npu") for r in results.records]
    with pytest.raises(PortError, match="never drawn"):
        ratio_chart(results, "a")

"""Golden files of the GE conversion, and the counts of lab/npu_graphs.py.

A changed conversion shows here. To accept it: python -m tests.hostnpu.inside.check_npu_graphs, and read the diff.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv3_port import PortPlan, hostnpu
from dsv3_port.lab import npu_graphs

TINY = Path(__file__).parents[3] / "data" / "tiny-dsv3"
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("rung", npu_graphs.rungs())
def test_conversion_is_the_golden_one(rung: str) -> None:
    wanted = json.loads((GOLDEN / f"{rung}.json").read_text(encoding="utf-8"))
    assert npu_graphs.ge_census(TINY, npu_graphs.rungs()[rung]) == wanted


def test_steps_show_in_the_census() -> None:
    census = {p.stem: json.loads(p.read_text(encoding="utf-8"))["decode"] for p in GOLDEN.glob("*.json")}
    assert set(census) == set(npu_graphs.rungs())
    assert "AddRmsNorm" not in census["rope_once"] and census["add_rms_norm"]["AddRmsNorm"] > 0
    assert census["rope_once"]["Cos"] < census["fixed_kv_cache"]["Cos"]
    header, rows = npu_graphs.census_rows(census)
    assert header == ["GE operator", *census] and rows[-1][0] == "all"
    assert [int(n) for n in rows[-1][1:]] == [sum(c.values()) for c in census.values()]


def test_launches_and_captured_memory() -> None:
    prefill, decode = npu_graphs.capture(TINY, PortPlan.full())
    counts = npu_graphs.launches(TINY, PortPlan.full())
    assert counts["graph"] == 1 and counts["eager"] >= counts["in it"] == sum(decode.launches.values()) > 100
    assert decode.launches["scatter_update_"] == len(decode.caches) > 0
    assert prefill.nbytes > decode.nbytes > 0 and not set(decode.buffers) & set(decode.caches)


def test_memory_grows_with_the_padded_length() -> None:
    memory = npu_graphs.memory_per_length(TINY, PortPlan.full(), (8, 16, 32), batch=1)
    assert memory[8] < memory[16] < memory[32]


def write() -> None:
    hostnpu.enable()
    for name, plan in npu_graphs.rungs().items():
        text = json.dumps(npu_graphs.ge_census(TINY, plan), indent=1)
        (GOLDEN / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()

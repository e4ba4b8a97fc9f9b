"""The golden file of the GE conversion, and the counts of ge/census.py
and count/captured.py.

A changed conversion shows here. To accept it: python -m tests.hostnpu.inside.check_npu_graphs, and
read the diff.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3_port import PortPlan, hostnpu
from dsv3_port.count.tape import replayed
from dsv3_port.engine.graph import export_graph
from dsv3_port.errors import PortError
from dsv3_port.hostnpu import ge
from dsv3_port.lab import npu_graphs
from tests.hostnpu.inside import short

TINY = Path(__file__).parents[3] / "data" / "tiny-dsv3"
GOLDEN = Path(__file__).parents[1] / "golden.json"


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, dict[str, int]]]:
    found: dict[str, dict[str, dict[str, int]]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("form", npu_graphs.forms())
def test_conversion_is_the_golden_one(
    form: str, golden: dict[str, dict[str, dict[str, int]]]
) -> None:
    assert npu_graphs.ge_census(TINY, npu_graphs.forms()[form]) == golden[form]


def test_decode_alone_is_converted_as_it_is_behind_a_prompt(
    golden: dict[str, dict[str, dict[str, int]]],
) -> None:
    plan = npu_graphs.forms()[npu_graphs.FULL]
    found = npu_graphs.ge_census(TINY, plan, prefill=False)
    assert found == {"decode": golden[npu_graphs.FULL]["decode"]}


def test_steps_show_in_the_census(golden: dict[str, dict[str, dict[str, int]]]) -> None:
    assert list(golden) == list(npu_graphs.forms()) and len(golden) == 7
    census = {form: npu_graphs.kernels_of(phases["decode"]) for form, phases in golden.items()}
    full = census.pop(npu_graphs.FULL)
    gone = {
        form.removeprefix("without "): sum(counts.values()) - sum(full.values())
        for form, counts in census.items()
    }
    assert gone.pop("last_token_head") == 0  # decode has one position only
    assert all(gone[s] > 0 for s in ("merged_mlp", "rope_once", "add_rms_norm")), gone
    assert census["without one_hot_gate"]["ScatterElements"] == 1 and "ScatterElements" not in full
    assert "AddRmsNorm" not in census["without add_rms_norm"] and full["AddRmsNorm"] > 0
    assert census["without rope_once"]["Cos"] == 2 and full["Cos"] == 1  # a layer, a step
    rows = {
        row["step"]: row for row in npu_graphs.census_changes({npu_graphs.FULL: full, **census})
    }
    assert len(rows) == len(census) and "18 Cast" in str(rows["6.2 cos/sin once per step"]["goes"])
    assert rows["6.4 LM head on the last token"]["goes"] == "nothing"
    header, lines = npu_graphs.census_rows({"full": full, **census})
    assert header == ["GE operator", "full", *census] and lines[-1][:2] == (
        "all",
        str(sum(full.values())),
    )


@pytest.fixture(scope="module")
def captured() -> list[npu_graphs.Captured]:
    """Prefill of 12 positions, and decode."""
    return npu_graphs.capture(TINY, PortPlan.full(), length=12, layers=2)


def test_launches_and_captured_memory(captured: list[npu_graphs.Captured]) -> None:
    prefill, decode = captured
    assert npu_graphs.eager_launches(TINY, PortPlan.full()) > sum(decode.launches.values()) > 100
    assert decode.launches["scatter_update_"] == len(decode.caches) > 0
    assert prefill.nbytes > decode.nbytes > 0 and not set(decode.buffers) & set(decode.caches)


def test_memory_grows_with_the_padded_length(captured: list[npu_graphs.Captured]) -> None:
    memory = npu_graphs.memory_per_length(TINY, PortPlan.full(), (32,), layers=2)
    assert list(memory) == [32] and 0 < captured[0].nbytes < memory[32]


def test_a_device_tape_is_used_as_a_tape_and_computes_at_its_capture() -> None:
    """`replayed` of notebook 08 over torch.npu.graph: every step as eager, one capture a cache."""
    eager = npu_graphs.load(TINY, PortPlan.full(), dtype="float32", layers=2)
    twin = npu_graphs.load(TINY, PortPlan.full(), dtype="float32", layers=2)
    captured: list[npu_graphs.DeviceTape] = []

    def capture(fn: Any, *inputs: torch.Tensor) -> npu_graphs.DeviceTape:
        captured.append(npu_graphs.DeviceTape.capture(fn, *inputs))
        return captured[-1]

    twin.run_step = replayed(twin.forward_step, capture)
    ids = torch.arange(5, 14, device="npu").unsqueeze(0)
    for _ in range(2):
        one, other = eager.new_cache(1, 16), twin.new_cache(1, 16)
        for part in ids.split([5, 1, 1, 1, 1], dim=1):
            logits = eager(part.contiguous(), cache=one)
            assert torch.equal(twin(part.contiguous(), cache=other).cpu(), logits.cpu())
    assert len(captured) == 2 and captured[0].inputs[0].shape == (1, 1)
    with pytest.raises(PortError, match="every shape needs a capture of its own"):
        captured[0].replay(ids)


def test_fx_beside_ge(tmp_path: Path) -> None:
    files = export_graph(short.load(PortPlan.full(), dtype="bfloat16"), tmp_path)
    assert set(files) == {"step.air", "graph.pbtxt", "graph.py", "options.json"}
    assert ge.read_file(files["step.air"]).count()["GroupedMatmul"] == 2
    rows = npu_graphs.fx_beside_ge(
        files["graph.py"].read_text(encoding="utf-8"),
        "npu_moe_init_routing",
        "npu_moe_finalize_routing",
    )
    found = {row["FX operator"]: row["GE operators"] for row in rows}
    assert (
        found["npu.npu_moe_init_routing"] == "MoeInitRouting"
        and found["npu.npu_swiglu"] == "SwiGlu"
    )
    assert found["npu.npu_grouped_matmul"].endswith("GroupedMatmul")
    assert rows[-1]["GE operators"] == "MoeFinalizeRoutingV2"
    with pytest.raises(PortError, match="no FX operator 'npu_no_such'"):
        npu_graphs.fx_beside_ge(files["graph.py"].read_text(encoding="utf-8"), "npu_no_such")


def test_a_notebook_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    here = npu_graphs.host_npu()
    assert here and "host stand-in" in here.markdown and "never shown" in here.markdown

    def refuse() -> None:
        raise PortError("no C compiler")

    monkeypatch.setattr(hostnpu, "enable", refuse)
    missing = npu_graphs.host_npu()
    assert not missing and "left out here: no C compiler." in missing.markdown


def write() -> None:
    hostnpu.enable()
    text = json.dumps(
        {name: npu_graphs.ge_census(TINY, plan) for name, plan in npu_graphs.forms().items()},
        indent=1,
    )
    GOLDEN.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()

"""Profiles of one's own card: both forms of CSV are read, merged, held beside the published points
and refitted. The files here are written by the tests, in the columns that CANN 8.0 to 9.1 write."""

from __future__ import annotations

import csv
import dataclasses

import pytest

from dsv3_port.config import DeepseekV3Config
from dsv3_port.errors import PortError
from dsv3_port.forecast import own_kernels, profile_csv
from dsv3_port.forecast.kernel_fit import ANY, FAMILIES, MATMUL, members
from dsv3_port.forecast.kernel_tables import fits
from dsv3_port.forecast.kernels import find, kernels
from dsv3_port.forecast.what_if import layouts

DETAILS = (
    *("Step Id", "Device_id", "Model ID", "Task ID", "Stream ID", "Name", "Type", "OP State"),
    *("Accelerator Core", "Start Time(us)", "Duration(us)", "Wait Time(us)", "Block Dim"),
    *("Mix Block Dim", "HF32 Eligible", "Input Shapes", "Input Data Types", "Input Formats"),
    *("Output Shapes", "Output Data Types", "Output Formats", "aicore_time(us)"),
)
SUMMARY = (
    *("Device_id", "Model ID", "Task ID", "Stream ID", "Op Name", "OP Type", "OP State"),
    *("Task Type", "Task Start Time(us)", "Task Duration(us)", "Task Wait Time(us)", "Block Dim"),
    *("HF32 Eligible", "Input Shapes", "Input Data Types", "Input Formats", "Output Shapes"),
    *("Output Data Types", "Output Formats"),
)


def quoted(shapes: str) -> str:
    """8x7168;512x7168 as a profiler writes it: the quotes are part of the cell."""
    return '"' + shapes.replace("x", ",").replace("-", "") + '"'


def rows_of(kernel: str, inputs: str, outputs: str, times, core="AI_VECTOR_CORE", state="dynamic"):
    for i, us in enumerate(times):
        n = inputs.count(";") + 1
        yield {
            "Name": f"aclnn{kernel}_{i}",
            "Type": kernel,
            "OP State": state,
            "Accelerator Core": core,
            "Start Time(us)": f"1769682373755{788 + 50 * i}.077\t",
            "Duration(us)": us,
            "Wait Time(us)": 30.5 + i,
            "Block Dim": 40,
            "HF32 Eligible": "NO",
            "Input Shapes": quoted(inputs),
            "Input Data Types": ";".join(["DT_BF16"] * n),
            "Input Formats": ";".join(["ND"] * n),
            "Output Shapes": quoted(outputs),
            "Output Data Types": "DT_BF16",
            "Output Formats": "ND",
        }


def write(path, heads, rows):
    other = dict(zip(DETAILS, DETAILS, strict=True))
    other |= {"Name": "Op Name", "Type": "OP Type", "Accelerator Core": "Task Type"}
    other |= {f"{w}(us)": f"Task {w}(us)" for w in ("Start Time", "Duration", "Wait Time")}
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, heads, restval="0", extrasaction="ignore")
        table.writeheader()
        for row in rows:
            table.writerow(row if heads is DETAILS else {other[k]: v for k, v in row.items()})
    return path


@pytest.fixture
def norm():
    return list(rows_of("AddRmsNorm", "8x7168;8x7168;7168", "8x7168;8x1;8x7168", (4, 6, 5)))


@pytest.mark.parametrize(
    ("name", "heads"),
    [("kernel_details.csv", DETAILS), ("op_summary_0_20260101120000.csv", SUMMARY)],
)
def test_both_forms_are_read_alike(tmp_path, norm, name, heads):
    file = write(tmp_path / name, heads, norm)
    (point,) = own_kernels.merge(profile_csv.read(file), "my card")
    assert (point.kernel, point.inputs) == ("AddRmsNorm", "8x7168;8x7168;7168")
    assert point.dtypes == "bfloat16;bfloat16;bfloat16" and point.state == "dynamic"
    assert (point.n, point.median, point.low, point.high) == (3, 5, 4, 6)
    assert point.mb == pytest.approx(find("AddRmsNorm", "8x7168;8x7168;7168").mb)


def test_a_folder_is_searched_and_equal_calls_are_merged(tmp_path, norm):
    for rank in ("a", "b"):
        (tmp_path / rank / "ASCEND_PROFILER_OUTPUT").mkdir(parents=True)
        write(tmp_path / rank / "ASCEND_PROFILER_OUTPUT" / "kernel_details.csv", DETAILS, norm)
    (point,) = own_kernels.merge(profile_csv.read(tmp_path))
    assert point.n == 6


def test_collectives_and_tasks_without_a_time_are_left_out(tmp_path, norm):
    more = [
        *rows_of("hcom_allReduce_", "8x7168", "8x7168", (900,), core="COMMUNICATION"),
        *rows_of("Add", "8x7168;8x7168", "8x7168", ("N/A",)),
        *rows_of("Slice", "", "", (2,)),
    ]
    found = profile_csv.read(write(tmp_path / "kernel_details.csv", DETAILS, norm + more))
    assert {s.kernel for s in found} == {"AddRmsNorm", "Slice"}


def test_waits_by_state(tmp_path, norm):
    graph = list(rows_of("SwiGlu", "8x512", "8x256", (3, 3), state="static"))
    samples = profile_csv.read(write(tmp_path / "kernel_details.csv", DETAILS, norm + graph))
    rows = {r["state"]: r for r in own_kernels.waits(samples)}
    assert rows["dynamic"]["median"] == 31.5 and rows["static"]["n"] == 2


def test_beside_the_published_card(tmp_path, norm):
    other = list(rows_of("Add", "9x9;9x9", "9x9", (1,)))
    own = own_kernels.merge(
        profile_csv.read(write(tmp_path / "kernel_details.csv", DETAILS, norm + other))
    )
    (row,) = own_kernels.beside(own)
    assert row["own µs"] == "5.00 (4.00–6.00)" and "[k103]" in row["910B4-1 µs"]
    assert row["own over published"] == f"{5 / 4.78:.2f}"


def a_card_at_half_speed():
    """Every published matrix product and norm, twice as slow, as a profiler would write it."""
    for family in (MATMUL, "AddRmsNorm"):
        for k in members(kernels(), FAMILIES[family]):
            yield from rows_of(k.kernel, k.inputs, k.outputs, (2 * k.median,))


def test_refit_finds_a_card_of_half_the_speed(tmp_path):
    own = own_kernels.merge(
        profile_csv.read(write(tmp_path / "kernel_details.csv", DETAILS, a_card_at_half_speed()))
    )
    made = own_kernels.refit(own)
    for name in (MATMUL, "AddRmsNorm"):
        base = fits()[name].coefficients
        assert made[name].coefficients == pytest.approx(
            {k: 2 * v for k, v in base.items()}, rel=0.02
        )
    assert made["SwiGlu"] is fits()["SwiGlu"]
    shown = {r["operator"] for r in own_kernels.fit_rows(made)}
    assert shown == {MATMUL, "AddRmsNorm", ANY}  # the norm is a vector kernel


def test_what_if_by_your_own_card(tmp_path):
    own = own_kernels.merge(
        profile_csv.read(write(tmp_path / "kernel_details.csv", DETAILS, a_card_at_half_speed()))
    )
    kept = own_kernels.load(own_kernels.write(own, tmp_path / "own.csv"))
    assert [dataclasses.replace(k, id="") for k in kept] == [
        dataclasses.replace(k, id="") for k in own
    ]
    config = DeepseekV3Config.preset("v3-671b").replace(
        num_hidden_layers=2, first_k_dense_replace=1
    )
    (theirs,) = layouts(config, [32], batch=8)
    (ours,) = layouts(config, [32], batch=8, model=own_kernels.model(kept))
    assert theirs.decode.device < ours.decode.device < 2.1 * theirs.decode.device


def test_too_few_points_of_your_own(tmp_path, norm):
    own = own_kernels.merge(profile_csv.read(write(tmp_path / "kernel_details.csv", DETAILS, norm)))
    with pytest.raises(PortError, match="1 points are too few"):
        own_kernels.model(own)


def test_refusals(tmp_path, norm):
    with pytest.raises(PortError, match=r"no kernel_details\*\.csv and no op_summary\*\.csv here"):
        profile_csv.read(tmp_path)
    file = write(tmp_path / "kernel_details.csv", DETAILS[:12], norm)
    with pytest.raises(PortError, match=r"column Input Shapes, .* is missing; profile with shapes"):
        profile_csv.read(file)
    file = write(tmp_path / "kernel_details.csv", DETAILS, [{**norm[0], "Duration(us)": "fast"}])
    with pytest.raises(PortError, match=r"line 2: 'fast' is not a time in µs"):
        profile_csv.read(file)
    file = write(tmp_path / "kernel_details.csv", DETAILS, [])
    with pytest.raises(PortError, match="no kernel with a time"):
        profile_csv.read(file)
    file.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(PortError, match="not readable as CSV"):
        profile_csv.read(file)
    with pytest.raises(PortError, match="not a file that"):
        own_kernels.load(write(tmp_path / "other.csv", DETAILS, norm))
    file.write_text(",".join(own_kernels.OUT) + "\na,b,c,8x8,bfloat16,8x8,,,three,1,1,1,1,1,,f\n")
    with pytest.raises(PortError, match="not readable as merged kernels"):
        own_kernels.load(file)

"""The shipped kernel data: what is in it, in which units, and that packages bring it along."""

from __future__ import annotations

import csv
import hashlib
import sys
from collections import Counter
from pathlib import Path

import pytest

from dsv3_port import paths
from dsv3_port.errors import PortError
from dsv3_port.forecast import kernels as data
from dsv3_port.forecast.kernel_work import work

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "npu-kernels"
# of the files as they were made from the package; an edit by hand must not go unseen
SHA256 = {
    "kernels.csv": "6570fa736e26f3f4c72a36a73749b81431a1c212b8e9cb2a514db343a717fe23",
    "gaps.csv": "c3a45b3de12d8f13ccaf5c176d828c774d7d12ad188a8cdfe7c97554bca90360",
    "forward-prefill-3585.csv": "591b1c7c94fabddc1f2bc970c08255645148f1453ce7a6dc3a4e7ffc18335cbe",
}


def test_files_are_as_they_were_made():
    for name, digest in SHA256.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_counts():
    points = data.kernels()
    assert (len(points), sum(k.n for k in points)) == (597, 53083)
    devices = Counter(k.device for k in points)
    assert devices["910B4-1"] == 348 and sum(devices.values()) == 597
    timed = [x.us for x in data.forward() if x.us is not None]
    assert (len(data.forward()), len(timed)) == (2782, 2541)
    assert sum(timed) / 1e3 == pytest.approx(897.4, abs=0.05)
    assert (len(data.gaps()), len(data.published())) == (14, 20)


def test_every_time_lies_between_its_smallest_and_largest():
    for k in data.kernels():
        assert 0 < k.low <= k.median <= k.high, k.id
        assert k.n >= 1 and k.files, k.id


def test_ids_are_lines_of_the_files():
    lines = (FOLDER / "kernels.csv").read_text(encoding="utf-8").splitlines()
    for k in data.kernels()[::37]:
        row = next(csv.reader([lines[int(k.id[1:]) - 1]]))
        assert (row[0], row[2], float(row[11])) == (k.device, k.kernel, k.median)
    assert data.by_id()["k225"].inputs == "8x2048;7168x2048"


@pytest.mark.parametrize(
    ("kernel", "inputs", "median", "low", "high", "n"),
    [
        ("AddRmsNorm", "8x7168;8x7168;7168", 4.78, 4.46, 5.52, 366),
        ("MatMulV2", "8x7168;512x7168", 11.86, 10.54, 13.78, 116),
        ("GroupedMatmul", "256x2048;2x2048x7168;2", 64.12, 61.141, 65.82, 8),
        ("SwiGlu", "458880x4096", 4957.579, 4937.159, 4999.699, 58),
    ],
)
def test_known_points(kernel, inputs, median, low, high, n):
    k = data.find(kernel, inputs)
    assert (k.median, k.low, k.high, k.n) == (median, low, high, n)


def test_units_by_hand():
    """MB is 10^6 bytes and GFLOP 10^9: an 8-row product of bfloat16, by hand."""
    k = data.find("MatMulV2", "8x7168;512x7168")
    assert k.mb == pytest.approx(2 * (8 * 7168 + 512 * 7168 + 8 * 512) / 1e6, abs=1e-4)
    assert k.gflop == pytest.approx(2 * 8 * 7168 * 512 / 1e9, abs=1e-4)


def test_bytes_and_flops_are_what_the_shapes_imply():
    for k in data.kernels():
        outs = [data.parse_shape(s) for s in k.outputs.split(";")]
        mb, gflop = work(k.kernel, k.shapes, k.dtypes.split(";"), outs, k.note)
        assert mb == pytest.approx(k.mb, abs=1e-4), k.id
        assert gflop == pytest.approx(k.gflop, abs=1e-4), k.id


def test_graph_and_eager_waits():
    by_file = {g.file.rsplit("/", 1)[-1]: g for g in data.gaps()}
    eager, graph = by_file["swiglu.csv"], by_file["dequant_swiglu_quant.csv"]
    assert (eager.state, eager.wait, eager.step_ms) == ("dynamic", 41.28, 485.93)
    assert (graph.state, graph.wait, graph.step_ms) == ("static", 1.05, 60.58)


def test_published_figures_name_their_page():
    for p in data.published():
        assert ": " in p.source and p.unit in ("ms", "µs", "GB/s"), p.id
    assert data.published()[0].value == 185.6


def test_a_point_that_is_not_there():
    with pytest.raises(PortError, match=r"no point of MatMulV2 9x9;9x9 \(bfloat16\) on 910B4-1"):
        data.find("MatMulV2", "9x9;9x9")


def test_missing_files_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    monkeypatch.setattr(paths, "SHIPPED", tmp_path)
    monkeypatch.chdir(tmp_path)
    data.kernels.cache_clear()
    with pytest.raises(PortError, match="kernels.csv is missing"):
        data.kernels()


def test_label_names_device_source_and_limits():
    said = data.label("910B4-1")
    for words in ("measured by others", "910B4-1", "msopmodeling 1.0.9", "Mulan PSL v2", "min–max"):
        assert words in said
    assert "Not a run of this course, not a whole step" in said


def test_packages_bring_data_licence_and_notice():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    assert 'COURSE = ("notebooks", "data", ' in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert "data/npu-kernels/LICENSE-MulanPSL2" in project["project"]["license-files"]
    assert "data/npu-kernels/NOTICE" in project["project"]["license-files"]
    licence = (FOLDER / "LICENSE-MulanPSL2").read_text(encoding="utf-8")
    assert "Mulan Permissive Software License，Version 2" in licence and "第2版" in licence
    notice = (FOLDER / "NOTICE").read_text(encoding="utf-8")
    for words in ("Huawei Technologies", "WITHOUT WARRANTIES", "msopmodeling 1.0.9"):
        assert words in notice

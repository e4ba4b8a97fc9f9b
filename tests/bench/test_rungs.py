"""The GPU's four rungs: an experiment's figures until a record replaces them, and never one as the other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dsv3_port.bench import cases, rungs
from dsv3_port.bench.records import Record
from dsv3_port.bench.speed_tables import what_of
from dsv3_port.errors import PortError
from dsv3_port.paths import repo_root
from dsv3_port.plots.graph_rungs import graph_rungs

RECORDED = repo_root() / "data" / "recorded"


def experiment() -> list[rungs.Rungs]:
    return rungs.recorded_rungs(RECORDED, [])


def record(name: str, seconds: float, mode: str) -> Record:
    info = {"device": "cuda:0", "device_name": "G", "tier": "cuda", "date": "2026-12-01"}
    sizes = {"phase": "decode", "batch": 1, "context": 64, "dtype": "bfloat16", "profile": "x"}
    versions = {"torch": "2.13.0"}
    return Record(name, [seconds] * 3, run="r", mode=mode, versions=versions, **info, **sizes)


def test_the_experiments_figures_are_those_that_were_told() -> None:
    found = {(r.what.split()[0], r.batch): r for r in experiment()}
    assert len(found) == 6
    one = found["moe-32", 1]
    assert one.seconds["eager"][0] / one.seconds["captured"][0] == pytest.approx(7.25, abs=0.01)
    assert one.seconds["compiled and captured"] == (195e-6, 231e-6) and one.bound == 45e-6
    for r in found.values():  # bound and share say the same, as rounded as they were told
        best = min(low for low, _ in r.seconds.values())
        assert r.bound / best == pytest.approx(r.share, abs=0.015)
        assert r.experiment and "2026-11-27" in r.where and "not a record" in r.where
        assert "H100" in r.where and "three warm-up calls" in r.where


def test_a_record_replaces_the_experiment(tmp_path: Path) -> None:
    shutil.copy(RECORDED / "experiment-h100.json", tmp_path)
    assert rungs.recorded_rungs(tmp_path, []) == experiment()
    records = [
        record("eager", 2e-3, "eager"),
        record("captured", 4e-4, "captured"),
        record("read", 1e-3, "eager"),
    ]
    facts = {"read": {"work": 2e9, "rate": 2e12}, "eager": {"work": 1e8, "fraction": 0.025}}
    facts["captured"] = {"work": 1e8, "fraction": 0.125}
    case = cases.Case("moe-8-bfloat16-decode-b1-c64", "2026-12-01", "c", 3, records, facts=facts)
    bench = cases.Bench(1, "graphs", "cuda", "G", cases.this_host(), [case])
    (found,) = rungs.recorded_rungs(tmp_path, [bench])
    assert not found.experiment and found.bound == pytest.approx(5e-5) and found.share == 0.125
    assert set(found.seconds) == {"eager", "captured"}
    assert found.what == "moe-8 bfloat16 decode, batch 1, 64 cached"
    assert what_of(case) == f"{found.what}, G"  # in a table with a CPU's rows
    assert "Recorded" in rungs.markdown([found]) and "Experiment" not in rungs.markdown([found])
    assert graph_rungs([found]).get_suptitle().startswith("Recorded on a GPU")


def test_the_split_attention_is_a_column_where_it_was_recorded(tmp_path: Path) -> None:
    """Beside the four, whose share of the bound stays theirs."""
    split, both = rungs.SPLIT, "compiled and captured"
    records = [
        record("eager", 2e-3, "eager"),
        record(both, 4e-4, "compiled-captured"),
        record(split, 3e-4, "compiled-captured"),
        record("read", 1e-3, "eager"),
    ]
    facts = {"read": {"work": 2e9, "rate": 2e12}, "eager": {"work": 1e8, "fraction": 0.025}}
    facts |= {both: {"work": 1e8, "fraction": 0.125}, split: {"work": 1e8, "fraction": 0.25}}
    key = "moe-8-bfloat16-decode-b1-c64-buffer4"
    case = cases.Case(key, "2026-12-01", "c", 3, records, facts=facts)
    bench = cases.Bench(1, "graphs", "cuda", "G", cases.this_host(), [case])
    (found,) = rungs.recorded_rungs(tmp_path, [bench])
    assert found.what.endswith("decode, batch 1, 64 cached, buffer 4 times as long")
    assert found.share == 0.125
    assert f"| {both} | {split} | the device's bound |" in rungs.markdown([found])
    assert "| 400 µs | 300 µs | 50.0 µs |" in rungs.markdown([found])
    assert split not in rungs.markdown(experiment())


def test_spans_are_in_one_unit_where_they_can() -> None:
    assert rungs.span_text(195e-6, 231e-6) == "195–231 µs"
    assert rungs.span_text(868e-6, 1.021e-3) == "868 µs–1.02 ms"
    assert rungs.span_text(1e-3, 1e-3) == "1.00 ms"


def test_the_picture_says_what_it_is() -> None:
    figure = graph_rungs(experiment())
    assert figure.get_suptitle().startswith("EXPERIMENT") and len(figure.axes) == 3
    assert "compiled and captured 195–231 µs" in figure.alt_text and "2026-11-27" in figure.alt_text
    with pytest.raises(PortError, match="no decode step with batch 3"):
        graph_rungs(experiment(), batch=3)


def test_the_file_holds_no_more_than_was_told() -> None:
    found = json.loads((RECORDED / "experiment-h100.json").read_text(encoding="utf-8"))
    assert {len(row) for row in found["rows"]} == {8} and found["unit"] == "microseconds a step"
    assert all(cases.load_all(RECORDED)) and "No GPU has been measured" in rungs.markdown([])

"""The record of the vendor's tests: counted once, printed from there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3_port.hostnpu import vendor_counts

ROOT = Path(__file__).parents[2]


def result(test: str, outcome: str, reason: str = "", file: str = "test_a.py") -> dict[str, str]:
    return {"file": file, "test": test, "outcome": outcome, "reason": reason}


FOUND = [
    *(result(f"test_{i}", "passed") for i in range(6)),
    result("test_6", "refused"),
    result("test_7", "broken"),
    result("test_8", "failed", "AssertionError: other"),
    result("test_9", "failed", "AssertionError: result error"),
    result("test_b", "skipped", file="test_b.py"),
]


def test_a_record_counts_and_keeps_reasons() -> None:
    data = vendor_counts.record(FOUND, {"test_a.py::test_9": "by hand"})
    assert data["files"] == 2
    assert data["counts"] == {
        **{"passed": 6, "refused": 1, "broken": 1, "failed": 2, "skipped": 1, "left out": 0}
    }
    assert data["failed"] == {
        "AssertionError: other": ["test_a.py::test_8"],
        "by hand": ["test_a.py::test_9"],
    }
    assert vendor_counts.share(data["counts"]) == 0.8


def test_the_table_says_what_the_record_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(vendor_counts.record(FOUND, {})), encoding="utf-8")
    monkeypatch.setattr(vendor_counts, "DATA", file)
    text = vendor_counts.table()
    assert "2 files, 11 tests; 10 ran, of which 8 (80.0%)" in text
    assert "| passed | 6 |" in text and "`test_a.py::test_8`" in text and "left out" not in text


def test_later_results_of_a_file_replace_earlier_ones(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "ci" / "tools"))
    try:
        import vendor_record
    finally:
        sys.path.remove(str(ROOT / "ci" / "tools"))
    for name, outcome in (("1.json", "failed"), ("2.json", "passed")):
        (tmp_path / name).write_text(json.dumps([result("test_0", outcome)]), encoding="utf-8")
    assert [r["outcome"] for r in vendor_record.merged([tmp_path])] == ["passed"]


def test_the_tool_without_results_says_how() -> None:
    done = subprocess.run(
        [sys.executable, "ci/tools/vendor_record.py"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2 and "vendor-tests.json" in done.stderr


def test_the_record_in_the_package_reaches_what_is_asked() -> None:
    """Of those that ran, 2,350 of 2,472 (95.07 %) pass or are refused by name."""
    data = json.loads(vendor_counts.DATA.read_text(encoding="utf-8"))
    assert vendor_counts.share(data["counts"]) >= 2350 / 2472
    assert set(data) == {"files", "counts", "failed", "why"}

"""ci/tools/mutate_hostnpu.py: each of its faults still fits the code, and names tests that are there."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "ci" / "tools"))

import mutate_hostnpu  # noqa: E402


def test_every_fault_can_be_made() -> None:
    for row in mutate_hostnpu.MUTATIONS:
        text = (ROOT / "dsv3_port" / row.file).read_text(encoding="utf-8")
        assert text.count(row.old) == 1 and row.new != row.old, row
        for test in row.tests.split():
            file, _, name = test.partition("::")
            function = name.partition("[")[0]
            assert f"def {function}" in (ROOT / file).read_text(encoding="utf-8"), row

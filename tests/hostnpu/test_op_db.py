"""PyTorch's operator database over the host NPU: nothing is further from the CPU than op_db.json says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from .processes import ROOT, needs_torch_npu

LIST = Path(__file__).with_name("op_db.json")


@needs_torch_npu
@pytest.mark.skipif(
    importlib.util.find_spec("expecttest") is None,
    reason="torch.testing's operator database needs expecttest",
)
def test_no_operator_got_worse() -> None:
    done = subprocess.run(
        [sys.executable, "ci/tools/op_db.py", "--against", str(LIST)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "none got worse" in done.stdout


def test_what_is_not_equal_has_a_reason() -> None:
    words = json.loads(LIST.read_text(encoding="utf-8"))
    for name, (word, reason) in words.items():
        assert word in ("close", "refused", "error", "differs", "left out") and reason, name

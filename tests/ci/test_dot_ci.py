""".ci/run: what runs side by side is all waited for, and one failure is enough."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
echo "$2" >> "$LOG"
[ "$2" != test ] || sleep 0.3
echo "said by $2"
[ "$2" != "$FAILS" ]
"""


@pytest.mark.parametrize("fails", ["", "setup", "test", "check", "tutorial"])
def test_one_failure_is_enough(fails: str, tmp_path: Path) -> None:
    """With a Python that only notes what it was asked for."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    fake = tmp_path / "python3"
    fake.write_text(PYTHON)
    fake.chmod(0o755)
    log = tmp_path / "log"
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "FAILS": fails}
    done = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "run")], env=env, capture_output=True, text=True, timeout=60
    )
    asked = ["setup"] if fails == "setup" else ["check", "setup", "test", "tutorial"]
    assert sorted(log.read_text().split()) == asked  # after a failure the others still run
    assert (done.returncode == 0) == (fails == ""), done.stdout + done.stderr
    assert all(f"said by {word}" in done.stdout for word in asked)

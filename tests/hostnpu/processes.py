"""Start Python processes for tests in which the state of a process matters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from dsv3_port import hostnpu
from tests import forks

ROOT = Path(__file__).parents[2]
REASON = hostnpu.why_not()
needs_torch_npu = pytest.mark.skipif(bool(REASON), reason=f"no host NPU here: {REASON}")


def start(code: str, **environment: str | None) -> subprocess.Popen[str]:
    """Run code in a new Python with these variables (None removes one); its output is captured."""
    env = _changed(environment)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=ROOT,
    )


def _changed(environment: Mapping[str, str | None]) -> dict[str, str]:
    return {k: v for k, v in (os.environ | environment).items() if v is not None}


def output(code: str, **environment: str | None) -> str:
    """What it prints; an exit code other than 0 is a failure."""
    child = start(code, **environment)
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, out + err
    return out.strip()


def forked(code: str, **environment: str | None) -> str:
    """The same in a fork of a process that has imported torch and transformers (tests/forks.py), at a
    third of the cost: where the start and the end of the process are not what a test looks at."""
    done = forks.python(code, _changed(environment))
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0, out + err
    return out.strip()

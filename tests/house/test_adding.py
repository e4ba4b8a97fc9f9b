"""docs/adding.md, followed word by word in a copy: its toy operator and its toy step are found by
what is made from the tables."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r'```python title="([^"]+)"(?: (after|before)="([^\n]+)")?\n(.*?)```', re.DOTALL)
CODE = """
import torch
from dsv3_port import PortPlan, STEPS, ops, hostnpu
from dsv3_port.plan import CHOICES
from dsv3_port.steps import step

assert ops.npu_relu(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
assert "npu_relu" in ops.OPERATORS
try:
    ops.npu_relu(torch.tensor([1]))
except TypeError as error:
    assert "npu_relu" in str(error)
else:
    raise SystemExit("an integer was taken")
assert PortPlan.with_steps("no_scale").scale == "left" and "scale" in CHOICES
assert "no_scale" in PortPlan.full().step_ids and step("6.5").id == "no_scale"
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The checkout without its weights, changed as the page says."""
    at = tmp_path_factory.mktemp("adding") / "checkout"
    leave = shutil.ignore_patterns("*.safetensors", "__pycache__", "*.egg-info")
    for name in ("dsv3_port", "notebooks", "docs", "ci", "data"):
        shutil.copytree(ROOT / name, at / name, ignore=leave)
    blocks = BLOCK.findall((ROOT / "docs" / "adding.md").read_text(encoding="utf-8"))
    assert len(blocks) == 5
    for name, where, anchor, code in blocks:
        file, anchor = at / name, anchor.replace("\\n", "\n")
        if not where:
            assert not file.exists()
            file.write_text(code, encoding="utf-8")
            continue
        text = file.read_text(encoding="utf-8")
        assert text.count(anchor) == 1, f"{name}: {anchor!r}"
        new = f"{anchor}\n{code.rstrip()}" if where == "after" else f"{code.rstrip()}\n{anchor}"
        file.write_text(text.replace(anchor, new), encoding="utf-8")
    return at


def run(at: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=at, capture_output=True, text=True)


def test_the_toys_are_there(copy):
    done = run(copy, "-c", CODE)
    assert done.returncode == 0, done.stderr


def test_the_tables_and_the_command_line_know_the_step(copy):
    done = run(copy, "-m", "dsv3_port", "plan", "--steps")
    assert done.returncode == 0 and "no_scale" in done.stdout, done.stderr


def test_the_house_still_stands(copy):
    shutil.copytree(ROOT / "tests" / "house", copy / "tests" / "house")
    (copy / "tests" / "__init__.py").touch()
    done = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/house/test_imports.py")
    assert done.returncode == 0, done.stdout[-3000:]

"""Runs the files of inside/, each in a process in which the host NPU is enabled (plugin
enabled.py): it stays so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .processes import ROOT, needs_torch_npu

INSIDE = Path(__file__).with_name("inside")
# importing torch and torch_npu takes longer than most of these files: they share processes
OPERATORS = (
    "check_aten.py",
    "check_beyond_cpu.py",
    "check_devices.py",
    "check_operators.py",
    "check_schemas.py",
    "check_training.py",
    "check_ge.py",
)
MODELS = (
    "check_capture.py",
    "check_captured_step.py",
    "check_layers.py",
    "check_model.py",
    "check_npu_graphs.py",
)
PAGED = ("check_mtp.py", "check_paged.py", "check_prolog.py", "check_slots.py")
W8A8 = ("check_int8.py", "check_nz.py")  # what the first has run in a mode, the second looks at too
GRAPHS = ("check_graphs.py",)  # as long as the rest together: another worker can take it


def check(*files: str, **environment: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-p",
            "tests.hostnpu.enabled",
            *(str(INSIDE / file) for file in files),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


def test_every_file_is_run() -> None:
    assert {file.name for file in INSIDE.glob("check_*.py")} == {
        *OPERATORS,
        *MODELS,
        *PAGED,
        *W8A8,
        *GRAPHS,
    }


@needs_torch_npu
def test_operators() -> None:
    check(*OPERATORS)


@needs_torch_npu
def test_models() -> None:
    check(*MODELS)


@needs_torch_npu
def test_paged() -> None:
    check(*PAGED)


@needs_torch_npu
def test_w8a8() -> None:
    check(*W8A8)


@needs_torch_npu
def test_graphs() -> None:
    check(*GRAPHS)


@needs_torch_npu
def test_operators_with_a_cann_version() -> None:
    """torch_npu asks for CANN's version and takes other branches from 8.5 and 9.0 on; without one,
    none of them."""
    check("check_operators.py", DSV3_HOSTNPU_CANN="9.0.0")

"""Run somebody's program for torch_npu on the host NPU: `dsv3-port hostnpu run`.

The program's own process and every Python process that it starts (torchrun's ranks, spawned
workers) have device npu as soon as they import torch: a folder with a sitecustomize.py stands on
their path (children/).
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import PortError
from . import CARDS, enable, why_not

CHILDREN = Path(__file__).with_name("children")
DEVICES = "DSV3_HOSTNPU_DEVICES"
SOC = "DSV3_HOSTNPU_SOC"
PREFIX = "Ascend"


def chip(name: str) -> str:
    """The name that torch_npu is told: "910B4" and "Ascend910B4" are one."""
    full = name if name.startswith(PREFIX) else PREFIX + name
    if (
        not full.startswith(("Ascend910", "Ascend950", "Ascend310"))
        or not full.isalnum()
        and "_" not in full
    ):
        raise PortError(f"--soc {name}: a chip's name is wanted, such as 910B4, 910B2 or 910_9391")
    return full


def environment(soc: str | None, devices: int) -> dict[str, str]:
    """What the children of a program need."""
    if devices < 1:
        raise PortError(f"--devices {devices}: at least one is needed")
    before = os.environ.get("PYTHONPATH")
    found = {
        DEVICES: str(devices),
        "PYTHONPATH": os.pathsep.join([str(CHILDREN), *([before] if before else [])]),
    }
    if soc:
        found[SOC] = chip(soc)
    return found


def run(program: Sequence[str], *, module: bool, soc: str | None, devices: int = CARDS) -> None:
    """Run program[0], a script's path or a module's name, with the rest as its arguments, in this
    process. What it raises, and its exit code, are its own."""
    if not program:
        raise PortError("hostnpu run: name a script, or -m and a module")
    name = program[0]
    if not module and not Path(name).is_file():
        raise PortError(f"{name}: there is no such script; a module is run with -m")
    reason = why_not()
    if reason:
        raise PortError(reason)
    os.environ.update(environment(soc, devices))
    enable(devices)
    sys.argv = [name, *program[1:]]
    if module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(name).resolve().parent))
        runpy.run_path(name, run_name="__main__")

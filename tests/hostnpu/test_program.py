"""Strangers' programs on the host NPU: `dsv3-port hostnpu run`, the pytest plugin, the runner of the
vendor's tests on small files of that form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3_port.errors import PortError
from dsv3_port.hostnpu import program, vendor_child, vendor_tests
from tests import forks

from .processes import ROOT, needs_torch_npu


def command(
    *arguments: str, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=env, cwd=cwd, timeout=600
    )


def test_names_of_chips() -> None:
    assert program.chip("910B2") == program.chip("Ascend910B2") == "Ascend910B2"
    for wrong in ("H100", "", "910 B"):
        with pytest.raises(PortError, match="--soc"):
            program.chip(wrong)
    with pytest.raises(PortError, match="--devices 0"):
        program.environment(None, 0)


SCRIPT = """
import subprocess, sys
import torch
import helper
x = torch.ones(2, device=helper.DEVICE) * float(sys.argv[1])
print(__name__, torch.npu.get_device_name(0), torch.npu.device_count(), x.sum().item(), flush=True)
if "alone" not in sys.argv:
    print(subprocess.run([sys.executable, "-c", "import torch; print(torch.ones(3, device='npu').sum().item())"],
                         capture_output=True, text=True).stdout.strip(), flush=True)
sys.exit(5)
"""


@needs_torch_npu
def test_a_program_and_its_children(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "helper.py").write_text("DEVICE = 'npu:1'\n", encoding="utf-8")
    run = ("-m", "dsv3_port", "hostnpu", "run", "--soc", "910B2", "--devices", "2")
    done = command(*run, str(tmp_path / "script.py"), "4")
    assert done.stdout.splitlines() == ["__main__ Ascend910B2 2 8.0", "3.0"], done.stderr
    assert done.returncode == 5
    done = command(*run, "-m", "script", "4", "alone", cwd=tmp_path)
    assert done.stdout.splitlines() == ["__main__ Ascend910B2 2 8.0"], done.stderr
    refused = forks.command(*run[2:], "nothing.py")
    assert refused.returncode == 2 and b"nothing.py: there is no such script" in refused.stderr


TEST = """
import torch
def test_device():
    assert torch.ones(2, device="npu").sum().item() == 2 and torch.npu.device_count() == 3
def test_forgotten_npu():
    torch.ones(2, 2, device="npu") @ torch.ones(2, 2)
"""


@needs_torch_npu
def test_pytest_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TEST, encoding="utf-8")
    plugin = ("-p", "dsv3_port.hostnpu.pytest_plugin", "--hostnpu-devices", "3")
    done = command("-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, "-v", cwd=tmp_path)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "no time taken here is a time of an NPU" in done.stdout
    assert "Expected all tensors to be on the same device" in done.stdout
    done = command(
        "-m",
        "pytest",
        "-p",
        "dsv3_port.hostnpu.pytest_plugin",
        "--hostnpu-devices",
        "0",
        cwd=tmp_path,
    )
    assert done.returncode == 4 and "--devices 0: at least one" in done.stderr


VENDOR = """
import unittest
import torch, torch_npu
from torch_npu.testing.testcase import TestCase, run_tests
from torch_npu.testing.common_utils import SupportedDevices, SkipIfNotGteCANNVersion
from torch_npu.testing.common_utils import test_2args_broadcast  # a decorator, no test

class TestSum(TestCase):
    def test_sum(self):
        self.assertEqual(torch.ones(3).npu().sum().item(), 2)  # hidden by the next one, and wrong
    def test_sum(self):
        self.assertRtolEqual(torch.ones(3).npu() * 2, torch.ones(3).npu() + 1)
    @unittest.skip("too old")
    def test_old(self):
        torch_npu.npu_linear(torch.ones(2, 2).npu(), torch.ones(2, 2).npu())
    @SkipIfNotGteCANNVersion("99.0.0")
    def test_version(self):
        pass
    @SupportedDevices(["Ascend910B"])
    def test_chip(self):
        pass
    @SupportedDevices(["Ascend950"])
    def test_other_chip(self):
        raise AssertionError
    def test_known(self):
        raise AssertionError("as it is known")
"""


def outcomes(found: list[vendor_tests.Result]) -> dict[str, str]:
    return {r.test: r.outcome for r in found}


def test_a_file_that_does_not_import_is_no_broken_test(tmp_path: Path) -> None:
    """Its one entry has the file's name, which a test that is known to be broken may have too."""
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="" name="test_npu_sum"><error message="collection '
        "failure\">ModuleNotFoundError: No module named 'einops'</error></testcase></testsuite></testsuites>"
    )
    (found,) = vendor_tests.read(
        report, "test_npu_sum.py", {"test_npu_sum.py::test_npu_*": "so it is"}
    )
    assert found.outcome == "failed" and "einops" in found.reason
    assert vendor_tests.wanted_packages([found]) == ["einops"]


@needs_torch_npu
def test_vendor_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("expecttest")
    file = tmp_path / "test" / "test_custom_ops" / "test_npu_sum.py"
    file.parent.mkdir(parents=True)
    file.write_text(VENDOR, encoding="utf-8")
    known = {"test_npu_sum.py::test_known": "it says so itself"}
    monkeypatch.setattr(vendor_tests, "known_broken", lambda: known)
    shipped = next(vendor_tests.results([file], False, "", (60, 300)))[1]
    assert outcomes(shipped) == {
        "test_sum": "passed",
        "test_old": "skipped",
        "test_version": "skipped",
        "test_chip": "passed",
        "test_other_chip": "skipped",
        "test_known": "broken",
    }
    into = tmp_path / "found.json"
    assert vendor_tests.run(tmp_path, lifted=True, into=into) == 1
    written = {r["test"]: r for r in json.loads(into.read_text(encoding="utf-8"))}
    assert {t: r["outcome"] for t, r in written.items()} == {
        "test_sum": "passed",
        "test_sum__hidden1": "failed",
        "test_old": "refused",
        "test_version": "passed",
        "test_chip": "passed",
        "test_other_chip": "skipped",
        "test_known": "broken",
    }
    assert written["test_sum__hidden1"]["hidden"] and "950" in written["test_other_chip"]["reason"]
    with pytest.raises(PortError, match="no file or test"):
        vendor_tests.run(tmp_path, only="nowhere", into=into)
    with pytest.raises(PortError, match="a checkout of Ascend/op-plugin is wanted"):
        vendor_tests.run(tmp_path / "test", into=into)


ENDS = """
import os
def test_first(): pass
def test_end(): os._exit(3)
"""
LONG = """
import time
def test_waits(): time.sleep(2)  # of the clock, not of the processor
def test_long():
    while True: pass
def test_next(): pass
"""
FORMAT = """
import torch, torch_npu
def test_nz():
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast(torch.ones(16, 16).npu(), 29)) == 29
"""


@needs_torch_npu
def test_vendor_files_end_alone(tmp_path: Path) -> None:
    pytest.importorskip("expecttest")
    sources = {
        "test_ends.py": ENDS,
        "test_long.py": LONG,
        "test_format_cast.py": FORMAT,
        "test_other.py": FORMAT,
        "test_stuck.py": "import time\ntime.sleep(600)\n",
    }
    for name, source in sources.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    files = [tmp_path / name for name in sources]
    limits = dict.fromkeys(sources, 300) | {"test_stuck.py": 5}
    with vendor_tests.server(False, 1) as run:
        found = {f.name: vendor_tests.one(f, run, "", limits[f.name], {}) for f in files}
    assert "the process ended with 3" in found["test_ends.py"][0].reason
    assert "longer than 5 s" in found["test_stuck.py"][0].reason
    long = {r.test: r for r in found["test_long.py"]}
    assert [r.outcome for r in long.values()] == ["passed", "failed", "passed"]
    assert "1 s of processor time" in long["test_long"].reason
    assert long["test_long"].at.startswith("test_long.py:")
    assert found["test_format_cast.py"][0].outcome == "passed"
    assert found["test_other.py"][0].outcome == "failed"  # torch_npu's own default


def test_hidden_methods_get_names_of_their_own() -> None:
    source = "class T:\n    def test_a(self): return 1\n    def test_a(self): return 2\n    def b(self): 0\n"
    space: dict[str, type] = {}
    exec(vendor_child.unhide(source), space)
    one = space["T"]()
    assert (one.test_a(), one.test_a__hidden1()) == (2, 1)


def test_broken_tests_have_reasons() -> None:
    known = vendor_tests.known_broken()
    assert all("::" in name and len(why) > 10 for name, why in known.items())
    name = "test_npu_moe_init_routing_v2.py"
    assert vendor_tests.broken(name, "test_npu_moe_init_routing_no_quant", known)
    assert not vendor_tests.broken(name, "test_npu_moe_init_routing_empty_tensor", known)

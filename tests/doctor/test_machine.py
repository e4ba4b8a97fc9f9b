"""The doctor: never falls over, and names the remedy for each way a machine can be incomplete."""

from __future__ import annotations

import json
import types

import pytest

from dsv3_port.cli import doctor as command
from dsv3_port.doctor import ascend
from dsv3_port.doctor import machine as doctor
from dsv3_port.doctor.machine import FAIL, NA, OK, WARN
from dsv3_port.hostnpu import cann
from dsv3_port.messages import using


@pytest.fixture
def versions(monkeypatch):
    """Installed versions by package; what is not in it is not installed."""
    found = {
        "torch": "2.13.0+cpu",
        "transformers": "5.23.0",
        "jupyterlab": "4",
        "papermill": "2",
        "nbconvert": "7",
        "ipykernel": "7",
    }
    monkeypatch.setattr(doctor, "version_of", found.get)
    monkeypatch.setattr(ascend, "version_of", found.get)
    return found


@pytest.fixture
def no_cann(monkeypatch, tmp_path):
    for module in (doctor, ascend):
        monkeypatch.setattr(module, "environment", lambda name, default=None: default)
    for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cann, "CANN_HOMES", ())
    monkeypatch.setattr(ascend, "DEVICES", tmp_path)
    monkeypatch.setattr(cann, "on_loader_path", lambda name: None)


def torch_like(npu: int | None = None, cuda: bool = False):
    fake = types.SimpleNamespace(
        get_num_threads=lambda: 2,
        version=types.SimpleNamespace(cuda=None),
        cuda=types.SimpleNamespace(is_available=lambda: cuda, get_device_name=lambda: "card"),
    )
    if npu is not None:
        fake.npu = types.SimpleNamespace(is_available=lambda: npu > 0, device_count=lambda: npu)
    return fake


def test_every_check_here_has_a_status_and_failures_have_a_remedy():
    found = doctor.checks()
    assert [c.name for c in found[:4]] == ["Python", "torch", "transformers", "device"]
    assert len({c.name for c in found}) == len(found) == 17
    for check in found:
        assert check.status in (OK, WARN, FAIL, NA)
        assert check.detail
        assert check.remedy or check.status in (OK, NA)
    assert {c.name: c for c in found}["torch"].status == OK


def test_a_broken_torch_does_not_break_the_doctor(monkeypatch, versions, no_cann):
    def fail(name):
        raise OSError("libascendcl.so: cannot open\nshared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    versions["torch-npu"] = "2.13.0"
    found = {c.name: c for c in doctor.checks()}
    assert found["torch"].status == FAIL
    assert "OSError: libascendcl.so: cannot open shared object file" in found["torch"].detail
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in found["torch"].remedy
    assert found["device"].status == FAIL
    assert found["torch_npu"].status == FAIL
    assert found["embedded model"].status == NA


def test_the_doctor_speaks_chinese_and_its_json_english(monkeypatch, capsys):
    with using("zh"):
        assert doctor._tier(None).detail == "没有 torch 就没有设备"
        monkeypatch.setattr(doctor, "checks", lambda: [doctor._tier(None)])
        args = types.SimpleNamespace(room=False, json=False)
        assert command.run(args) == 1
        assert "设备" in (said := capsys.readouterr().out) and "见上面的 torch" in said
        args.json = True
        command.run(args)
        assert json.loads(capsys.readouterr().out)[0]["detail"] == "no device without torch"


def test_a_check_that_falls_over_is_a_finding():
    def fail():
        raise ZeroDivisionError("x")

    assert doctor._guarded("name", fail).status == FAIL


@pytest.mark.parametrize(
    ("version", "status"), [("2.13.0", OK), ("2.9.1+cu128", OK), ("2.8.0", FAIL), (None, FAIL)]
)
def test_torch_version(versions, version, status):
    versions["torch"] = version
    check = doctor._torch(torch_like(), "")
    assert check.status == status
    assert ("tested with" in check.detail) == (version == "2.9.1+cu128")


@pytest.mark.parametrize(
    ("version", "status"),
    [("5.20.2", OK), ("5.99.0", OK), ("4.57.0", FAIL), ("6.0.0.dev0", FAIL), (None, FAIL)],
)
def test_transformers_range(versions, version, status):
    versions["transformers"] = version
    check = doctor._transformers()
    assert check.status == status
    assert ("'transformers>=5.20,<6'" in check.remedy) == (status == FAIL)


def test_tier():
    assert doctor._tier(torch_like(npu=8, cuda=True)).detail.startswith("npu")
    assert doctor._tier(torch_like(npu=0, cuda=True)).detail.startswith("cuda")
    assert doctor._tier(torch_like()).detail.startswith("cpu")


def test_compiler_and_headers(monkeypatch, no_cann, tmp_path):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert "none found" in doctor._compiler().detail
    monkeypatch.setattr(
        doctor.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "clang++" else None
    )
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "headers" in doctor._compiler().detail
    (tmp_path / "Python.h").touch()
    assert (doctor._compiler().status, doctor._compiler().detail) == (OK, "clang++")


def test_disk_and_load(monkeypatch):
    import psutil

    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=2**20)
    )
    assert doctor._disk().status == FAIL
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "getloadavg", lambda: (2.1, 0, 0))
    assert doctor._busy().status == WARN
    monkeypatch.setattr(psutil, "getloadavg", lambda: (1.9, 0, 0))
    assert doctor._busy().status == OK


def test_missing_notebook_tools(versions):
    assert doctor._notebooks().status == OK
    del versions["papermill"]
    assert doctor._notebooks().remedy == "pip install papermill"


def test_numbers():
    assert doctor.numbers("2.13.0+cpu") == (2, 13, 0)
    assert doctor.numbers("6.0.0.dev0") == (6, 0, 0)
    assert doctor.numbers("2.9.0rc1")[:2] == (2, 9)


def test_host_npu_says_where_it_is_or_why_not(monkeypatch, no_cann):
    status = doctor.hostnpu.Status(False, "", "/some/folder", "2.13.0", False)
    monkeypatch.setattr(doctor.hostnpu, "status", lambda: status)
    found = doctor._host_npu()
    assert (
        found.status == OK
        and "torch_npu 2.13.0 in /some/folder" in found.detail
        and "enable()" in found.detail
    )
    monkeypatch.setattr(
        doctor.hostnpu, "status", lambda: doctor.hostnpu.Status(False, "no compiler", "", "", False)
    )
    assert doctor._host_npu() == doctor.Check("host NPU", NA, "no compiler")
    monkeypatch.setattr(cann, "CANN_HOMES", ("/",))
    assert "never loaded" in doctor._host_npu().detail


def test_the_stand_in_is_not_shown_as_an_npu(monkeypatch):
    monkeypatch.setattr(doctor.hostnpu, "enabled", lambda: True)
    assert doctor._tier(torch_like(npu=8)).detail.startswith("npu: host stand-in")

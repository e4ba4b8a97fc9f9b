"""Machines with Ascend that are incomplete in a known way, faked in a folder: what is found, and
which remedy named."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from dsv3_port.doctor import ascend, npu_smi, versions
from dsv3_port.doctor import machine as doctor
from dsv3_port.doctor.findings import FAIL, NA, OK, WARN, Check
from dsv3_port.hostnpu import cann as place

PAIR = "pip install --extra-index-url https://download.pytorch.org/whl/cpu torch==2.12.0 torch-npu==2.12.0"

TABLE = """
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.0                   Version: 24.1.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B1               | OK            | 94.2        41                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3390 / 65536         |
+===========================+===============+====================================================+
| 1     910B1               | OK            | 90.0        40                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          3391 / 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| No running processes found in NPU 0                                                            |
"""
# two dies a card: the second column of the first cell is the die's number, and both have their own
#     lines
A3 = """
| npu-smi 25.2.0                   Version: 25.2.0                                               |
| 0     Ascend910           | OK            | 178.6       36                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          60000/ 65536         |
| 0     Ascend910           | OK            | -           36                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          3158 / 65536         |
"""


class Machine:
    """A faked Ascend machine that is complete; tests take something away."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.versions = {"torch": "2.12.0+cpu", "torch-npu": "2.12.0", "transformers": "5.23.0"}
        self.home, self.dev = folder / "cann", folder / "dev"
        (self.home / "lib64").mkdir(parents=True)
        self.dev.mkdir()
        for name in ("ascendcl", "hccl"):
            (self.home / "lib64" / f"lib{name}.so").touch()
        (self.home / "set_env.sh").touch()
        self.info = self.home / "x86_64-linux" / "ascend_toolkit_install.info"
        self.info.parent.mkdir()
        self.cann("9.1.0")
        for name in ("davinci0", "davinci1", "davinci_manager"):
            (self.dev / name).touch()
        self.environment = {
            "ASCEND_HOME_PATH": str(self.home),
            "ASCEND_OPP_PATH": str(self.home / "opp"),
            "LD_LIBRARY_PATH": f"/usr/lib:{self.home}/lib64",
        }
        self.smi = types.SimpleNamespace(returncode=0, stdout=TABLE, stderr="")
        self.tools = {"npu-smi": "/usr/local/bin/npu-smi"}
        for module in (ascend, doctor):
            monkeypatch.setattr(module, "version_of", self.versions.get)
            monkeypatch.setattr(
                module,
                "environment",
                lambda name, default=None: self.environment.get(name, default),
            )
        monkeypatch.setattr(place, "os", types.SimpleNamespace(environ=self.environment))
        monkeypatch.setattr(place, "CANN_HOMES", (str(self.home),))
        monkeypatch.setattr(ascend, "DEVICES", self.dev)
        monkeypatch.setattr(place, "on_loader_path", lambda name: None)
        monkeypatch.setattr(ascend.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(ascend.shutil, "which", self.tools.get)
        monkeypatch.setattr(npu_smi.subprocess, "run", lambda *a, **k: self.smi)

    def cann(self, version: str) -> None:
        self.info.write_text(
            f"package_name=Ascend-cann-toolkit\nversion={version}\ninnerversion=V100\n"
        )

    def found(self) -> dict[str, Check]:
        made = [
            ascend.torch_npu(),
            ascend.cann(),
            ascend.set_env(),
            ascend.hccl(),
            ascend.mindspeed(),
        ]
        return {c.name: c for c in made + npu_smi.checks()}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def test_a_complete_machine_is_fine(machine):
    found = machine.found()
    assert {c.status for c in found.values()} == {OK, NA}
    assert [name for name, c in found.items() if c.status == NA] == ["MindSpeed"]
    assert (
        "9.1.0" in found["CANN"].detail and "the one for torch_npu 2.12.0" in found["CANN"].detail
    )
    assert found["driver"].detail == "npu-smi 24.1.0, 2 × 910B1"
    assert found["free HBM"].detail == "60.7, 60.7 GiB of 64"


def test_without_anything_of_ascend_nothing_is_needed(machine, monkeypatch):
    monkeypatch.setattr(place, "CANN_HOMES", ())
    monkeypatch.setattr(ascend, "DEVICES", machine.home)
    machine.environment.clear()
    machine.tools.clear()
    del machine.versions["torch-npu"]
    assert {c.status for c in machine.found().values()} == {NA}


# The well-known mismatches: what is changed, which check tells it, and words of the remedy.
MISMATCHES = [
    (
        "torch is newer than torch_npu",
        {"torch": "2.13.0", "torch-npu": "2.12.0"},
        "9.1.0",
        "torch_npu",
        FAIL,
        f"{PAIR}; or keep torch_npu: pip install torch==2.12.0",
    ),
    (
        "the patch release differs",
        {"torch": "2.9.1", "torch-npu": "2.9.0.post6"},
        "9.1.0",
        "torch_npu",
        FAIL,
        "pip install torch==2.9.0",
    ),
    (
        "torch_npu of the old sample",
        {"torch": "2.13.0", "torch-npu": "2.1.0.post8"},
        "9.1.0",
        "torch_npu",
        FAIL,
        "torch-npu==2.12.0",
    ),
    (
        "CANN of the old sample",
        {"torch": "2.9.0", "torch-npu": "2.9.0"},
        "8.0.RC3",
        "CANN",
        FAIL,
        "install CANN 8.5.0",
    ),
    (
        "CANN is older, Ascend/pytorch #99",
        {"torch": "2.12.0", "torch-npu": "2.12.0"},
        "8.5.0",
        "CANN",
        FAIL,
        f"install CANN 9.1.0, or {PAIR}".replace("2.12.0", "2.9.0"),
    ),
    (
        "CANN is newer, triton-ascend #328",
        {"torch": "2.9.0", "torch-npu": "2.9.0"},
        "9.1.0",
        "CANN",
        WARN,
        f"install CANN 8.5.0, or {PAIR}",
    ),
    (
        "torch_npu was forgotten",
        {"torch": "2.13.0", "torch-npu": None},
        "9.1.0",
        "torch_npu",
        FAIL,
        PAIR,
    ),
]


@pytest.mark.parametrize(
    ("changed", "cann", "name", "status", "remedy"),
    [m[1:] for m in MISMATCHES],
    ids=[m[0] for m in MISMATCHES],
)
def test_known_version_mismatches(machine, changed, cann, name, status, remedy):
    machine.versions.update(changed)
    machine.cann(cann)
    check = machine.found()[name]
    assert check.status == status and remedy in check.remedy


def test_transformers_out_of_range(machine):
    machine.versions["transformers"] = "4.40.0"  # the old sample's
    assert "pip install 'transformers>=5.20,<6'" in doctor._transformers().remedy


MESSAGES = [
    (
        "ImportError: libhccl.so: cannot open shared object file: No such file or directory",
        "set_env.sh",
    ),
    (
        "ImportError: libascendcl.so: cannot open shared object file",
        "TORCH_DEVICE_BACKEND_AUTOLOAD=0",
    ),
    (
        "ImportError: libascend_hal.so: cannot open shared object file",
        "mount /usr/local/Ascend/driver",
    ),
    ("ImportError: libatb.so: cannot open shared object file", "nnal/atb/set_env.sh"),
    (
        "ImportError: libtorch_npu.so: undefined symbol: _ZN3atb15CreateOperationINS_5infer14GroupTopkParamEEE",
        "NNAL",
    ),
    (
        "OSError: libtbe_adapter.so: undefined symbol: _ZN3Mki2DlC1ERKNSt7__cxx1112basic_string",
        "C++ ABI",
    ),
    (
        "OSError: extension.so: undefined symbol: _ZN7c10_npu3acl20AclrtPeekAtLastErrorE17aclrtLastErrLevel",
        "torch-npu==2.12.0",
    ),
    (
        "ImportError: libtorch_npu.so: undefined symbol: _ZN2at4_ops5emptyE",
        "built for another torch",
    ),
    (
        "ImportError: libtorch_npu.so: undefined symbol: MsprofSysCycleTime",
        "the table in docs/versions.md",
    ),
    ("ModuleNotFoundError: No module named 'tbe.common'", "pip install attrs"),
]


@pytest.mark.parametrize(("message", "words"), MESSAGES)
def test_a_failing_import_is_explained(machine, message, words):
    check = doctor._torch(None, message)
    assert check.status == FAIL and message in check.detail and words in check.remedy


def test_an_unknown_message_points_to_the_other_checks_and_another_torch_is_no_matter_of_ascend(
    machine,
):
    assert "checks of Ascend below" in doctor._torch(None, "ValueError: odd").remedy
    del machine.versions["torch-npu"]
    assert "force-reinstall" in doctor._torch(None, MESSAGES[0][0]).remedy


def test_set_env_was_not_sourced(machine):
    del machine.environment["ASCEND_HOME_PATH"]
    check = machine.found()["CANN's set_env.sh"]
    assert check.status == FAIL and f"source {machine.home}/set_env.sh" in check.remedy
    machine.environment["ASCEND_HOME_PATH"] = "/nonexistent"
    assert "is no folder" in machine.found()["CANN's set_env.sh"].detail
    machine.environment["ASCEND_HOME_PATH"] = str(machine.home)
    machine.environment["LD_LIBRARY_PATH"] = "/usr/lib"
    assert "LD_LIBRARY_PATH" in machine.found()["CANN's set_env.sh"].detail
    machine.environment["LD_LIBRARY_PATH"] = f"{machine.home}/lib64"
    del machine.environment["ASCEND_OPP_PATH"]
    assert machine.found()["CANN's set_env.sh"].status == WARN


def test_parts_of_cann_are_missing(machine):
    (machine.home / "lib64" / "libhccl.so").unlink()
    assert machine.found()["HCCL"].status == FAIL
    machine.info.unlink()
    assert machine.found()["CANN"].status == WARN
    (machine.home / "lib64" / "libascendcl.so").unlink()
    assert "holds no libascendcl.so" in machine.found()["CANN"].detail
    assert "without CANN" in machine.found()["torch_npu"].detail


def test_cards_without_cann(machine, monkeypatch):
    monkeypatch.setattr(place, "CANN_HOMES", ())
    machine.environment.clear()
    assert machine.found()["CANN"].status == FAIL
    assert machine.found()["CANN's set_env.sh"].status == NA


def test_a_pairing_that_nobody_published_is_said_and_not_judged(machine):
    machine.versions.update({"torch": "2.13.0", "torch-npu": "2.13.0"})
    machine.cann("9.2.0")
    check = machine.found()["CANN"]
    assert check.status == OK and "no CANN was published" in check.detail


def test_hccl_interface_that_does_not_exist(machine):
    machine.environment["HCCL_SOCKET_IFNAME"] = "nosuch0"
    assert "nosuch0" in machine.found()["HCCL"].detail and machine.found()["HCCL"].status == FAIL
    machine.environment["HCCL_SOCKET_IFNAME"] = "lo"
    assert machine.found()["HCCL"].status == OK


def test_driver_is_missing_or_refuses(machine, monkeypatch):
    machine.smi = types.SimpleNamespace(
        returncode=255, stdout="dcmi module initialize failed. ret is -8005", stderr=""
    )
    assert "-8005" in machine.found()["driver"].detail and machine.found()["free HBM"].status == NA
    monkeypatch.setattr(npu_smi.os, "access", lambda *a: False)
    assert "HwHiAiUser" in machine.found()["driver"].remedy
    machine.tools.clear()
    assert "mount /usr/local/bin/npu-smi" in machine.found()["driver"].remedy
    for file in machine.dev.iterdir():
        file.unlink()
    assert "--device /dev/davinci0" in machine.found()["driver"].remedy


def test_a_busy_and_a_sick_card(machine):
    machine.smi.stdout = TABLE.replace("3391 / 65536", "50000/ 65536")
    check = machine.found()["free HBM"]
    assert check.status == WARN and "card 1" in check.detail
    machine.smi.stdout = TABLE.replace(
        "| 1     910B1               | OK    ", "| 1     910B1               | Alarm "
    )
    assert (
        machine.found()["driver"].status == WARN and "1 (Alarm)" in machine.found()["driver"].detail
    )


def test_two_dies_a_card():
    version, cards = npu_smi.parse_npu_smi(A3)
    assert version == "25.2.0" and [(c.name, c.used, c.total) for c in cards] == [
        ("Ascend910", 60000, 65536),
        ("Ascend910", 3158, 65536),
    ]


def test_mindspeed_and_what_is_used_instead(machine, monkeypatch):
    assert "npu_grouped_matmul is used" in machine.found()["MindSpeed"].detail
    machine.environment["GMM_PROVIDER"] = "mindspeed"
    check = machine.found()["MindSpeed"]
    assert check.status == FAIL and "pip install -e MindSpeed" in check.remedy
    monkeypatch.setattr(
        ascend.importlib.util, "find_spec", lambda name: object() if name == "mindspeed" else None
    )
    assert machine.found()["MindSpeed"].detail == "installed; its npu_gmm is used on npu"
    machine.environment["GMM_PROVIDER"] = "auto"
    assert "GMM_PROVIDER=auto" in machine.found()["MindSpeed"].detail


def test_the_whole_doctor_runs_on_such_a_machine(machine, monkeypatch):
    names = [c.name for c in doctor.checks()]
    assert names[4:11] == [
        "torch_npu",
        "CANN",
        "CANN's set_env.sh",
        "driver",
        "free HBM",
        "HCCL",
        "MindSpeed",
    ]


def test_every_pair_has_its_source_and_only_a_documented_one_is_for_a_card():
    assert all(p.torch and (p.source or p.ran) for p in versions.PAIRS)
    assert all(p.source for p in versions.PAIRS if p.cann)
    assert versions.CARD.cann and versions.CARD in versions.PAIRS
    assert "tests" in versions.pair_of(versions.TORCH_NPU).ran
    assert not versions.pair_of(versions.TORCH_NPU).cann
    assert versions.pair_of("0.0.0") is None and versions.newest_for_cann((7, 0)) is None
    assert versions.newest_for_cann((9, 1)) is versions.CARD
    assert versions.newest_for_cann((9, 0)).torch_npu == "2.10.0"
    assert versions.pair_of("2.12.0.post2").release == "26.1.1"
    assert versions.markdown().count("\n") == len(versions.PAIRS) + 1


def test_a_cann_of_the_same_line_fits_a_pair_of_any_patch(machine):
    machine.versions.update({"torch": "2.12.0", "torch-npu": "2.12.0.post2"})
    machine.cann("9.1.1")
    assert machine.found()["CANN"].status == OK

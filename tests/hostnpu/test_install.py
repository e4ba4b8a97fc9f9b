"""torch_npu's own folder: pip really runs, on a wheel made here."""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from dsv3_port import cli, hostnpu
from dsv3_port.errors import PortError
from dsv3_port.hostnpu import cann, library
from dsv3_port.hostnpu import install as folder

VERSION = folder.torch_version()


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A supported machine with nothing installed and no index; two places, as in the real order."""
    found = [tmp_path / "environment" / "torch-npu", tmp_path / "user" / "torch-npu"]
    monkeypatch.setattr(folder, "places", lambda version: found)
    monkeypatch.setattr(folder, "supported_platform", lambda: "")
    monkeypatch.delenv(folder.FOLDER_VARIABLE, raising=False)
    monkeypatch.delenv(folder.VERSION_VARIABLE, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return found


def make_wheel(where: Path, version: str = VERSION) -> None:
    files = {
        "torch_npu/__init__.py": "",
        "torch_npu/lib/libtorch_npu.so": "",
        f"torch_npu-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {version}\n"
        # pip from 24.1 on leaves out wheels whose requirements are not PEP 440: no `.post1.*`
        f"Requires-Dist: torch=={version.partition('.post')[0]}\n",
        f"torch_npu-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={digest(text)},{len(text)}\n" for name, text in files.items())
    files[f"torch_npu-{version}.dist-info/RECORD"] = (
        record + f"torch_npu-{version}.dist-info/RECORD,,\n"
    )
    with zipfile.ZipFile(where / f"torch_npu-{version}-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def test_version_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder.metadata, "version", lambda name: "2.13.0+cpu")
    assert folder.wanted_version() == "2.13.0"


def test_variable_names_the_release(
    tmp_path: Path, places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later release for the same torch; one for another torch is refused before it is loaded."""
    monkeypatch.setattr(folder, "torch_version", lambda: "2.14.0")
    monkeypatch.setenv(folder.VERSION_VARIABLE, "2.14.0.post1")
    make_wheel(tmp_path / "wheels", "2.14.0.post1")
    assert folder.wanted_version() == "2.14.0.post1" and folder.find() is None
    assert folder.install() == places[0] == folder.find()
    monkeypatch.setenv(folder.VERSION_VARIABLE, "2.14.0")
    assert folder.find() is None  # what is there is another release
    monkeypatch.setenv(folder.VERSION_VARIABLE, "2.13.0")
    with pytest.raises(
        PortError,
        match="DSV3_TORCH_NPU is 2.13.0, .* torch is 2.14.0: unset it, or .*torch==2.13.0",
    ):
        folder.find()
    if not hostnpu.enabled():
        monkeypatch.setattr(library, "supported_platform", lambda: "")
        monkeypatch.setattr(cann, "installed", lambda: None)
        monkeypatch.setattr(hostnpu.importlib.util, "find_spec", lambda name: None)
        assert hostnpu.why_not().startswith("DSV3_TORCH_NPU is 2.13.0")
        assert hostnpu.status().folder == ""


def test_real_places_are_the_environment_then_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    first, second = folder.places("2.13.0")
    assert str(first).startswith(sys.prefix) and second != first
    assert (
        first.name
        == second.name
        == f"torch-npu-2.13.0-cp{sys.version_info.major}{sys.version_info.minor}"
    )


def test_installed_found_and_left_alone(tmp_path: Path, places: list[Path]) -> None:
    make_wheel(tmp_path / "wheels")
    assert folder.find() is None
    assert folder.install() == places[0] == folder.find()
    stamp = places[0].stat().st_mtime_ns
    assert folder.install() == places[0] and places[0].stat().st_mtime_ns == stamp
    assert [p.name for p in places[0].parent.iterdir()] == [
        places[0].name
    ]  # nothing half-made beside it
    assert not (places[0] / "torch").exists()  # --no-deps


def test_second_place_where_the_first_cannot_be_written(tmp_path: Path, places: list[Path]) -> None:
    make_wheel(tmp_path / "wheels")
    places[0].parent.write_text("a file, not a folder")
    assert folder.install() == places[1]
    places[1].parent.rename(tmp_path / "moved")
    places[1].parent.write_text("")
    with pytest.raises(PortError, match="can be written: set DSV3_TORCH_NPU_DIR"):
        folder.install()


def test_index_without_it(places: list[Path]) -> None:
    with pytest.raises(
        PortError, match=f"torch-npu {VERSION} could not be installed: the package index has no"
    ):
        folder.install()
    assert list(places[0].parent.iterdir()) == []


def test_offline(places: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(
        PortError, match="no package index was reached: check the network and proxy"
    ):
        folder.install()


def test_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PortError, match="has no pip .*--target FOLDER --no-deps torch-npu"):
        folder.install()


def test_variable_names_the_folder(
    tmp_path: Path, places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path / "wheels")
    folder.install()
    places[0].rename(tmp_path / "elsewhere")
    monkeypatch.setenv(folder.FOLDER_VARIABLE, str(tmp_path / "elsewhere"))
    assert folder.find() == tmp_path / "elsewhere"
    monkeypatch.setenv(folder.FOLDER_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(PortError, match="nowhere, where no torch_npu is"):
        folder.find()


def test_variable_names_a_new_folder(
    tmp_path: Path, places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed into, whether it is not there or empty; what holds something else is left alone."""
    make_wheel(tmp_path / "wheels")
    for name in ("new", "below/new", "empty"):
        if name == "empty":
            (tmp_path / name).mkdir()
        monkeypatch.setenv(folder.FOLDER_VARIABLE, str(tmp_path / name))
        assert folder.install() == tmp_path / name == folder.find()
    assert not any(place.exists() for place in places)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    monkeypatch.setenv(folder.FOLDER_VARIABLE, str(tmp_path / "full"))
    with pytest.raises(PortError, match="full, where no torch_npu is"):
        folder.install()
    (tmp_path / "new").chmod(0o777)
    monkeypatch.setenv(folder.FOLDER_VARIABLE, str(tmp_path / "new"))
    with pytest.raises(PortError, match="others may write"):
        folder.find()


def test_other_version_is_refused(
    tmp_path: Path, places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path / "wheels")
    folder.install()
    monkeypatch.setattr(folder, "wanted_version", lambda: "9.9.9")
    assert folder.find() is None
    monkeypatch.setenv(folder.FOLDER_VARIABLE, str(places[0]))
    with pytest.raises(
        PortError, match=f"torch_npu {VERSION}, and 9.9.9 is the one for this torch"
    ):
        folder.find()


def test_command_line(
    places: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cli.main(["hostnpu", "install"]) == 2
    assert "could not be installed" in capsys.readouterr().err
    assert cli.main(["hostnpu", "status"]) == 1
    make_wheel(tmp_path / "wheels")
    monkeypatch.setattr(library, "is_built", lambda torch_npu: False)
    monkeypatch.setattr(library, "supported_platform", lambda: "")
    monkeypatch.setattr(library, "compiler", lambda: "cc")
    monkeypatch.setattr(cann, "installed", lambda: None)
    assert cli.main(["hostnpu", "install"]) == 0
    assert (
        f"torch_npu {VERSION} in {places[0]}, the stand-in for CANN is compiled at"
        in capsys.readouterr().out
    )

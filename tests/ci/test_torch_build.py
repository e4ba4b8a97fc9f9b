"""Which build of torch the set-up takes, against package indexes of our own, served on this machine."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .test_ci_run import locked, torch_build, venv_checks

PIN = "2.13.0"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PyPI's builds of Linux")


def wheel(folder: Path, version: str) -> str:
    """A torch of one file; the sha256 of its wheel."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"torch-{version}-py3-none-any.whl"
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("torch/__init__.py", "")
        archive.writestr("torch/version.py", f"__version__ = '{version}'\n")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """(folder of wheels, URL of the index that lists them)."""
    folder = tmp_path / "index" / "torch"
    folder.mkdir(parents=True)
    handler = functools.partial(Quiet, directory=str(tmp_path / "index"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment without settings of pip, its PyPI a folder with a plain torch."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch_build.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch_build, "GPU_DRIVER", tmp_path / "none")
    monkeypatch.setattr(torch_build.platform, "machine", lambda: "x86_64")


def chosen(tmp_path: Path, environ: dict[str, str], **more: str) -> torch_build.Build:
    return torch_build.choose(sys.executable, tmp_path / ".venv", PIN, {**environ, **more})


@linux
def test_without_a_gpu_the_cpu_build_of_pytorchs_index(tmp_path, monkeypatch, served, bare, no_gpu):
    folder, url = served
    wheel(folder, "2.13.0+cpu")
    wheel(folder, "2.14.0+cpu")
    monkeypatch.setattr(torch_build, "CPU_INDEX", url)
    build = chosen(tmp_path, bare)
    assert (build.kind, build.requirement) == ("cpu", "torch==2.13.0+cpu")
    assert "--index-url" in build.options and url in build.options
    text = torch_build.sentence(build, PIN)
    assert "no NVIDIA GPU was found" in text and "about 2 GB" in text
    assert text.endswith("DSV3_TORCH_BUILD=cuda takes the other")


@linux
def test_pytorchs_index_has_nothing_for_this_python(tmp_path, monkeypatch, served, bare, no_gpu):
    folder, url = served
    wheel(folder, "2.14.0+cpu")
    monkeypatch.setattr(torch_build, "CPU_INDEX", url)
    build = chosen(tmp_path, bare)
    assert (build.kind, build.requirement) == ("cuda", "torch===2.13.0")
    assert f"{url} did not answer, or has no CPU build" in build.why


@linux
def test_an_index_that_never_answers_costs_seconds(tmp_path, monkeypatch, bare, no_gpu):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(torch_build, "CPU_INDEX", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(torch_build, "INDEX_SECONDS", 1)
        assert chosen(tmp_path, bare).kind == "cuda"


@linux
@pytest.mark.parametrize("seen", ["nvidia-smi", "driver"])
def test_with_a_gpu_pypis_build_and_nobody_is_asked(tmp_path, monkeypatch, bare, no_gpu, seen):
    monkeypatch.setattr(torch_build, "offered", lambda *words: pytest.fail("an index was asked"))
    if seen == "driver":
        (tmp_path / "version").write_text("NVRM version")
        monkeypatch.setattr(torch_build, "GPU_DRIVER", tmp_path / "version")
    else:
        tool = tmp_path / "nvidia-smi"
        tool.write_text('#!/bin/sh\necho "GPU 0: NVIDIA H100 (UUID: x)"\n')
        tool.chmod(0o755)
        monkeypatch.setattr(torch_build.shutil, "which", lambda name: str(tool))
    build = chosen(tmp_path, bare)
    assert (
        build.kind == "cuda"
        and build.requirement == "torch===2.13.0"
        and "NVIDIA" in build.why.upper()
    )
    assert "about 6 GB" in torch_build.sentence(build, PIN)


@linux
def test_a_driver_that_lists_no_gpu_is_none(tmp_path, monkeypatch, no_gpu):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho No devices were found; exit 6\n")
    tool.chmod(0o755)
    monkeypatch.setattr(torch_build.shutil, "which", lambda name: str(tool))
    assert torch_build.gpu() == ""


@linux
@pytest.mark.parametrize("how", ["variable", "file", "folder"])
def test_what_pips_settings_say_wins(tmp_path, monkeypatch, served, bare, no_gpu, how):
    folder, url = served
    monkeypatch.setattr(torch_build, "CPU_INDEX", "http://127.0.0.1:1")
    wheel(folder, "2.13.0")
    if how == "folder":
        more = {"PIP_FIND_LINKS": str(folder), "PIP_NO_INDEX": "1"}
    elif how == "variable":
        more = {"PIP_INDEX_URL": url}
    else:
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {url}\n")
        more = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    build = chosen(tmp_path, bare, **more)
    assert (build.kind, build.requirement) == ("cuda", "torch===2.13.0")
    assert "pip's settings (" in build.why and "PyPI's" in build.why
    wheel(folder, "2.13.0+cpu")
    build = chosen(tmp_path, bare, **more)
    assert (build.kind, build.requirement, build.options) == ("cpu", "torch==2.13.0+cpu", [])
    if how != "variable":
        return
    wheel(folder, "2.13.0+cu126")
    assert chosen(tmp_path, bare, **more).requirement == "torch==2.13.0+cu126"
    build = chosen(
        tmp_path, bare, **more, DSV3_TORCH_BUILD="cuda"
    )  # but for the variable made for it
    assert build.requirement == "torch===2.13.0"


def test_pypi_itself_and_what_is_switched_off_are_no_settings(bare):
    off = {"PIP_INDEX_URL": "https://pypi.org/simple/", "PIP_NO_INDEX": "0", "PIP_FIND_LINKS": ""}
    assert torch_build.pip_sources(sys.executable, {**bare, **off}) == []
    more = {"PIP_EXTRA_INDEX_URL": "https://example.org", "PIP_TIMEOUT": "3"}
    assert torch_build.pip_sources(sys.executable, {**bare, **more}) == ["extra-index-url"]


def installed(tmp_path: Path, version: str) -> None:
    folder = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages" / "torch"
    folder.mkdir(parents=True)
    (folder / "version.py").write_text(f"from typing import Optional\n__version__ = '{version}'\n")


@linux
def test_a_build_that_is_there_stays_and_is_told(tmp_path, bare, no_gpu):
    installed(tmp_path, "2.13.0+cu130")
    build = chosen(tmp_path, bare)
    assert (
        build.kept
        and torch_build.sentence(build, PIN) == "torch 2.13.0+cu130 stays: it is in .venv already"
    )
    assert chosen(tmp_path, bare, DSV3_TORCH_BUILD="cpu").kept
    told = torch_build.differs("cpu", "2.13.0+cu130")
    assert "stays although DSV3_TORCH_BUILD=cpu" in told and "remove .venv" in told
    assert (
        torch_build.differs("auto", "2.13.0+cu130")
        == torch_build.differs("cuda", "2.13.0+cu130")
        == ""
    )
    assert torch_build.need(build)[0] < torch_build.SIZES["cpu"][0]


@linux
def test_a_torch_of_another_version_is_replaced(tmp_path, bare, no_gpu):
    installed(tmp_path, "2.12.0+cpu")
    build = chosen(tmp_path, bare, DSV3_TORCH_BUILD="cpu")
    assert not build.kept and build.requirement == "torch==2.13.0+cpu"


def test_a_word_that_is_none(tmp_path, bare):
    with pytest.raises(
        venv_checks.Problem, match="DSV3_TORCH_BUILD=rocm is none of auto, cpu, cuda"
    ):
        chosen(tmp_path, bare, DSV3_TORCH_BUILD="rocm")


def test_other_systems_take_what_pypi_has(tmp_path, monkeypatch, bare):
    monkeypatch.setattr(torch_build.sys, "platform", "darwin")
    monkeypatch.setattr(locked.sys, "platform", "darwin")
    build = chosen(tmp_path, bare)
    assert (build.kind, build.requirement) == ("cpu", "torch===2.13.0")
    assert not locked.needs_cuda_packages(build, PIN)
    with pytest.raises(venv_checks.Problem, match="for Linux only"):
        chosen(tmp_path, bare, DSV3_TORCH_BUILD="cuda")


# ---- hashes --------------------------------------------------------------------------------------


def pip(
    words: list[str], environ: dict[str, str], target: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pip", "install", "--target", str(target), *words],
        capture_output=True,
        text=True,
        env=environ,
        timeout=120,
    )


def lock(ci: Path, sha: str) -> Path:
    ci.mkdir()
    other = "0" * 64
    (ci / "constraints.txt").write_text(
        f"torch==2.13.0 ; python_version > '3' \\\n    --hash=sha256:{other} \\\n    --hash=sha256:{sha}\n"
    )
    (ci / "constraints-cuda.txt").write_text("triton==3.7.1 \\\n    --hash=sha256:aa\n")
    return ci


def test_pypis_torch_is_held_to_its_hashes(tmp_path, served, bare):
    """Another index offers a build with + in its name, which pip would take and these words do not."""
    folder, url = served
    sha = wheel(folder, "2.13.0")
    wheel(folder, "2.13.0+cpu")
    environ = {**bare, "PIP_INDEX_URL": url}
    build = torch_build.pypi(PIN, "a test")
    done = pip(
        locked.torch_words(build, lock(tmp_path / "ci", sha), tmp_path), environ, tmp_path / "a"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "torch-2.13.0.dist-info").is_dir()
    words = locked.torch_words(build, lock(tmp_path / "ci2", "f" * 64), tmp_path)
    done = pip(words, environ, tmp_path / "b")
    assert done.returncode != 0 and not (tmp_path / "b" / "torch").exists()
    text = venv_checks.failure_text("torch", done.stdout + done.stderr, tmp_path / "log")
    assert "gave another file than the one that was tested" in text


@linux
def test_the_cpu_build_installs_from_pytorchs_index(tmp_path, monkeypatch, served, bare, no_gpu):
    folder, url = served
    wheel(folder, "2.13.0+cpu")
    monkeypatch.setattr(torch_build, "CPU_INDEX", url)
    words = locked.torch_words(chosen(tmp_path, bare), lock(tmp_path / "ci", "f" * 64), tmp_path)
    done = pip(words, bare, tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "torch-2.13.0+cpu.dist-info").is_dir()


@linux
def test_cudas_packages_come_with_pypis_build_only(tmp_path):
    ci = lock(tmp_path / "ci", "f" * 64)
    for build, wanted in (
        (torch_build.pypi(PIN, ""), True),
        (torch_build.Build("cpu", "torch==2.13.0+cpu", [], "", False), False),
        (torch_build.Build("cuda", "torch==2.13.0+cu130", [], "", True), True),
        (torch_build.Build("cuda", "torch==2.13.0+cu126", [], "", True), False),
    ):
        calls = locked.rest_words(build, ci, tmp_path, 3)
        assert len(calls) == 3 and all("--require-hashes" in words for words in calls)
        parts = [locked.requirement_lines(Path(words[-1])) for words in calls]
        lines = [line for part in parts for line in part]
        pinned = locked.requirement_lines(ci / locked.PINS)
        if wanted:
            pinned += locked.requirement_lines(ci / locked.CUDA_PINS)
        assert sorted(lines) == sorted(line for line in pinned if not line.startswith("torch=="))


def test_every_pin_has_hashes_and_the_plain_file_is_the_same_pins():
    from .test_ci_run import CI

    lines = locked.requirement_lines(CI / "constraints.txt")
    cuda = locked.requirement_lines(CI / "constraints-cuda.txt")
    assert len(lines) > 150 and all("--hash=sha256:" in line for line in lines + cuda)
    bare = [line.partition(" --hash")[0].strip() for line in lines]
    assert bare == locked.requirement_lines(CI / "pins.txt")

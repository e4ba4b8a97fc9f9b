"""The wheel in a clean environment: `dsv3-port start FOLDER` gives the folder that a checkout is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "dsv3_port",
    "notebooks",
    "data",
    "docs",
)
pytestmark = pytest.mark.slow


def run(*words: str | Path, cwd: Path, fails: bool = False) -> str:
    done = subprocess.run([str(w) for w in words], cwd=cwd, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves folders behind."""
    source = tmp_path_factory.mktemp("source") / "dsv3-port"
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in (*SOURCES, "ci/profiles"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, source / name, **({"ignore": skip} if copy is shutil.copytree else {}))
    words = ("wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", "dist", ".")
    run(sys.executable, "-m", "pip", *words, cwd=source)
    (made,) = (source / "dist").glob("dsv3_port-*.whl")
    return made


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a new environment that has the wheel, and this one's packages but no checkout."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    site = Path(
        run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip()
    )
    # a path in a .pth file: its own .pth files, the editable checkout among them, are not read
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "share").mkdir(exist_ok=True)
    (folder / "share" / "jupyter").symlink_to(
        Path(sysconfig.get_path("data")) / "share" / "jupyter"
    )
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", "--quiet", "--no-index", wheel, cwd=folder)
    return folder / "bin" / "dsv3-port"


def test_the_wheel_carries_the_course_in_twenty_megabytes(wheel: Path) -> None:
    assert wheel.stat().st_size < 20e6
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    course = {n.removeprefix("dsv3_port/shipped/") for n in names if "/shipped/" in n}
    assert {
        "data/tiny-dsv3/config.json",
        "data/npu-kernels/kernels.csv",
        "ci/profiles/tiny.yaml",
    } <= course
    assert {f.name for f in (ROOT / "notebooks").glob("*.ipynb")} <= {Path(n).name for n in course}
    assert {f"data/recorded/{f.name}" for f in (ROOT / "data/recorded").iterdir()} <= course
    strays = [n for n in names if n.split("/")[0] not in ("dsv3_port",) and ".dist-info/" not in n]
    assert not strays
    assert not [n for n in names if "__pycache__" in n or ".ipynb_checkpoints" in n]


def test_a_learner_without_git_has_the_same_folder(program: Path, tmp_path: Path) -> None:
    assert "inside a folder made by `dsv3-port start FOLDER`" in run(
        program, "tutorial", cwd=tmp_path, fails=True
    )
    assert "cd course" in run(program, "start", "course", cwd=tmp_path)
    course = tmp_path / "course"
    for name in ("notebooks", "data/recorded", "data/tiny-dsv3", "ci/profiles", "docs"):
        here = {f.name for f in (ROOT / name).iterdir() if not f.name.startswith((".", "__"))}
        assert {f.name for f in (course / name).iterdir()} == here
    told = run(program, "start", "course", cwd=tmp_path, fails=True)
    assert told.startswith("dsv3-port: course: there is something already")
    text = run(
        program, "infer", "--model-dir", "data/tiny-dsv3", "--max-new-tokens", "3", cwd=course
    )
    assert "tokens/s" in text
    notebook = (
        course / "notebooks" / "04_one_hot_gating.ipynb"
    )  # its beginning is enough: .ci/run runs all
    cells = json.loads(notebook.read_text(encoding="utf-8"))
    code = [i for i, cell in enumerate(cells["cells"]) if cell["cell_type"] == "code"]
    del cells["cells"][code[2] :]
    notebook.write_text(json.dumps(cells), encoding="utf-8")
    out = run(program, "tutorial", "--only", "4", "--quiet", cwd=course)
    assert "1 of 1 notebooks ran through" in out and (course / "out" / "index.html").is_file()


def test_the_installed_package_reads_its_own_data(program: Path, tmp_path: Path) -> None:
    code = (
        "from dsv3_port import paths; from dsv3_port.forecast import kernels\n"
        "print(len(kernels.kernels()) > 100, paths.SHIPPED in paths.tiny().parents)"
    )
    assert run(program.with_name("python"), "-c", code, cwd=tmp_path).split() == ["True", "True"]


def test_a_checkout_is_the_folder_itself() -> None:
    told = run(sys.executable, "-m", "dsv3_port", "start", "x", cwd=ROOT, fails=True)
    assert (
        "runs from a checkout, which is such a folder itself" in told and not (ROOT / "x").exists()
    )

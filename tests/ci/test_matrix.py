"""`ci/run.py matrix` on a small repository whose set-up and commands are a few lines."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .test_ci_run import run, torch_build

import matrix  # isort: skip  (ci/ is on the path from test_ci_run on)

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
FAKE = """
import json, os, pathlib, sys
command, rest = sys.argv[1], sys.argv[2:]
names = ("DSV3_TORCH_BUILD", "PIP_CACHE_DIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "DSV3_HOSTNPU_CACHE")
seen = {name: os.environ[name] for name in names} | {"rest": rest, "here": os.getcwd(), "PIP_X": os.environ["PIP_X"]}
if command == "setup":
    torch = pathlib.Path(".venv/lib/python3/site-packages/torch")
    torch.mkdir(parents=True)
    (torch / "version.py").write_text(f"__version__ = '2.13.0+{os.environ['DSV3_TORCH_BUILD']}'\\n")
    sys.exit(int(pathlib.Path("broken").exists()))
if command == "tutorial":
    pathlib.Path("out").mkdir()
    pathlib.Path("out/runs.json").write_text(json.dumps(seen))
    english = os.environ.get("DSV3_LANG") == "en"  # else as it would speak to a Chinese reader
    print("11 of 11 notebooks ran through" if english else "x", "and a last line", sep="\\n")
else:
    print("===== 3 passed, 1 failed in 2.00s =====")
    sys.exit(1)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    (root / "ci").mkdir(parents=True)
    (root / "ci" / "run.py").write_text(FAKE)
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    monkeypatch.setenv("PIP_X", "a setting")
    monkeypatch.setenv("DSV3_LANG", "zh")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matrix, "find_python", lambda v: sys.executable if v == PYTHON else "")
    return root


def cells(tmp_path: Path) -> list[dict]:
    return json.loads((tmp_path / "out" / "matrix" / "matrix.json").read_text())["cells"]


def call(root: Path, *words: str) -> int:
    return matrix.main(root, ["--work", str(root.parent / "work"), *words])


def test_a_row_for_each_python_and_build(project, tmp_path, capsys):
    other = "3.10" if PYTHON != "3.10" else "3.12"
    code = call(project, "--python", f"{PYTHON},{other}", "--build", "cpu,cuda", "--", "-k", "x")
    out = capsys.readouterr().out
    rows = cells(tmp_path)
    assert code == 1 and len(rows) == 4
    assert [r.get("missing") for r in rows] == [None, None] + ["no such Python here"] * 2
    assert [r["torch"] for r in rows[:2]] == ["2.13.0+cpu", "2.13.0+cuda"]
    assert rows[0]["tutorial"]["says"] == "11 of 11 notebooks ran through"
    assert "ok, 0.0 min: 11 of 11 notebooks ran through" in out
    assert "**exit code 1**, 0.0 min: 3 passed, 1 failed in 2.00s" in out
    assert (tmp_path / "out/matrix" / f"python{PYTHON}-cpu" / "test.log").is_file()
    assert not list((tmp_path / "work").iterdir())


def test_caches_are_each_cells_own_and_pips_settings_stay(project, tmp_path):
    call(project, "--python", PYTHON, "--build", "cpu,cuda", "--command", "tutorial", "--", "-k")
    seen = [
        json.loads((tmp_path / "out/matrix" / f"python{PYTHON}-{b}" / "runs.json").read_text())
        for b in ("cpu", "cuda")
    ]
    for one, other in zip(*(s.items() for s in seen), strict=True):
        if one[0] in ("PIP_X", "rest"):
            assert one == other
        else:
            assert one[1] != other[1]
    assert seen[0]["rest"] == ["--", "-k"] and str(tmp_path / "work") in seen[0]["PIP_CACHE_DIR"]
    assert call(project, "--python", PYTHON, "--command", "tutorial", "--pip-cache", "/c") == 0
    kept = tmp_path / "out/matrix" / f"python{PYTHON}-auto" / "runs.json"
    assert json.loads(kept.read_text())["PIP_CACHE_DIR"] == "/c"


def test_a_set_up_that_fails_runs_no_command(project, tmp_path, capsys):
    (project / "broken").write_text("")
    assert call(project, "--python", PYTHON, "--command", "tutorial") == 0  # not committed
    subprocess.run(["git", "add", "."], cwd=project, check=True)
    assert call(project, "--python", PYTHON, "--command", "tutorial") == 0
    assert "uncommitted changes are in no cell" in capsys.readouterr().out
    words = ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "y"]
    subprocess.run(["git", *words], cwd=project, check=True)
    assert call(project, "--python", PYTHON, "--keep") == 1
    (row,) = cells(tmp_path)
    assert row["setup"]["code"] == 1 and "test" not in row and "not run" in capsys.readouterr().out
    assert Path(row["clone"], "clone", "broken").is_file()


def test_words_that_are_none(project, capsys):
    for words in (["--python", "2.7"], ["--build", "rocm"], ["--command", "lab"]):
        with pytest.raises(SystemExit):
            call(project, *words)
        assert "is none of" in capsys.readouterr().err
    with pytest.raises(run.Problem, match="no clone of git"):
        call(project.parent)


def test_pythons_are_found_and_shims_that_do_not_run_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda name: str(tmp_path / name.strip("~/")))
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    shim = tmp_path / f"python{PYTHON}"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    assert matrix.find_python(PYTHON) == ""
    real = tmp_path / ".pyenv" / "versions" / f"{PYTHON}.99" / "bin" / "python"
    real.parent.mkdir(parents=True)
    real.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    real.chmod(0o755)
    assert matrix.find_python(PYTHON) == str(real)


def test_every_build_and_python_can_be_asked_for():
    args = matrix.make_parser().parse_args(["--build", ",".join(torch_build.WORDS)])
    assert args.build == list(torch_build.WORDS) and isinstance(args, argparse.Namespace)
    assert matrix.every_python()[0] == "3.10" and matrix.every_python()[-1] == "3.14"

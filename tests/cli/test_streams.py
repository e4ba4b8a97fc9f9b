"""stdout on a full disk, closed streams, an ASCII terminal, control characters, odd words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3_port.paths import tiny

RUN = [sys.executable, "-m", "dsv3_port"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", [["plan", "--steps"], ["infer", "--show-settings"]])
def test_stdout_on_a_full_disk(words):
    with open("/dev/full", "wb") as full:
        run = subprocess.run([*RUN, *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 2 and run.stderr.startswith("dsv3-port: stdout")
    assert "Traceback" not in run.stderr and "ignored" not in run.stderr


def test_closed_streams(tmp_path):
    words = ["shard", "--model-path", str(tiny()), "--output-path", str(tmp_path / "out")]
    command = " ".join([*RUN, *words, "--world-size 1"])
    assert subprocess.run(f"exec {command} >&- 2>&-", shell=True).returncode == 0
    assert (tmp_path / "out" / "manifest.json").is_file()
    command = " ".join([*RUN, "infer", "--model-dir", "nowhere"])
    assert subprocess.run(f"exec {command} 2>&-", shell=True).returncode == 2


def test_a_terminal_that_knows_ascii_only():
    plain = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    for words in (["plan", "--steps"], ["infer", "--model-dir", "没有"]):
        run = subprocess.run(
            [*RUN, *words], env={**os.environ, **plain}, capture_output=True, text=True
        )
        assert "Traceback" not in run.stderr and run.returncode in (0, 2)


def test_control_characters_are_shown():
    run = subprocess.run(
        [*RUN, "infer", "--model-dir", "\x1b]0;owned\x07x"], capture_output=True, text=True
    )
    assert run.returncode == 2 and "\x1b" not in run.stderr and r"\x1b]0;owned\x07x" in run.stderr


def test_an_unknown_key_is_one_line(tmp_path):
    from tests.weights.spoil import copy, edit_json

    edit_json(copy(tmp_path / "m") / "config.json", zoom=2)
    words = ["plan", "--config", str(tmp_path / "m"), "--world-size", "1"]
    run = subprocess.run([*RUN, *words], capture_output=True, text=True)
    assert run.returncode == 0
    says = f"{tmp_path / 'm' / 'config.json'}: not known, and not used: zoom"
    assert run.stderr.splitlines() == [f"dsv3-port: warning: {says}"]

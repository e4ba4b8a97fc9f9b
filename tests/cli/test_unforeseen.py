"""What nobody foresaw is one sentence and a file; so are a system without semaphores and terminals
that know few letters."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3_port import PortError, files
from dsv3_port.cli import main, plan
from dsv3_port.engine import launch
from dsv3_port.paths import tiny
from tests import forks

RUN = [sys.executable, "-m", "dsv3_port"]
WORDS = ["plan", "--steps"]


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "user_log_path", lambda name: tmp_path / "log")
    return tmp_path / "log"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("boom\nand more"),
        KeyError("x"),
        ModuleNotFoundError("No module named 'dsv3_port.gone'", name="dsv3_port.gone"),
        ModuleNotFoundError("of nothing"),
        OSError(errno.EIO, "Input/output error"),
        UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates not allowed"),
        AssertionError(),
        StopIteration(),
    ],
)
def test_an_error_that_nobody_foresaw(error, log, monkeypatch, capsys):
    def broken(args):
        raise error

    monkeypatch.setattr(plan, "run", broken)
    assert main(WORDS) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and type(error).__name__ in said and "Traceback" not in said
    (kept,) = log.iterdir()
    assert f"the full traceback is in {kept};" in said
    text = kept.read_text()
    assert "in broken" in text and text.startswith("Traceback") and kept.stat().st_mode & 0o77 == 0


def test_no_place_for_the_traceback(log, monkeypatch, capsys, tmp_path):
    def broken(args):
        raise ValueError("boom")

    monkeypatch.setattr(plan, "run", broken)
    log.write_text("a file")
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    assert main(WORDS) == 2  # the folder for temporary files, where the user has none for logs
    assert f"{tmp_path}/error-" in capsys.readouterr().err

    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(files.tempfile, "gettempdir", none)
    assert main(WORDS) == 2
    assert "could not be written anywhere" in capsys.readouterr().err


def test_only_the_last_tracebacks_stay(log):
    log.mkdir()
    for i in range(40):
        (log / f"error-20200101-{i:06}-1.txt").write_text("")
    said = files.keep_traceback("new")
    assert len(list(log.iterdir())) == 20 and Path(said.rpartition(" ")[2]).read_text() == "new"


def test_arguments_that_break_the_parser_are_no_traceback():
    run = subprocess.run([*RUN, b"\xff\xfe", b"--\xff"], capture_output=True)
    assert run.returncode == 2 and b"Traceback" not in run.stderr


def test_a_system_without_semaphores(monkeypatch):
    """No /dev/shm: what a rank's result would come back through."""

    class Context:
        def Lock(self):
            raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(launch.multiprocessing, "get_context", lambda method: Context())
    with pytest.raises(PortError, match="no semaphores .*; /dev/shm must be there and writable"):
        launch.run_ranks(print, 2)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts need root")
def test_without_dev_shm(tmp_path):
    """The real thing, in a mount namespace of its own."""
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("no namespaces here")
    words = f"infer --model-dir {tiny()} --world-size 2 --device cpu --max-new-tokens 2"
    script = f"mount -t tmpfs -o ro none /dev/shm && exec {' '.join(RUN)} {words}"
    run = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert run.returncode == 2 and "/dev/shm must be there" in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["gbk", "ascii"])
def test_a_terminal_that_knows_few_letters(encoding):
    """An emoji, an accent and Chinese in a prompt, and in the name of a folder that is not there."""
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    prompt = "从前 café \N{DRAGON} ≥"
    for words, code in (
        (["plan", "--steps"], 0),
        (["infer", "--model-dir", str(tiny()), "--device", "cpu", "--max-new-tokens", "1",
          "--prompt", prompt], 0),
        (["infer", "--model-dir", "没有\N{DRAGON}"], 2),
    ):  # fmt: skip
        run = forks.command(*words, env=env)
        assert run.returncode == code and b"Traceback" not in run.stderr, run.stderr
        text = (run.stdout + run.stderr).decode(encoding)
        if "--steps" not in words:
            assert r"\U0001f409" in text and (encoding == "gbk") <= ("从前" in text or code == 2)


def test_a_rank_prints_what_its_terminal_knows():
    """Rank 0 of two is a process of its own, with streams of its own."""
    env = {**os.environ, "PYTHONIOENCODING": "gbk", "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    words = ["infer", "--model-dir", str(tiny()), "--world-size", "2", "--device", "cpu"]
    words += ["--max-new-tokens", "1", "--prompt", "从前 \N{DRAGON}"]
    run = subprocess.run([*RUN, *words], env=env, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert re.search(r"从前 \\U0001f409", run.stdout.decode("gbk"))


def test_a_name_with_half_a_character_is_written(tmp_path):
    """An argument that is no UTF-8 reaches a file as an escape, not as an exception."""
    target = tmp_path / "out.json"
    run = subprocess.run(
        [*RUN, "infer", "--model-dir", str(tiny()), "--device", "cpu", "--max-new-tokens", "1",
         "--json", str(target), "--model-name", b"a\xffb"],
        capture_output=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "a\\udcffb" in target.read_text()


def test_dashes_as_a_value(capsys):
    """argparse makes an empty list of them."""
    for words in (
        ["infer", "--dtype=--"],
        ["plan", "--config=--"],
        ["compare", "x", "--dtype-a=--"],
    ):
        assert main(words) == 2
        assert f"{words[-1][:-3]}: -- is no value" in capsys.readouterr().err


def test_a_message_is_checked_before_it_is_shown(tmp_path, capsys):
    file = tmp_path / "prompts.json"
    file.write_text('[[{"role": "user", "text": "Once"}]]')
    words = ["infer", "--model-dir", str(tiny()), "--device", "cpu", "--prompts", str(file)]
    assert main(words) == 2
    assert "chat message 1: content is missing" in capsys.readouterr().err

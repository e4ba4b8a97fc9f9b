"""Processes of tests as forks of one process, which each worker of pytest starts once and which has
imported what ranks and commands import (tests/preloaded.py).

Importing torch, transformers and our rooms takes 3 to 5 s of a processor, and is most of what a small
job costs. conftest.py lets `run_ranks` start its ranks so; `command` runs one of dsv3-port's, `python` a
text, and `Kernel` is a notebook's. What a test wants to know about the start itself, about signals and
about the end of an interpreter needs a process of its own: the fixture `real_starts`, or subprocess.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 300.0  # seconds
START_METHOD = "forkserver"
FORKS = multiprocessing.get_context("forkserver")
multiprocessing.set_forkserver_preload(["tests.preloaded"])  # started at first use
_ensure_running = forkserver._forkserver.ensure_running


def _started_here() -> None:
    """It looks for the module in its folder, and says nothing where it isn't: not that of a test which
    has gone elsewhere."""
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        _ensure_running()
    finally:
        os.chdir(before)


forkserver._forkserver.ensure_running = _started_here


def _command(words: tuple[str, ...], environment: Mapping[str, str], cwd: Path, at: Path) -> None:
    """What `python -m dsv3_port` does, or `python -c`, in a fork."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(at / name, os.O_WRONLY | os.O_CREAT), number)
        setattr(sys, name, open(number, "w", encoding=encoding, closefd=False))
    if words[0] == "-c":
        sys.argv = ["-c"]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        return
    sys.argv = ["dsv3-port", *words]
    from dsv3_port.cli import main

    sys.exit(main())


@dataclass
class Started:
    """A command that runs; its output lies in a folder until `end`."""

    words: tuple[str, ...]
    process: BaseProcess
    at: Path

    def end(self, limit: float = LIMIT) -> subprocess.CompletedProcess[bytes]:
        self.process.join(limit)
        late = self.process.exitcode is None
        if late:
            self.process.kill()
            self.process.join()
        out, err = ((self.at / name).read_bytes() for name in ("stdout", "stderr"))
        shutil.rmtree(self.at)
        if late:
            raise subprocess.TimeoutExpired(self.words, limit, out, err)
        code = self.process.exitcode
        assert code is not None
        return subprocess.CompletedProcess(self.words, code, out, err)


def start(*words: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Started:
    """A command of dsv3-port; `env` in place of this process's variables."""
    at = Path(tempfile.mkdtemp(prefix="dsv3-port-test-"))
    for name in ("stdout", "stderr"):
        (at / name).touch()
    variables = dict(os.environ if env is None else env)
    process = FORKS.Process(target=_command, args=(words, variables, cwd, at))
    process.start()
    return Started(words, process, at)


def command(
    *words: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[bytes]:
    return start(*words, env=env, cwd=cwd).end()


def python(code: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """`code` as the main module of a process that has imported torch and transformers."""
    return command("-c", code, env=env)


def _kernel(words: Sequence[str], environment: Mapping[str, str], cwd: str | None) -> None:
    """What `python -m ipykernel_launcher` does, in a fork with a session of its own."""
    os.setsid()
    os.chdir(cwd or ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["ipykernel_launcher", *words]
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


class Kernel:
    """Stands for jupyter_client's launch_kernel, and for the Popen that this returns."""

    stdin = stdout = stderr = None

    def __init__(
        self,
        words: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        **_: object,
    ) -> None:
        given = words[words.index("ipykernel_launcher") + 1 :]
        variables = dict(os.environ if env is None else env)
        self.process = FORKS.Process(target=_kernel, args=(given, variables, cwd))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid
        while self.poll() is None and os.getpgid(self.pid) != self.pid:
            time.sleep(0.01)  # signals go to its group, which must not be ours

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def terminate(self) -> None:
        self.process.terminate()

"""Processes of tests as forks of one process, which each worker of pytest starts once and which has
imported what ranks and commands import (tests/preloaded.py).

Importing torch, transformers and our rooms takes 3 to 5 s of a processor, and is most of what a small
job costs. conftest.py lets `run_ranks` start its ranks so; `command` runs one of dsv3-port's. What a
test wants to know about the start itself, about signals and about the end of an interpreter needs a
process of its own: the fixture `real_starts`, or subprocess.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 300.0  # seconds
START_METHOD = "forkserver"
FORKS = multiprocessing.get_context("forkserver")
multiprocessing.set_forkserver_preload(["tests.preloaded"])  # started at first use


def _command(words: tuple[str, ...], environment: Mapping[str, str], cwd: Path, at: Path) -> None:
    """What `python -m dsv3_port` does, in a fork."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(at / name, os.O_WRONLY | os.O_CREAT), number)
        setattr(sys, name, open(number, "w", encoding=encoding, closefd=False))
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

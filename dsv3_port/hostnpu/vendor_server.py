"""A process with torch, torch_npu and the host NPU in it, which runs each file of the vendor's tests in a
fork of itself: a state of its own for every file, at the price of one start (`vendor_tests.server`).

No fork sees device npu initialised: this process never uses it. Jobs come as lines of JSON on stdin,
answers go as such lines to stdout.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import time
from typing import Any

HEAVY = ("torch_npu.testing.testcase", "torch_npu.testing.common_utils")


def child(arguments: list[str], output: str) -> None:
    """One file's tests, then the end of this process; never returns."""
    import pytest

    code = 70  # of sysexits.h: pytest itself broke
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = int(pytest.main(arguments))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(pid: int, limit: float) -> int | None:
    """The exit status of a child; None where it took longer than limit seconds and was ended."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def answer(job: dict[str, Any]) -> int | None:
    pid = os.fork()
    if not pid:
        child(job["arguments"], job["output"])
    return wait(pid, job["limit"])


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what others print is no answer
    from . import enable

    enable()
    for name in HEAVY:  # what every file would import
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork looks through its own objects only
    for line in iter(sys.stdin.readline, ""):  # not `for line in stdin`, which reads ahead
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""A limit of time for code that somebody else wrote."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 5


class Late(BaseException):
    """The time is over. No Exception: `except Exception` in the learner's code must not hold it."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[Callable[[], None]]:
    """Raises Late within the block after `seconds` of this process's processor time, or PATIENCE times
    as long by the clock: a busy machine is not the learner's fault. By a timer's signal in the main
    thread, where there is one; elsewhere when the function that it gives is called."""
    end, used = time.monotonic() + PATIENCE * seconds, time.process_time()

    def over() -> bool:
        return time.process_time() - used > seconds or time.monotonic() > end

    def check() -> None:
        if over():
            raise Late(f"still running after {seconds:g} s")

    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield check
        return

    def ring(*_: Any) -> None:
        if not over():
            return
        raise Late(f"still running after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds, seconds / 4)
    try:
        yield check
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, every)
        signal.signal(signal.SIGALRM, before)

"""One phase of the set-up: a command, its log, and a line on the screen.

Standard library only; any Python 3 must be able to read this file (nothing newer than 3.6).
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

if False:  # for type checkers only
    from pathlib import Path


class Terminated(BaseException):
    """A SIGTERM came; by default it would leave pip running behind us."""


def last_line(log: "Path") -> str:
    """The last thing that was logged, short enough for a line that is overwritten."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 2000))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:70] for line in reversed(lines) if line.strip()), "")


def end(child: "subprocess.Popen[bytes]") -> None:
    """End a child and the processes it started: pip runs others."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()


def run(
    title: str, command: "list[str]", log: "Path", folder: "Path", environ: "dict[str, str]"
) -> str:
    """Run a command with its output in `log` and one line on the screen; what it printed if it
    fails, else ""."""
    print(f"  {title:<24}", end="", flush=True)
    terminal, start, shown = sys.stdout.isatty(), time.time(), 0.0
    begin = log.stat().st_size if log.exists() else 0
    with log.open("ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=str(folder),
            env=environ,
            start_new_session=True,
        )
        try:
            while child.poll() is None:
                time.sleep(0.1)
                seconds = time.time() - start
                if terminal and seconds - shown > 1:
                    shown = seconds
                    print(
                        f"\r  {title:<24}{seconds:4.0f} s  {last_line(log):<70}", end="", flush=True
                    )
                elif not terminal and seconds - shown > 30:
                    shown = seconds
                    print(f" ... {seconds:.0f} s", end="", flush=True)
        except BaseException:
            end(child)
            raise
    seconds, word = time.time() - start, "" if child.returncode == 0 else "failed"
    print(
        f"\r  {title:<24}{seconds:4.0f} s  {word:<70}" if terminal else f" {seconds:.0f} s {word}",
        flush=True,
    )
    if child.returncode == 0:
        return ""
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().decode("utf-8", "replace") or "(it printed nothing)"

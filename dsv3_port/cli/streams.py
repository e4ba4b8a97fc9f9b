"""stdout and stderr as they are found: closed, on a full disk, of a terminal that knows few letters."""

from __future__ import annotations

import os
import sys


def open_streams() -> None:
    """stdout and stderr that are there and show what they can: a scheduler may have closed them, a
    terminal may know ASCII or GBK only."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_WRONLY)
            if fd != number:
                os.dup2(fd, number)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def stdout_works() -> bool:
    """Tried with an empty line: what could not be written before is forgotten by now."""
    try:
        print(flush=True)
    except (OSError, ValueError):
        return False
    return True


def plain(text: str) -> str:
    """One line whose control characters a terminal does not obey."""
    line = " ".join(text.split())
    return "".join(
        c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in line
    )

"""`dsv3-port copies`: the notebooks with every answer filled in, and without prose, for a class."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import PortError


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--notebooks", type=Path, metavar="DIR", help="the notebooks' folder (default: this one's)"
    )
    p.add_argument(
        "--out", type=Path, metavar="DIR", help="gets solved/ and clean/ (default: out/ beside it)"
    )


def run(args: argparse.Namespace) -> int:
    from ..course.copies import write_copies
    from ..course.tutorial import choose, find_notebooks

    notebooks = args.notebooks or find_notebooks()
    choose(notebooks)  # refuses a folder without any
    out = args.out or notebooks.resolve().parent / "out"
    try:
        made = write_copies(notebooks, out)
    except OSError as error:
        raise PortError(
            f"{error.filename or out}: cannot be written: {error.strerror or error}"
        ) from error
    print(f"{len(made)} copies in {out.resolve() / 'solved'} and {out.resolve() / 'clean'}")
    return 0

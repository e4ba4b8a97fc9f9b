"""`dsv3-port start`: the course in a folder of one's own, as a checkout has it."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ..errors import PortError
from ..files import appearing
from ..messages import tr
from ..paths import SHIPPED

NEEDS_TORCH = False


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("folder", type=Path, help="a new or empty folder")


def run(args: argparse.Namespace) -> int:
    folder: Path = args.folder.resolve()
    if not SHIPPED.is_dir():
        raise PortError("this dsv3-port runs from a checkout, which is such a folder itself")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PortError(f"{args.folder}: there is something already; name a new folder")
    try:
        with appearing(folder) as work:
            shutil.copytree(SHIPPED, work, dirs_exist_ok=True)
    except OSError as error:
        raise PortError(f"{args.folder}: cannot be written: {error.strerror or error}") from error
    said = tr(
        "the course is in {place}\n  cd {folder}\n  dsv3-port tutorial    # runs every notebook and builds the pages\n"
        "  jupyter lab notebooks"
    )
    print(said.format(place=folder, folder=args.folder))
    return 0

"""`dsv3-port class FOLDER`: what a class has built, as one page, from collected progress.json files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..messages import tr


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "folder",
        type=Path,
        help="holds the learners' progress.json files, as mira.json or mira/progress.json",
    )
    p.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: class.html in that folder)"
    )


def run(args: argparse.Namespace) -> int:
    from ..course.classroom import write_class

    target = args.out or args.folder / "class.html"
    room = write_class(args.folder, target)
    for line in room.problems:
        print(f"dsv3-port: {line}", file=sys.stderr)
    said = tr("{learners} learners, {problems} problems\nopen {page}")
    counts = {"learners": len(room.learners), "problems": len(room.problems)}
    print(said.format(**counts, page=target.resolve()))
    return 0

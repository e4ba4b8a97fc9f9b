"""`dsv3-port judge SLOT FILE`: the verdict of a notebook's judge on a file, in a terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import PortError
from ..messages import told, tr


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("slot", metavar="SLOT", help="such as 02.absorbed; `list` names all of them")
    p.add_argument("file", metavar="FILE", nargs="?", help="Python text that defines the function")
    p.add_argument(
        "--seconds", type=float, default=30.0, help="for the model (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    from ..course.yours import fit, read, slot_of, slots
    from ..engine.loading import load_model
    from ..paths import tiny

    if args.slot == "list":
        for one in slots().values():
            minutes = tr("{n:>3} min").format(n=one.minutes)
            print(f"{one.id:<24} {one.notebook:<20} {minutes}  {told(one.title)}")
        return 0
    slot = slot_of(args.slot)
    if args.file is None:
        raise PortError(f"judge {slot.id}: give the file that holds your function {slot.name}")
    file = Path(args.file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PortError(f"{file}: cannot be read as text: {error}") from error
    base = load_model(tiny(), slot.plan, "cpu", "float32")
    fitted = fit(read(slot.id, text, str(file)), base, args.seconds)
    print(fitted)
    return 0 if fitted.state == "right" else 1

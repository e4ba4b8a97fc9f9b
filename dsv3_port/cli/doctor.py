"""`dsv3-port doctor`: what this machine has, and what will run on it."""

from __future__ import annotations

import argparse
import json

from tabulate import tabulate

from ..messages import language, told, tr, using

NEEDS_TORCH = False


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument(
        "--room",
        action="store_true",
        help="also try what a course needs, without a network: text, a "
        "kernel, a compiled step, two ranks (about a minute)",
    )


def run(args: argparse.Namespace) -> int:
    from ..doctor.machine import FAIL, checks

    with using("en" if args.json else language()):  # programs read one language
        found = checks()
        if args.room:
            from ..doctor import classroom as room

            found += room.checks()
    if args.json:
        print(json.dumps([c.to_dict() for c in found], indent=1, ensure_ascii=False))
    else:
        rows = [
            (f"[{c.status}]", told(c.name), c.detail + (f"\n→ {c.remedy}" if c.remedy else ""))
            for c in found
        ]
        widths, heads = [None, None, 90], ("", tr("what"), tr("found"))
        print(tabulate(rows, heads, tablefmt="plain", maxcolwidths=widths))
    return int(any(c.status == FAIL for c in found))

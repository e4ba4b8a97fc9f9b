"""`dsv3-port settings`: what can be set for a run, as docs/settings.md has it."""

from __future__ import annotations

import argparse

from tabulate import tabulate

from ..engine.settings import TABLE
from ..messages import told, tr

NEEDS_TORCH = False


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--markdown", action="store_true", help="the table of docs/settings.md")


def run(args: argparse.Namespace) -> int:
    print(markdown() if args.markdown else text())
    return 0


def text() -> str:
    what = tr("{meaning} ({values})")
    rows = [
        (r.variable, r.flag, r.default, what.format(meaning=told(r.meaning), values=told(r.values)))
        for r in TABLE
    ]
    head = (tr("variable"), tr("flag"), tr("default"), tr("meaning"))
    return tabulate(rows, head, disable_numparse=True, maxcolwidths=[None, None, None, 70])


def markdown() -> str:
    """The last column is the name in Ascend's sample of this model."""
    rows = [
        f"| `{r.variable}` | {told(r.values)} | {'–' if r.default == '' else r.default} | {told(r.meaning)} | "
        f"{f'`{r.variable}`' if r.in_sample else '–'} |"
        for r in TABLE
    ]
    heads = (
        tr("variable"),
        tr("values"),
        tr("default"),
        tr("meaning"),
        tr("the old sample's name"),
    )
    return "\n".join([f"| {' | '.join(heads)} |", "|---|---|---|---|---|", *rows])

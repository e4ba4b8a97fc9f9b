"""`dsv3-port tutorial`: execute the notebooks and build the pages."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..messages import language, told, tr
from .words import DEVICE_HELP

if TYPE_CHECKING:
    from ..course.tutorial import NotebookRun


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--only", action="append", metavar="N,N", help="these notebooks only, by number or name"
    )
    p.add_argument(
        "--part",
        type=int,
        choices=(1, 2),
        help="1: from the checkpoint to graphs; 2: what production ports do next (default: both)",
    )
    p.add_argument(
        "--profile", default="tiny", help="a file of ci/profiles, or a path (default: %(default)s)"
    )
    p.add_argument("--device", default="auto", help=f"{DEVICE_HELP}; auto is what the profile says")
    p.add_argument("--seed", type=int)
    p.add_argument(
        "--out", metavar="DIR", help="where pages and results go (default: out/ beside notebooks/)"
    )
    p.add_argument(
        "--notebooks",
        metavar="DIR",
        help="the notebooks' folder (default: that of this checkout or started folder)",
    )
    p.add_argument(
        "--timeout", type=float, default=900.0, help="seconds for one cell (default: %(default)s)"
    )
    p.add_argument(
        "--yours",
        default="",
        metavar="WHAT",
        help="write into the slots before running: empty, solution, wrong, or a folder of 02.absorbed.py …",
    )
    p.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    from platformdirs import user_data_dir
    from tqdm import tqdm

    from ..course.tutorial import find_notebooks, run_tutorial

    notebooks = Path(args.notebooks) if args.notebooks else find_notebooks()
    beside = notebooks.resolve().parent
    if args.out:
        out = Path(args.out)
    elif os.access(beside, os.W_OK) and (
        not (beside / "out").exists() or os.access(beside / "out", os.W_OK)
    ):
        out = beside / "out"
    else:  # a shared install, a read-only mount
        out = Path(user_data_dir("dsv3-port")) / "out"
    only = [word.strip() for text in args.only or () for word in text.split(",")]

    def tell(run: NotebookRun) -> None:
        well = tr("ok     {name} {seconds:7.1f} s  {cells} code cells")
        bad = tr("FAILED {name} {seconds:7.1f} s  {cells} code cells")
        said = (well if run.status == "ok" else bad).format(
            name=f"{run.name:<20}", seconds=run.seconds, cells=run.cells
        )
        slots = "".join(f"  {slot} {told(state)}" for slot, state in run.slots.items())
        tqdm.write(f"{said}{'  ' + run.error if run.error else ''}{slots}")  # above the bars
        sys.stdout.flush()

    runs = run_tutorial(
        notebooks,
        out,
        profile=args.profile,
        device=args.device,
        only=only,
        part=args.part,
        seed=args.seed,
        timeout=args.timeout,
        progress=not args.quiet,
        yours=args.yours,
        lang=language(),
        on_done=tell,
    )
    failed = [run.name for run in runs if run.status != "ok"]
    line = tr("{n} of {all} notebooks ran through in {seconds:.0f} s")
    if failed:
        line = tr("{n} of {all} notebooks ran through in {seconds:.0f} s; failed: {failed}")
    whole, well = sum(r.seconds for r in runs), len(runs) - len(failed)
    print("\n" + line.format(n=well, all=len(runs), seconds=whole, failed=", ".join(failed)))
    page = "index.zh-CN.html" if language() == "zh" else "index.html"
    there = page if (out / page).is_file() else "index.html"
    print(tr("open {page}").format(page=out.resolve() / there))
    return int(bool(failed))

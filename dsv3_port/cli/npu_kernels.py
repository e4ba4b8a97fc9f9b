"""`dsv3-port npu-kernels import`: kernel times of your own card beside the published ones."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tabulate import tabulate

from .words import check_target

NEEDS_TORCH = False
_SHOWN = 25  # rows of a table on the screen; --json has all


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("action", choices=("import",), help="import: read what a profiler wrote")
    p.add_argument(
        "path",
        help="a profiler's folder, or its kernel_details.csv (torch_npu) or op_summary_*.csv (msprof)",
    )
    p.add_argument(
        "--device", default="own card", help="what to call this card (default: %(default)s)"
    )
    p.add_argument(
        "--out",
        metavar="FILE",
        help="write the merged points there; `plan --what-if --kernels FILE` takes them",
    )
    p.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from ..forecast import own_kernels, profile_csv
    from ..forecast.kernels import label
    from ..messages import using

    check_target(args.out, (".csv",))
    samples = profile_csv.read(args.path)
    own = own_kernels.merge(samples, args.device)
    fits = own_kernels.refit(own)
    tables = {
        "beside": own_kernels.beside(own),
        "waits": own_kernels.waits(samples),
        "fits": own_kernels.fit_rows(fits),
    }
    if args.json:
        print(
            json.dumps({"points": len(own), "samples": len(samples), **tables}, ensure_ascii=False)
        )
    else:
        print(
            f"{len(samples)} kernels of {len(own)} kinds; {args.device} beside the published card:"
        )
        _table(
            tables["beside"], "no kernel of the same shapes and dtype is among the published ones"
        )
        print("\nHow long a kernel waits behind the one before it:")
        _table(tables["waits"], "these profiles do not tell")
        print("\nFitted to this card (the published card's in brackets):")
        _table(tables["fits"], "fewer than 4 points of every operator: the published fits are kept")
        with using("en"):  # as the whole of this report
            print(f"\nPublished: {label()}")
    if args.out:
        print(f"\nwritten as {own_kernels.write(own, args.out)}")
    return 0


def _table(rows: list[dict[str, Any]], otherwise: str) -> None:
    if not rows:
        print(otherwise)
        return
    print(tabulate(rows[:_SHOWN], headers="keys", disable_numparse=True))
    if len(rows) > _SHOWN:
        print(f"… {len(rows) - _SHOWN} more; --json has all")

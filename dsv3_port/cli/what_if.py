"""`dsv3-port plan --what-if`: a port on cards that are not here, by kernels that others measured or
your own card's."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tabulate import tabulate

from ..config import DeepseekV3Config
from ..forecast import own_kernels
from ..forecast.compose import SENTENCE
from ..forecast.kernels import CARD, label
from ..forecast.what_if import Layout, layouts, suggested
from .words import parse_gib, parse_ints, parse_plan


def what_if(args: argparse.Namespace, config: DeepseekV3Config) -> None:
    """Memory, decode step, what binds and the next step of each layout."""
    model = own_kernels.model(own_kernels.load(args.kernels)) if args.kernels else None
    found = layouts(
        config,
        parse_ints(args.world_size, "--world-size"),
        cards=args.cards,
        hbm_gib=parse_gib(args.hbm),
        batch=args.batch,
        context=args.seq_len,
        plan=parse_plan(args.plan),
        model=model,
    )
    best = suggested(found)
    if args.json:
        print(json.dumps([_layout(x, x is best) for x in found], indent=1, ensure_ascii=False))
        return
    print(
        f"decode of {args.batch} sequences with {args.seq_len} cached, bfloat16, plan {args.plan}: {SENTENCE}"
    )
    print(tabulate([_row(x) for x in found], headers="keys", disable_numparse=True))
    print(f"\nsuggested: {best.world_size} ranks" + _copies(best) + f"; {_advice(best)}")
    if model is None:
        print(f"\n{label(CARD)}")
    else:
        print(
            f"\nKernels: {model.device}, {args.kernels}; published ones of {CARD} where it has none."
        )
    print("The latency of collectives is in no source and not in the times.")


def _copies(x: Layout) -> str:
    return f", {x.copies} copies" if x.copies > 1 else ""


def _advice(x: Layout) -> str:
    if x.after is None or x.decode is None:
        return "no missing step shortens decode by more than 3 %"
    return f"next step: {x.next_step}, ~{x.decode.ms:.0f} to ~{x.after.ms:.0f} ms composed"


def _row(x: Layout) -> dict[str, Any]:
    row: dict[str, Any] = {"ranks": x.world_size, "copies": x.copies or "–"}
    if x.decode is None:
        return row | {
            "memory": "–",
            "decode ms": "–",
            "covered": "–",
            "binds": x.reason,
            "next": "–",
        }
    d = x.decode
    return row | {
        "memory": x.memory.reason,
        "decode ms": f"~{d.ms:.0f} ({d.low:.0f}–{d.high:.0f})",
        "covered": f"{d.covered:.0%}",
        "binds": d.binds,
        "next": f"{x.next_step} → ~{x.after.ms:.0f}" if x.after else "none",
    }


def _layout(x: Layout, best: bool) -> dict[str, Any]:
    d = x.decode
    return {
        "composed": True,
        "world_size": x.world_size,
        "copies": x.copies,
        "possible": x.possible,
        "suggested": best,
        "reason": x.reason or x.memory.reason,
        "total_bytes": x.memory.total_bytes,
        "decode_ms": None if d is None else [d.low, d.ms, d.high],
        "covered": None if d is None else d.covered,
        "binds": None if d is None else d.binds,
        "collectives_not_timed": None if d is None else d.sent.calls,
        "next_step": x.next_step,
        "rows": [] if d is None else list(d.rows),
    }

"""`dsv3-port shard`: split a published checkpoint into one folder per rank."""

from __future__ import annotations

import argparse
import json

from .words import PLAN_HELP, check_positive, parse_ints, parse_plan


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model-path", required=True, help="checkpoint folder in the published format")
    p.add_argument("--output-path", required=True, help="folder for the rank folders")
    p.add_argument("--world-size", type=int, required=True, help="number of ranks")
    p.add_argument("--plan", default="full", help=PLAN_HELP)
    p.add_argument(
        "--mtp",
        action="store_true",
        help="keep the multi-token prediction layer too, for infer's --num-speculative-tokens",
    )
    p.add_argument(
        "--quant",
        choices=("none", "w8a8"),
        help="w8a8: matrices of int8 with a scale for each output, as the plan's +w8a8",
    )
    p.add_argument(
        "--quant-format",
        choices=("compressed-tensors", "ascend"),
        help="what they are written as (default: compressed-tensors)",
    )
    p.add_argument("--dtype", default="bf16", help="bf16, fp16 or fp32 (default: %(default)s)")
    p.add_argument(
        "--ranks", help="write these only, as in 0-7 or 0,3: several machines share one job"
    )
    p.add_argument("--jobs", type=int, help="threads (default: one more than cores, 8 at most)")
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, estimate memory, disk and time, write nothing",
    )
    p.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from what an interrupted run wrote (default), or begin unfinished ranks anew",
    )
    p.add_argument(
        "--verify", action="store_true", help="read everything back and compare the hashes"
    )
    p.add_argument(
        "--allow-nonfinite",
        action="store_true",
        help="keep values that are NaN, infinite or all zero; the manifest says so",
    )
    p.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    check_positive(args, "world_size")
    from ..weights.sharding import shard_checkpoint

    plan = parse_plan(args.plan)
    plan = plan.replace(quant=args.quant) if args.quant else plan
    report = shard_checkpoint(
        args.model_path,
        args.output_path,
        args.world_size,
        plan=plan.plus("mtp") if args.mtp else plan,
        dtype=args.dtype,
        ranks=parse_ints(args.ranks, "--ranks") if args.ranks else None,
        jobs=args.jobs,
        dry_run=args.dry_run,
        resume=args.resume,
        verify=args.verify,
        allow_nonfinite=args.allow_nonfinite,
        quant_format=args.quant_format,
        progress=not args.json,
    )
    print(json.dumps(report.to_dict(), indent=1) if args.json else report.summary())
    return 0

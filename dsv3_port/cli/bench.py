"""`dsv3-port bench`: measure the ladder on this machine."""

from __future__ import annotations

import argparse

from .words import DEVICE_HELP, WORKLOAD, check_positive, check_target, workload_arguments


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--profile",
        default="w1",
        help="a preset (random weights, made once) or a checkpoint folder",
    )
    p.add_argument("--device", default="auto", help=DEVICE_HELP)
    p.add_argument(
        "--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)"
    )
    workload_arguments(p, rounds=7)
    p.add_argument("--compile", action="store_true", help="the compiled full port, too")
    p.add_argument("--alone", action="store_true", help="each step alone, too")
    p.add_argument("--peer", action="store_true", help="transformers' own model, too")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", metavar="FILE", help="append the records to this JSON file")
    p.add_argument("--plot", metavar="FILE", help="draw the ladder there (.png or .svg)")


def run(args: argparse.Namespace) -> int:
    from ..bench.ladder import bench_ladder
    from ..bench.records import save

    check_positive(args, *WORKLOAD)
    check_target(args.out)
    check_target(args.plot, (".png", ".svg"))
    results = bench_ladder(
        args.profile,
        device=args.device,
        dtype=args.dtype,
        **{name: getattr(args, name) for name in WORKLOAD},
        compiled=args.compile,
        alone=args.alone,
        peer=args.peer,
        seed=args.seed,
    )
    print(results.table())
    if args.out:
        print(f"\nadded to {save(results, args.out)}")
    if args.plot:
        from ..plots.bars import ladder
        from ..plots.style import save as save_figure

        print(f"drawn as {save_figure(ladder(results), args.plot)}")
    return 0

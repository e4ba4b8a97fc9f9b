"""`dsv3-port bench`: measure the ladder on this machine, or the full port beside other engines."""

from __future__ import annotations

import argparse

from ..errors import PortError
from .words import DEVICE_HELP, WORKLOAD, check_positive, check_target, workload_arguments

LADDER_ONLY = ("compile", "alone", "peer", "plot")


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "what",
        nargs="?",
        choices=("ladder", "peer"),
        default="ladder",
        help="ladder: every step of the port (default); peer: the full port beside other engines",
    )
    p.add_argument(
        "--with",
        dest="peers",
        action="append",
        metavar="PEER",
        help="peer: transformers (default) or llama.cpp, each in all its configurations; may be repeated",
    )
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
    check_positive(args, *WORKLOAD)
    check_target(args.out)
    check_target(args.plot, (".png", ".svg"))
    return _peer(args) if args.what == "peer" else _ladder(args)


def _ladder(args: argparse.Namespace) -> int:
    from ..bench.ladder import bench_ladder
    from ..bench.records import save

    if args.peers:
        raise PortError("--with belongs to the other bench: dsv3-port bench peer --with llama.cpp")
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


def _peer(args: argparse.Namespace) -> int:
    from ..bench.models import checkpoint_of
    from ..bench.parts_peer import peer_run
    from ..bench.records import save

    if odd := [name for name in LADDER_ONLY if getattr(args, name)]:
        raise PortError(f"--{odd[0]} belongs to the ladder: dsv3-port bench --{odd[0]}")
    name, path = checkpoint_of(args.profile)
    for phase, size in (("decode", args.context), ("prefill", args.prefill)):
        found = peer_run(
            path,
            name,
            device=args.device,
            dtype=args.dtype,
            phase=phase,
            batch=args.batch,
            size=size,
            rounds=args.rounds,
            seed=args.seed,
            peers=args.peers or ["transformers"],
        )
        print(
            f"{found.results.table()}\n\nlargest difference of the logits from upstream's, compared first:"
        )
        for variant, difference in found.results.differences.items():
            print(f"  {variant}: {difference:.1e} (at most {found.bounds[variant]:.0e})")
        for variant, why in found.left_out.items():
            print(f"left out: {variant}: {why}")
        if args.out:
            print(f"added to {save(found.results, args.out)}")
        print(flush=True)
    return 0

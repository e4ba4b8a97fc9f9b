"""`dsv3-port record`: a signed measurement of this device for data/recorded."""

from __future__ import annotations

import argparse
import sys

from .words import DTYPE_HELP, WORKLOAD, check_positive, workload_arguments


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or npu; the host stand-in is refused"
    )
    p.add_argument(
        "--profile", default="w1", help="a preset (random weights, made once; default: %(default)s)"
    )
    p.add_argument("--dtype", help=DTYPE_HELP)
    workload_arguments(p, rounds=9)
    p.add_argument("--eager", action="store_true", help="without the compiled full port")
    p.add_argument(
        "--busy",
        action="store_true",
        help="keep what was measured while others used the machine, marked",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--out",
        metavar="DIR",
        default="data/recorded",
        help="folder of the file (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    from ..bench.record import make_record, save

    check_positive(args, *WORKLOAD)
    made = make_record(
        args.device,
        args.profile,
        dtype=args.dtype,
        **{name: getattr(args, name) for name in WORKLOAD},
        compiled=not args.eager,
        busy=args.busy,
        seed=args.seed,
        command=["dsv3-port", *sys.argv[1:]],
    )
    print(made.results.table())
    worst = max(made.sign_off.differences.values())
    print(
        f"\nsigned off: logits within {worst:.1e} of upstream (allowed {made.sign_off.bound:.0e} in "
        f"{made.sign_off.dtype}), {made.sign_off.greedy_tokens} greedy tokens equal in "
        f"{', '.join(made.sign_off.greedy_models)}\nwritten as {save(made, args.out)}"
    )
    return 0

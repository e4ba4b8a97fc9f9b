"""`dsv3-port record`: a signed measurement of this device for data/recorded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import PortError
from .streams import plain
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
    p.add_argument(
        "--sign", metavar="KEY", help="sign the file with this ssh key (FILE.sig, by ssh-keygen)"
    )
    p.add_argument(
        "--check", metavar="FILE", help="measure nothing: check this record, and its signature"
    )
    p.add_argument(
        "--signers",
        metavar="FILE",
        help="with --check: allowed_signers, one of whom must have signed",
    )


def run(args: argparse.Namespace) -> int:
    from ..bench import signature
    from ..bench.record import make_record, save

    if args.check or args.signers:
        return _check(args)
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
        f"{', '.join(made.sign_off.greedy_models)}"
    )
    file = save(made, args.out)
    print(f"written as {file}")
    if args.sign:
        print(f"signed: {signature.sign(file, args.sign)}")
    return 0


def _check(args: argparse.Namespace) -> int:
    if not args.check:
        raise PortError("--signers says who may have signed the record that --check names: give it")
    from ..bench import signature
    from ..bench.record import load

    record = load(args.check)
    print(
        f"{args.check}: consistent, {len(record.records)} variants of {record.device_name} ({record.tier})"
    )
    if args.signers:
        name = signature.signer_of(Path(args.check), args.signers)
        print(f"signed by {plain(name)}")
    else:
        print("who made it is not known: --signers FILE checks its signature")
    return 0

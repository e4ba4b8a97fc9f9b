"""`dsv3-port hostnpu`: the real torch_npu on a machine without NPU and CANN."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(p: argparse.ArgumentParser) -> None:
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    sub.add_parser("install", help="torch_npu of torch's version, 150 MB, into a folder of its own")
    sub.add_parser("status", help="whether device host-npu can be used, and why not")
    program = sub.add_parser(
        "run",
        help="run a program for torch_npu, and the processes that it starts",
        usage="dsv3-port hostnpu run [--soc CHIP] [--devices N] [-m] PROGRAM [ARGUMENT ...]",
    )
    program.add_argument(
        "--soc", metavar="CHIP", help="what torch_npu is told: 910B4 (default), 910B2"
    )
    program.add_argument("--devices", type=int, default=8, metavar="N", help="cards to see (8)")
    program.add_argument("-m", dest="module", action="store_true", help="PROGRAM is a module")
    program.add_argument("program", nargs=argparse.REMAINDER, metavar="PROGRAM [ARGUMENT ...]")
    tests = sub.add_parser("vendor-tests", help="run op-plugin's operator tests from a checkout")
    tests.add_argument("checkout", type=Path, help="a checkout of Ascend/op-plugin")
    tests.add_argument(
        "--lifted", action="store_true", help="run what is skipped by hand or version"
    )
    tests.add_argument(
        "--only", metavar="NAME", help="files and tests that have NAME in their name"
    )
    tests.add_argument(
        "--base", action="store_true", help="test_base_ops in place of test_custom_ops"
    )
    tests.add_argument(
        "--test-limit",
        type=int,
        default=300,
        metavar="S",
        help="seconds of processor time a test (300)",
    )
    tests.add_argument(
        "--file-limit", type=int, default=1800, metavar="S", help="seconds a file (1800)"
    )
    tests.add_argument("--json", type=Path, default=Path("vendor-tests.json"), metavar="FILE")


def run(args: argparse.Namespace) -> int:
    if args.action == "run":
        from ..hostnpu import program

        program.run(args.program, module=args.module, soc=args.soc, devices=args.devices)
        return 0
    if args.action == "vendor-tests":
        from ..hostnpu import vendor_tests

        return vendor_tests.run(
            args.checkout,
            folder="test_base_ops" if args.base else "test_custom_ops",
            lifted=args.lifted,
            only=args.only or "",
            limits=(args.test_limit, args.file_limit),
            into=args.json,
        )
    from ..hostnpu import status
    from ..hostnpu.install import install

    if args.action == "install":
        print(f"torch_npu is in {install()}")
    found = status()
    if found.reason:
        print(f"device host-npu cannot be had here: {found.reason}")
        return 1
    print(
        f"device host-npu: torch_npu {found.torch_npu} in {found.folder}, the stand-in for CANN is "
        + ("compiled" if found.compiled else "compiled at its first use (a second)")
    )
    return 0

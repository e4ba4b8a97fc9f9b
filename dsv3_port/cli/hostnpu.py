"""`dsv3-port hostnpu`: the real torch_npu on a machine without NPU and CANN."""

from __future__ import annotations

import argparse


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "action",
        choices=("install", "status"),
        help="install: torch_npu of torch's version, 150 MB, into "
        "a folder of its own; status: whether device host-npu can be used, and why not",
    )


def run(args: argparse.Namespace) -> int:
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

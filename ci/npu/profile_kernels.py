"""Profile single operators on an NPU in the shapes of data/npu-kernels, for `dsv3-port npu-kernels
import FOLDER`.

    python3 ci/npu/profile_kernels.py --out FOLDER [--device npu] [--rounds 20] [--most 60]

Weights take turns among copies that together exceed the 192 MB of L2, so that they come cold from
HBM as in a model. `--device cpu` rehearses the calls without a profiler and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv3_port import ops
from dsv3_port.errors import PortError
from dsv3_port.forecast.kernels import CARD, Kernel, kernels

COLD = 512 * 2**20  # bytes of copies that a call's inputs take turns among
REHEARSAL = 4.0  # MB of the largest call on a CPU
KINDS: dict[str, Callable[..., Any]] = {
    "MatMulV2": lambda x, w: torch.matmul(x, w.T),
    "MatMulV3": lambda x, w: torch.matmul(x, w.T),
    "BatchMatMulV2": torch.bmm,
    "Add": torch.add,
    "Mul": torch.mul,
    "SwiGlu": lambda x: ops.npu_swiglu(x, -1),
    "RmsNorm": lambda x, w: ops.npu_rms_norm(x, w, 1e-6),
    "AddRmsNorm": lambda x, y, w: ops.npu_add_rms_norm(x, y, w, 1e-6),
}


ONE, THREE = ("SwiGlu",), ("AddRmsNorm",)  # how many inputs; all others have two


def chosen(most: int, largest: float) -> list[Kernel]:
    """Published bfloat16 points up to `largest` MB that a call here can repeat: of each kind the
    ones with most samples, `most` in all."""
    found: list[Kernel] = []
    for kind in KINDS:
        number = 1 if kind in ONE else 3 if kind in THREE else 2
        same = [
            k
            for k in kernels()
            if (k.device, k.kernel) == (CARD, kind)
            and k.dtypes.split(";") == ["bfloat16"] * number
            and len(k.shapes) == number
            and 0 < k.mb < largest
        ]
        found += sorted(same, key=lambda k: -k.n)[: max(1, most // len(KINDS))]
    return found[:most]


def inputs(k: Kernel, device: torch.device, cold: int) -> list[list[Tensor]]:
    """Copies of the call's inputs that together hold `cold` bytes, at most 64 of them."""
    size = sum(2 * torch.Size(s).numel() for s in k.shapes)
    copies = min(64, max(2, cold // max(1, size) + 1))
    return [
        [torch.randn(s, device=device, dtype=torch.bfloat16) for s in k.shapes]
        for _ in range(copies)
    ]


@contextlib.contextmanager
def profiled(device: torch.device, out: Path) -> Iterator[None]:
    """torch_npu's profiler with shapes, at the level that writes kernel_details.csv."""
    if device.type != "npu":
        yield
        return
    import torch_npu

    p = torch_npu.profiler
    level = p._ExperimentalConfig(profiler_level=p.ProfilerLevel.Level1)
    with p.profile(
        activities=[p.ProfilerActivity.CPU, p.ProfilerActivity.NPU],
        record_shapes=True,
        experimental_config=level,
        on_trace_ready=p.tensorboard_trace_handler(str(out)),
    ):
        yield


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--device", default="npu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--most", type=int, default=60)
    args = parser.parse_args(argv)
    try:
        device = _device(args.device)
    except PortError as error:
        print(f"profile_kernels: {error}", file=sys.stderr)
        return 2
    npu = device.type == "npu"
    points = chosen(args.most, 1e9 if npu else REHEARSAL)
    for k in points:  # compiled and loaded before anything is profiled
        KINDS[k.kernel](*inputs(k, device, 0)[0])
    with profiled(device, args.out), torch.no_grad():
        for k in points:
            copies = inputs(k, device, COLD if npu else 0)
            for i in range(args.rounds):
                KINDS[k.kernel](*copies[i % len(copies)])
            if npu:
                torch.get_device_module(device).synchronize()
    where = args.out if npu else "nothing written, no profiler on this device"
    print(f"{len(points)} calls, {args.rounds} times each: {where}")
    return 0


def _device(name: str) -> torch.device:
    if name == "cpu":
        return torch.device(name)
    try:
        import torch_npu
    except (ImportError, OSError) as error:
        raise PortError(
            f"torch_npu cannot be imported ({error}); `dsv3-port doctor` says what to do"
        ) from error
    if not torch_npu.npu.is_available():
        raise PortError("no NPU is available; `dsv3-port doctor` says what to do")
    return torch.device(name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

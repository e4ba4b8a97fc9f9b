"""What a device can do at most, as calls to time beside a step: a read of memory, a large matmul."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# far beyond any cache, and long enough to reach the full rate. One H100, 2026-11-27: 256 MiB are read
# at 2.3 TB/s, 1 GiB at 3.05; 2,048 cubed is multiplied at 639 TFLOP/s, 8,192 cubed at 734
READ_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
GEMM_SIZE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Bound:
    """One call and the work in it, bytes or FLOPs."""

    name: str
    unit: str
    work: int
    call: Callable[[], Tensor]


def read_bound(device: torch.device) -> Bound:
    """One pass over memory."""
    nbytes = READ_BYTES[device.type]
    memory = torch.ones(nbytes // 4, device=device)
    return Bound("read", "bytes", nbytes, lambda: memory.sum())


def gemm_bound(device: torch.device, dtype: torch.dtype) -> Bound:
    """One square matmul in the model's dtype."""
    size = GEMM_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return Bound("gemm", "FLOP", 2 * size**3, lambda: a @ b)

"""The kernels of dsv3_port/ops/triton_decode.py against the definition in float64: by Triton's
interpreter on CPU tensors, `TRITON_INTERPRET=1 python -m tests.ops.interpreted_decode` prints a JSON list
(a process of its own, as Triton reads the variable when it is imported); on a GPU by `error` itself."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter

from dsv3_port.ops import split_attention as split

SCALE = 192**-0.5
KIB = 1024
# name, dtype, (batch, heads, positions), buffer, (R, Dr), pads, slots, multiprocessors
CASES: list[tuple[str, str, tuple[int, int, int], int, tuple[int, int], Any, Any, int]] = [
    ("one key", "float32", (1, 2, 1), 70, (24, 6), [0], [0], 8),
    ("a block's edges", "float32", (4, 3, 1), 100, (24, 6), [0] * 4, [14, 15, 16, 31], 40),
    ("a split's edges", "float32", (3, 3, 1), 100, (24, 6), [0] * 3, [31, 32, 63], 40),
    ("all filled, pads", "float32", (3, 4, 1), 96, (32, 16), [0, 5, 95], [95, 95, 95], 9),
    ("one split", "float32", (2, 20, 1), 40, (20, 4), [3, 39], [30, 38], 1),
    ("many splits", "float32", (1, 2, 1), 1300, (16, 4), [1], [1290], 64),
    ("a verify step", "float16", (3, 5, 2), 300, (20, 4), [0, 37, 200], [297, 37, 100], 30),
    ("a verify step at the end", "float32", (1, 3, 2), 64, (16, 16), [60], [63], 4),
    ("sees nothing", "float16", (2, 4, 1), 300, (20, 4), [200, 1 << 40], [100, 299], 10),
    ("published, 4 heads", "bfloat16", (2, 4, 1), 200, (512, 64), [0, 37], [199, 130], 8),
    ("published, 16 heads", "float16", (1, 16, 1), 90, (512, 64), [0], [80], 8),
    ("published, 24 of 128 heads", "bfloat16", (1, 24, 1), 70, (512, 64), [3], [69], 8),
    ("published, 40 of 128 heads", "bfloat16", (1, 40, 1), 130, (512, 64), [0], [129], 8),
    ("published, float32", "float32", (1, 4, 1), 40, (512, 64), [5], [37], 8),
]


def wide(data: Any, dtype: Any) -> Any:
    """float32 of 16 bits, exactly. The interpreter's own product takes bfloat16's bits for whole numbers."""
    if dtype.name == "bf16":
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32)


def create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    product = np.matmul(wide(a.data, a.dtype), wide(b.data, b.dtype))
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


def definition(q: Tensor, rows: Tensor, pad: Tensor, slot: Tensor, latent: int) -> Tensor:
    """In float64, one query after the other; 0 for one that sees nothing."""
    batch, heads, positions, _ = q.shape
    found = torch.zeros(batch, heads, positions, latent, dtype=torch.float64)
    for b in range(batch):
        for s in range(positions):
            seen = rows[b, int(pad[b]) : int(slot[b]) + s + 1].double()
            if len(seen):
                weights = (q[b, :, s].double() @ seen.T * SCALE).softmax(-1)
                found[b, :, s] = weights @ seen[:, :latent]
    return found


def error(case: Any, where: str = "cpu") -> dict[str, Any]:
    """How far the kernels are from the definition, of its largest number, with NaN and infinity in all
    that they must not read."""
    name, dtype, (batch, heads, positions), length, (latent, rope), pads, slots, processors = case
    generator = torch.Generator().manual_seed(len(name))
    of: Any = {"dtype": torch.float32, "generator": generator}
    # scores of several units: splits of one row then weigh very differently
    q = 4 * torch.randn(batch, heads, positions, latent + rope, **of)
    buffer = torch.randn(batch, length + 3, latent + rope, **of)
    q, buffer = (x.to(getattr(torch, dtype)) for x in (q, buffer))
    rows, pad, slot = buffer[:, :length], torch.tensor(pads), torch.tensor(slots)
    wanted = definition(q, rows, pad, slot, latent)
    for b in range(batch):  # nothing of it may be read
        buffer[b, : min(pads[b], length)] = math.nan
        buffer[b, slots[b] + positions :] = math.inf
    device = split.Device(processors, 227 * KIB, 9)
    blocks = split.blocks_for(heads * positions, latent, rope, q.element_size(), device)
    sizes = batch, heads * positions, length, positions, (latent, rope), blocks, device
    inputs = (x.to(where) for x in (q, buffer, pad, slot))
    q, buffer, pad, slot = inputs
    got = split.split_attention(q, buffer[:, :length], pad, slot, SCALE, latent, device).cpu()
    same_dtype = got.dtype == q.dtype and got.shape == wanted.shape
    largest = wanted.abs().max().clamp(min=1e-30)
    gap = float((got.double() - wanted).abs().max() / largest) if same_dtype else math.inf
    hidden = [b for b in range(batch) if pads[b] >= slots[b] + positions]
    return {
        "name": name,
        "dtype": dtype,
        "splits": split.grid_for(*sizes).splits,
        "queries": blocks.queries,
        "error": gap if math.isfinite(gap) else 1e9,
        "hidden": float(got[hidden].abs().max()) if hidden else 0.0,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    interpreter.InterpreterBuilder.create_dot = create_dot
    # what is not written is NaN: the result of a split that saw nothing must not be read either
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).new_empty(2, dtype=torch.float32).isnan().all()
    print(json.dumps([error(case) for case in CASES]))
    sys.exit(0)

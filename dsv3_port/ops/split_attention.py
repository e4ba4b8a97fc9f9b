"""Attention of a decode step that reads only the filled part of the cache: an operator of ours,
`dsv3::decode_attention`, on cuda two Triton kernels (triton_decode.py). products.py says where it is used.

Here is what a launch needs to know: into how many splits the cache is cut, and blocks that fit a
multiprocessor's shared memory. Both depend on sizes and on the GPU alone, never on what is filled: a
captured graph keeps them.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError
from . import plain

LEAST = 16  # rows of a product of tensor cores, so of each block
# itemsize -> (queries, keys, warps, stages), from what has most in flight to what needs least shared
# memory. More queries share one read of the cache; 32 keys let 4,096 of them keep 128 multiprocessors
# busy. Compiled for compute capability 8.0 to 10.0 no register is spilled, but 32 bytes with 64 queries
# on 8.0 and 8 in float32 on 9.0. No GPU has run them
SHAPES = {
    2: (
        (64, 64, 8, 2),
        (64, 32, 8, 2),
        (32, 64, 8, 3),
        (32, 32, 8, 3),
        (16, 32, 4, 4),
        (16, 32, 4, 3),
        (16, 16, 4, 2),
        (16, 16, 4, 1),
    ),
    4: ((16, 16, 4, 2), (16, 16, 4, 1)),
}


@dataclass(frozen=True)
class Device:
    """A GPU, as far as a launch depends on it."""

    multiprocessors: int
    shared: int  # bytes of shared memory that one block may take
    major: int = 8  # of its compute capability


@dataclass(frozen=True)
class Blocks:
    """What one program of the first kernel holds at a time."""

    queries: int
    keys: int
    latent: int  # R, up to a power of two
    rope: int  # Dr, up to a power of two
    warps: int
    stages: int  # blocks of keys in flight, and the one that is computed

    def shared(self, itemsize: int, major: int) -> int:
        """Bytes of shared memory: queries, keys in flight, weights, and what their sums pass through. What
        Triton takes is compiled and compared in tests/ops/test_triton_decode.py."""
        flying = max(1, self.stages - 1) + self.asynchronous(major)
        rows = self.queries + self.keys * flying
        held = rows * (self.latent + self.rope) + self.queries * self.keys
        return held * itemsize + 4 * self.queries

    def asynchronous(self, major: int) -> bool:
        """Whether Triton takes products that read shared memory themselves, which holds keys longer."""
        return major >= 9 and self.queries >= 64


@dataclass(frozen=True)
class Grid:
    """How the work is divided."""

    splits: int
    least: int  # keys that a split takes before the next one gets any
    head_blocks: int
    positions: int  # S
    latent: int  # R
    rope: int  # Dr


def device_of(index: int) -> Device:
    """The GPU's numbers; a constant to a compiler."""
    found: Any = torch.cuda.get_device_properties(index)
    return Device(found.multi_processor_count, found.shared_memory_per_block_optin, found.major)


def padded(width: int) -> int:
    """A block's side: the next power of two, LEAST at least."""
    return max(LEAST, 1 << (width - 1).bit_length())


def blocks_for(queries: int, latent: int, rope: int, itemsize: int, device: Device) -> Blocks:
    """The first of SHAPES that the device's shared memory holds. PortError where none does."""
    if itemsize not in SHAPES:
        raise PortError(
            "PortPlan.decode_attention 'split' takes float32, bfloat16 and float16 on cuda, and no numbers of "
            f"{itemsize} bytes; take 'products'"
        )
    wide, narrow = padded(latent), padded(rope)
    for rows, keys, warps, stages in SHAPES[itemsize]:
        found = Blocks(rows, keys, wide, narrow, warps, stages)
        # Blackwell's own products take 344 KiB for 64 queries: more than it has
        unfit = rows > padded(queries) or rows >= 64 and device.major >= 10
        if not unfit and found.shared(itemsize, device.major) <= device.shared:
            return found
    raise PortError(
        f"PortPlan.decode_attention 'split': latent rows of {latent} + {rope} numbers of {itemsize} bytes need more "
        f"than this GPU's {device.shared // 1024} KiB of shared memory; take 'products'"
    )


def grid_for(
    batch: int,
    queries: int,
    length: int,
    positions: int,
    widths: tuple[int, int],
    blocks: Blocks,
    device: Device,
) -> Grid:
    """One program for each multiprocessor, as far as there are keys: a split takes so many that reading
    them costs more than writing its result, queries * R float32, for the second kernel."""
    head_blocks = -(-queries // blocks.queries)
    least = max(blocks.keys, 2 * blocks.queries)
    most = -(-length // least)
    splits = max(1, min(device.multiprocessors // (batch * head_blocks), most))
    return Grid(splits, least, head_blocks, positions, *widths)


def require_split_attention(
    device: torch.device, dtype: torch.dtype, latent: int, rope: int
) -> None:
    """PortError where the kernels cannot run; elsewhere than on cuda they are not asked for."""
    if device.type != "cuda":
        return
    if importlib.util.find_spec("triton") is None:
        raise PortError(
            "PortPlan.decode_attention 'split' is written in Triton on cuda, and this Python has none: "
            "install PyTorch's own CUDA build, which brings it on Linux, or take 'products'"
        )
    blocks_for(1, latent, rope, dtype.itemsize, device_of(device.index or 0))


@torch.library.custom_op("dsv3::decode_attention", mutates_args=())
def decode_attention_op(
    q: Tensor, rows: Tensor, pad: Tensor, slot: Tensor, scale: float, latent: int
) -> Tensor:
    """As plain.decode_attention, which it is where there is no kernel of its own."""
    return plain.decode_attention(q, rows, pad, slot, scale, latent)


@decode_attention_op.register_fake
def _(q: Tensor, rows: Tensor, pad: Tensor, slot: Tensor, scale: float, latent: int) -> Tensor:
    return q.new_empty(*q.shape[:-1], latent)


@decode_attention_op.register_kernel("cuda")
def _(q: Tensor, rows: Tensor, pad: Tensor, slot: Tensor, scale: float, latent: int) -> Tensor:
    with torch.cuda.device(q.device):  # Triton launches on the current one
        return split_attention(q, rows, pad, slot, scale, latent, device_of(q.device.index))


def split_attention(
    q: Tensor, rows: Tensor, pad: Tensor, slot: Tensor, scale: float, latent: int, device: Device
) -> Tensor:
    """The kernels, with blocks and splits for this device; Triton's interpreter runs them too."""
    batch, heads, positions, width = q.shape
    assert rows.stride(-1) == 1, "a row's numbers lie side by side"
    widths = latent, width - latent
    blocks = blocks_for(heads * positions, *widths, q.element_size(), device)
    grid = grid_for(batch, heads * positions, rows.shape[1], positions, widths, blocks, device)
    kernels = importlib.import_module(f"{__package__}.triton_decode")
    flat = q.reshape(batch, heads * positions, width)
    found: Tensor = kernels.launch(flat, rows, pad, slot, scale, grid, blocks)
    return found.view(batch, heads, positions, latent)

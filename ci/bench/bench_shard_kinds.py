"""What ci/bench/bench_shard.py measures: each kind runs in a child process and returns the bytes it
moved."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RANKS = 8
BUFFER = 8 << 20


def split(source: Path, target: Path) -> int:
    from dsv3_port.weights.sharding import shard_checkpoint

    report = shard_checkpoint(source, target, RANKS)
    return report.bytes_read + report.bytes_per_rank * RANKS


def read(source: Path, target: Path) -> int:
    buffer, total = bytearray(BUFFER), 0
    for file in sorted(source.glob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                total += count
    return total


def write(source: Path, target: Path) -> int:
    """The bytes of a split (`bytes.txt`) in 8 files at once, by as many threads as cores, then
    flushed."""
    size = int((source / "bytes.txt").read_text()) // RANKS
    buffer = os.urandom(BUFFER)
    target.mkdir()

    def one(rank: int) -> None:
        with (target / str(rank)).open("wb", buffering=0) as stream:
            for at in range(0, size, BUFFER):
                stream.write(buffer[: min(BUFFER, size - at)])
            os.fsync(stream.fileno())

    with ThreadPoolExecutor(RANKS) as pool:
        list(pool.map(one, range(RANKS)))
    return size * RANKS


def kernel(source: Path, target: Path) -> int:
    import torch

    from dsv3_port.weights.fp8 import FP8, dequantize_blocks, scale_shape

    torch.set_num_threads(1)
    shape, turns, cores = (1024, 7168), 60, os.cpu_count() or 1

    def work(seed: int) -> None:
        codes = torch.randint(0, 127, shape, dtype=torch.uint8).view(FP8)
        scale, out = torch.rand(scale_shape(*shape)), torch.empty(shape, dtype=torch.bfloat16)
        for _ in range(turns):
            dequantize_blocks(codes, scale, torch.bfloat16, out)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(work, range(cores)))
    return turns * cores * shape[0] * shape[1]


def ordinary(source: Path, target: Path) -> int:
    import torch
    from safetensors.torch import load_file, save_file

    from dsv3_port.config import DeepseekV3Config
    from dsv3_port.parallel import TensorParallel
    from dsv3_port.plan import PortPlan
    from dsv3_port.weights.layout import targets

    stored: dict[str, Any] = {}
    for file in sorted(source.glob("*.safetensors")):
        stored |= load_file(file)
    values = {}
    for name in [n for n in stored if not n.endswith("_scale_inv")]:
        value = stored.pop(name)
        if name + "_scale_inv" in stored:
            scale = stored.pop(name + "_scale_inv")
            spread = scale.repeat_interleave(128, 0)[: value.shape[0]].repeat_interleave(128, 1)[
                :, : value.shape[1]
            ]
            value = (value.float() * spread).bfloat16()
        values[name] = value
    target.mkdir()
    total, config = 0, DeepseekV3Config.from_pretrained(source)
    ranks: list[dict[str, Any]] = [{} for _ in range(RANKS)]
    for rank, held in enumerate(ranks):
        for t in targets(config, PortPlan.full(), TensorParallel(rank, RANKS)):
            held[t.name] = torch.empty(t.shape, dtype=t.dtype(torch.bfloat16))
            for piece in t.pieces:
                piece.place(values[piece.source], held[t.name])
            total += held[t.name].nbytes
    for rank, held in enumerate(ranks):
        save_file(held, target / f"model{rank}-mp{RANKS}.safetensors")
        _sync(target / f"model{rank}-mp{RANKS}.safetensors")
    return total


def cp(source: Path, target: Path) -> int:
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    files = list(target.glob("*.safetensors"))
    for file in files:
        _sync(file)
    return sum(f.stat().st_size for f in files)


KINDS: dict[str, Callable[[Path, Path], int]] = {
    f.__name__: f for f in (split, read, write, kernel, ordinary, cp)
}


def _sync(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

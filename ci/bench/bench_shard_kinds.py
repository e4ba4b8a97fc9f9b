"""What ci/bench/bench_shard.py measures: each kind runs in a child process and returns the bytes it
moved. A name that ends in 8 is of the split to int8 (W8A8)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RANKS = 8
BUFFER = 8 << 20
BYTES, BYTES8 = "bytes.txt", "bytes8.txt"  # what a split writes, beside the source


def _split(source: Path, target: Path, quant: str) -> int:
    from dsv3_port.plan import PortPlan
    from dsv3_port.weights.sharding import shard_checkpoint

    plan = PortPlan.full().replace(quant=quant)
    report = shard_checkpoint(source, target, RANKS, plan=plan)
    return report.bytes_read + report.bytes_per_rank * RANKS


def split(source: Path, target: Path) -> int:
    return _split(source, target, "none")


def split8(source: Path, target: Path) -> int:
    return _split(source, target, "w8a8")


def read(source: Path, target: Path) -> int:
    buffer, total = bytearray(BUFFER), 0
    for file in sorted(source.glob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                total += count
    return total


def _write(source: Path, target: Path, name: str) -> int:
    """The bytes of a split in 8 files at once, by as many threads as cores, then flushed."""
    size = int((source / name).read_text()) // RANKS
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


def write(source: Path, target: Path) -> int:
    return _write(source, target, BYTES)


def write8(source: Path, target: Path) -> int:
    return _write(source, target, BYTES8)


def kernel(source: Path, target: Path) -> int:
    """FP8 blocks to bfloat16, on every core, in memory."""
    import torch

    from dsv3_port.weights.fp8 import dequantize_blocks

    def work(codes: Any, scale: Any) -> Callable[[], Any]:
        out = torch.empty(codes.shape, dtype=torch.bfloat16)
        return lambda: dequantize_blocks(codes, scale, torch.bfloat16, out, finite=True)

    return _on_every_core(work)


def kernel8(source: Path, target: Path) -> int:
    """FP8 blocks to int8 codes and the scale of each row, likewise."""
    import torch

    from dsv3_port.weights.fp8 import dequantized_bands
    from dsv3_port.weights.int8 import quantize_bands

    def work(codes: Any, scale: Any) -> Callable[[], Any]:
        out = torch.empty(codes.shape, dtype=torch.int8)
        return lambda: quantize_bands(dequantized_bands(codes, scale, finite=True), out)

    return _on_every_core(work)


def _on_every_core(make: Callable[[Any, Any], Callable[[], Any]]) -> int:
    """`make(codes, scale)` once a core, what it returns 60 times; the values that went through."""
    import torch

    from dsv3_port.weights.fp8 import FP8, scale_shape

    torch.set_num_threads(1)
    shape, turns, cores = (1024, 7168), 60, os.cpu_count() or 1

    def work(seed: int) -> None:
        codes = torch.randint(0, 127, shape, dtype=torch.uint8).view(FP8)
        once = make(codes, torch.rand(scale_shape(*shape)) + 1e-3)
        for _ in range(turns):
            once()

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
    f.__name__: f for f in (split, split8, read, write, write8, kernel, kernel8, ordinary, cp)
}


def _sync(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

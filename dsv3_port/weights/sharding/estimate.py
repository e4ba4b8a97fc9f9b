"""What a split will cost, before it is begun: memory from its buffers, disk from shapes, time from
a probe."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import PortError
from ..fp8 import FP8, dequantize_blocks, scale_shape
from ..int8 import quantize_rows
from .plan import RankPlan, Source
from .source import TILE

_BASE = 250 << 20  # Python and torch, before any work
_PROBE = 64 << 20  # bytes written and flushed to see how fast the disk is


@dataclass(frozen=True)
class Estimate:
    """memory_bytes is anonymous memory (RssAnon). seconds is 0 where no probe was asked for."""

    memory_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    seconds: float
    jobs: int


def estimate(
    sources: list[Source], plan: RankPlan, output: Path, ranks: int, jobs: int, probe: bool
) -> Estimate:
    """For `ranks` ranks. The probe writes a nameless file of 64 MiB beside `output` and dequantises
    8 MiB."""
    largest = max(math.prod(s.shape) for s in sources)
    at_once = max((math.prod(s.shape) for s in sources if s.at_once), default=0)
    tile = max(min(TILE, largest), at_once)
    # a worker holds the stored tile, its values and one rank's cut; dequantising adds 128 rows in
    # float32
    worker = tile * (4 + 2 * plan.dtype.itemsize) + 128 * 8 * 32768
    tables = len(sources) * 4000 + len(plan.blocks) * (1500 + 40 * ranks)
    disk = plan.nbytes * ranks
    return Estimate(
        _BASE + jobs * worker + tables,
        disk,
        _free(output),
        _seconds(sources, output, disk, jobs) if probe else 0.0,
        jobs,
    )


def _seconds(sources: list[Source], output: Path, disk: int, jobs: int) -> float:
    codes = sum(math.prod(s.shape) for s in sources if s.dtype == FP8)
    read = sum(s.nbytes for s in sources)
    start = time.perf_counter()
    dequantize_blocks(
        torch.ones(1024, 8192).to(FP8), torch.ones(scale_shape(1024, 8192)), torch.bfloat16
    )
    dequantise = (time.perf_counter() - start) / (8 << 20)
    start, row = time.perf_counter(), torch.ones(1024, 8192)
    quantize_rows(row)
    quantise = (time.perf_counter() - start) / row.numel()
    made = sum(math.prod(s.shape) for s in sources if s.quantised)
    with open(sources[0].file, "rb") as stream:
        start = time.perf_counter()
        part = max(len(stream.read(_PROBE)), 1)
        reading = (time.perf_counter() - start) / part
    computing = (codes * dequantise + made * quantise) / min(jobs, os.cpu_count() or 1)
    return max(computing, read * reading + disk * _write_rate(output))


def _write_rate(output: Path) -> float:
    """Seconds a byte, flushed; PortError where the place cannot be written to."""
    place = existing(output)
    try:
        with tempfile.TemporaryFile(dir=place) as stream:
            data = os.urandom(1 << 20)
            start = time.perf_counter()
            for _ in range(_PROBE >> 20):
                stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            return (time.perf_counter() - start) / _PROBE
    except OSError as error:
        raise PortError(f"{place}: cannot be written to: {error.strerror or error}") from error


def existing(path: Path) -> Path:
    at = path.absolute()
    while not at.exists():
        at = at.parent
    return at


def _free(output: Path) -> int:
    return shutil.disk_usage(existing(output)).free


def require_space(output: Path, need: int) -> None:
    free = _free(output)
    if need > free:
        raise PortError(
            f"{output}: {need / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB are free; give "
            "another disk, or write fewer ranks here with --ranks"
        )

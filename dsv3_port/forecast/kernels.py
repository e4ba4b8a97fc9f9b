"""NPU kernel times that others measured, as typed rows (data/npu-kernels; docs/npu-kernels.md says
where they come from).

Every row has an id, so that a number in a picture or a sentence can be traced to it: k, g, f or p
for kernels.csv, gaps.csv, forward-prefill-3585.csv or published.csv, and its line in that file
("k225"). Times are microseconds of device time of one kernel; launches, host and collectives are
not in them. None is a run of this package.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from .. import paths
from ..errors import PortError
from ..messages import N_, tr

FOLDER = "npu-kernels"
SOURCE = "msopmodeling 1.0.9 (MindStudio, Mulan PSL v2), tilesim/tests/st/…"
NO_KERNEL = N_("no measured kernel found")
CARD = "910B4-1"  # the device with most points: 348 of 597
L2_MB = 192 * 2**20 / 1e6  # of 910B and A3; below it an elementwise kernel may never meet HBM


def label(*devices: str) -> str:
    """The sentence that stands under every picture of these rows."""
    said = tr(
        "NPU kernels measured by others: device time of single kernels on Ascend {devices}, from {source}; n "
        "samples, median, min–max. Software version unknown. Not a run of this course, not a whole step; launches "
        "and collectives are not in it."
    )
    return said.format(devices=tr(" and ").join(dict.fromkeys(devices)) or CARD, source=SOURCE)


@dataclass(frozen=True)
class Kernel:
    """Equal calls of one kernel on one device. mb and gflop: what the shapes imply, 10^6 bytes and
    10^9 FLOPs; 0 where the shapes do not tell."""

    id: str
    device: str
    basis: str  # what says that it is this device
    kernel: str
    inputs: str  # shapes, "8x7168;512x7168"
    dtypes: str
    outputs: str
    note: str
    state: str  # static (in a graph), dynamic (eager) or "" (not told)
    n: int
    median: float  # µs
    low: float
    high: float
    mb: float
    gflop: float
    flag: str  # why it is not fitted: a rate above the card's peak, or a spread over 3x
    model: str
    files: str

    @property
    def shapes(self) -> list[list[int]]:
        return [parse_shape(text) for text in self.inputs.split(";")]

    @property
    def rows(self) -> int:
        """Rows of a matrix product, tokens of a vector kernel: the first dimension; 0 without one."""
        first = self.shapes[0]
        return first[-2] if self.kernel.startswith("BatchMatMul") else first[0] if first else 0

    @property
    def dtype(self) -> str:
        return self.dtypes.split(";")[0]


@dataclass(frozen=True)
class Launch:
    """One kernel of the measured forward of 3,585 tokens, in order; us is None where no time was
    written down."""

    id: str
    kernel: str
    inputs: str
    dtypes: str
    outputs: str
    us: float | None
    module: str


@dataclass(frozen=True)
class Gap:
    """How long kernels of one profiler export waited behind the one before, µs; static is a graph,
    dynamic eager."""

    id: str
    state: str
    core: str
    n: int
    duration: float
    wait_p10: float
    wait: float
    wait_p90: float
    layer_us: float | None  # from a layer's kernel to the next layer's
    step_ms: float | None  # from step to step
    file: str


@dataclass(frozen=True)
class Published:
    """A figure that a public page states: of a whole model, or of a link."""

    id: str
    quantity: str
    value: float
    unit: str
    model: str
    hardware: str
    conditions: str
    source: str


def parse_shape(text: str) -> list[int]:
    return [int(x) for x in text.split("x")] if text.strip("-") else []


def _table(name: str, letter: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(id, row) of each line after the head. No cell holds a line break, so lines are rows."""
    file = paths.data(f"{FOLDER}/{name}")
    with file.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            yield f"{letter}{number}", row


@lru_cache(maxsize=1)
def kernels() -> tuple[Kernel, ...]:
    """Every point of kernels.csv."""
    return tuple(
        Kernel(
            name,
            r["device"],
            r["device_basis"],
            r["kernel"],
            r["inputs_shape"],
            r["inputs_dtype"],
            r["outputs_shape"],
            r["note"],
            r["op_state"],
            int(r["n"]),
            float(r["median_us"]),
            float(r["min_us"]),
            float(r["max_us"]),
            float(r["mb"]),
            float(r["gflop"]),
            r["flag"],
            r["model"],
            r["source_file"],
        )
        for name, r in _table("kernels.csv", "k")
    )


@lru_cache(maxsize=1)
def by_id() -> dict[str, Kernel]:
    return {k.id: k for k in kernels()}


@lru_cache(maxsize=1)
def forward() -> tuple[Launch, ...]:
    """The prefill forward of 3,585 tokens on one rank of 128, in order."""
    return tuple(
        Launch(
            name,
            r["kernel"],
            r["inputs_shape"],
            r["inputs_dtype"],
            r["outputs_shape"],
            float(r["us"]) if r["us"] else None,
            r["module"],
        )
        for name, r in _table("forward-prefill-3585.csv", "f")
    )


@lru_cache(maxsize=1)
def gaps() -> tuple[Gap, ...]:
    """How long kernels waited, by profiler export."""
    return tuple(
        Gap(
            name,
            r["op_state"],
            r["core"],
            int(r["n"]),
            float(r["duration_median_us"]),
            float(r["wait_p10_us"]),
            float(r["wait_median_us"]),
            float(r["wait_p90_us"]),
            float(r["start_to_start_median_us"]) if r["start_to_start_median_us"] else None,
            float(r["step_to_step_median_ms"]) if r["step_to_step_median_ms"] else None,
            r["source_file"],
        )
        for name, r in _table("gaps.csv", "g")
    )


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    """Figures of whole models and links that public pages state."""
    columns = ("unit", "model", "hardware", "conditions", "source")
    return tuple(
        Published(name, r["quantity"], float(r["value"]), *(r[c] for c in columns))
        for name, r in _table("published.csv", "p")
    )


def find(kernel: str, inputs: str, device: str = CARD, dtype: str = "bfloat16") -> Kernel:
    """The point of this kernel and these input shapes with most samples; PortError without one."""
    found = [
        k
        for k in kernels()
        if (k.device, k.kernel, k.inputs) == (device, kernel, inputs)
        and (not dtype or k.dtype == dtype)
        and "peak" not in k.flag
    ]
    if not found:
        raise PortError(f"npu-kernels: no point of {kernel} {inputs} ({dtype}) on {device}")
    return max(found, key=lambda k: k.n)

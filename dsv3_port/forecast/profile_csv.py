"""What a profiler wrote on your card, as samples.

Read are torch_npu's kernel_details.csv and msprof's op_summary_*.csv, as CANN 8.0 to 9.1 write
them: columns Name, Type, Duration(us), Input Shapes … or Op Name, OP Type, Task Duration(us), …;
what they share has the same name in both. Other columns may be there and are not read.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import PortError

PATTERNS = ("kernel_details*.csv", "op_summary*.csv")
COLUMNS = {  # what is read -> how the columns are called, newest first
    "kernel": ("Type", "OP Type", "Op Type"),
    "us": ("Duration(us)", "Task Duration(us)", "Task Duration"),
    "inputs": ("Input Shapes",),
    "dtypes": ("Input Data Types",),
    "outputs": ("Output Shapes",),
}
OPTIONAL = {
    "wait": ("Wait Time(us)", "Task Wait Time(us)", "Task Wait Time"),
    "state": ("OP State", "Op State"),
    "core": ("Accelerator Core", "Task Type"),
}
_DTYPES = {"dt_bf16": "bfloat16", "bf16": "bfloat16", "float": "float32", "float16": "float16"}
_NOT_KERNELS = ("COMMUNICATION", "HCCL", "N/A", "")  # no core of the chip, or a collective


@dataclass(frozen=True)
class Sample:
    """One task of a profile."""

    kernel: str
    inputs: str
    dtypes: str
    outputs: str
    us: float
    wait: float | None
    state: str
    file: str


def find(path: str | Path) -> list[Path]:
    """The file itself, or every profile below a folder; PortError without one."""
    where = Path(path)
    found = [where] if where.is_file() else sorted(f for p in PATTERNS for f in where.rglob(p))
    if not found:
        raise PortError(
            f"{where}: no {' and no '.join(PATTERNS)} here; give a profiler's folder or one of its CSV files"
        )
    return found


def read(path: str | Path) -> list[Sample]:
    """Every kernel of the profiles at `path`; collectives and tasks without a time are left out."""
    samples = [s for file in find(path) for s in _read_file(file)]
    if not samples:
        raise PortError(f"{path}: no kernel with a time is in these profiles")
    return samples


def _read_file(file: Path) -> Iterator[Sample]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines)
            names = _columns(file, table.fieldnames or ())
            for number, row in enumerate(table, 2):
                get = {key: (row.get(name) or "").strip() for key, name in names.items()}
                if get.get("core", "?") in _NOT_KERNELS or get["us"] in ("", "N/A"):
                    continue
                yield Sample(
                    get["kernel"],
                    shapes(get["inputs"]),
                    dtypes(get["dtypes"]),
                    shapes(get["outputs"]),
                    _number(get["us"], file, number),
                    _number(get["wait"], file, number) if get.get("wait", "N/A") != "N/A" else None,
                    get.get("state", ""),
                    file.name,
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PortError(f"{file}: not readable as CSV: {error}") from error


def _columns(file: Path, heads: Sequence[str]) -> dict[str, str]:
    heads = [h.strip() for h in heads]
    found = {
        key: next(name for name in names if name in heads)
        for key, names in (COLUMNS | OPTIONAL).items()
        if any(name in heads for name in names)
    }
    if missing := [names[0] for key, names in COLUMNS.items() if key not in found]:
        raise PortError(
            f"{file}: column {', '.join(missing)} is missing; profile with shapes (record_shapes=True), "
            "and give kernel_details.csv or op_summary_*.csv"
        )
    return found


def _number(text: str, file: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise PortError(f"{file}, line {line}: {text!r} is not a time in µs")
    return value


def shapes(text: str) -> str:
    """`"8,7168;512,7168"` as `8x7168;512x7168`; an input without dimensions is `-`."""
    parts = text.replace('"', "").split(";")
    return ";".join("x".join(x.strip() for x in p.split(",") if x.strip()) or "-" for p in parts)


def dtypes(text: str) -> str:
    parts = [p.strip().lower() for p in text.replace('"', "").split(";")]
    return ";".join(_DTYPES.get(p, p) for p in parts)

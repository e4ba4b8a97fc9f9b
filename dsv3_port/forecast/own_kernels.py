"""Kernel times of your own card, merged per operator and shape, beside the published points, and
the fits made anew from them. forecast/profile_csv.py reads what a profiler wrote.
"""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import PortError
from . import kernel_tables
from .kernel_fit import FAMILIES, GROUPED, MATMUL, Fit, members
from .kernel_model import KernelModel
from .kernel_work import work
from .kernels import CARD, Kernel, kernels, parse_shape
from .profile_csv import Sample

# columns of data/npu-kernels/kernels.csv that a merged profile has -> the field that they hold
OUT = {
    "device": "device",
    "device_basis": "basis",
    "kernel": "kernel",
    "inputs_shape": "inputs",
    "inputs_dtype": "dtypes",
    "outputs_shape": "outputs",
    "note": "note",
    "op_state": "state",
    "n": "n",
    "median_us": "median",
    "min_us": "low",
    "max_us": "high",
    "mb": "mb",
    "gflop": "gflop",
    "flag": "flag",
    "source_file": "files",
}


def merge(samples: Sequence[Sample], device: str = "own card") -> tuple[Kernel, ...]:
    """Equal calls as one point with median, smallest and largest; ids o1, o2, … in order of time."""
    groups: dict[tuple[str, str, str, str], list[Sample]] = defaultdict(list)
    for s in samples:
        groups[s.kernel, s.inputs, s.dtypes, s.outputs].append(s)
    ordered = sorted(groups.items(), key=lambda g: -sum(s.us for s in g[1]))
    return tuple(_point(f"o{i}", device, *item) for i, item in enumerate(ordered, 1))


def _point(
    name: str, device: str, key: tuple[str, str, str, str], found: Sequence[Sample]
) -> Kernel:
    kernel, inputs, types, outputs = key
    times = [s.us for s in found]
    ins, outs = ([parse_shape(x) for x in s.split(";")] for s in (inputs, outputs))
    mb, gflop = work(kernel, ins, types.split(";"), outs)
    spread = len(times) >= 5 and max(times) > 3 * max(min(times), 1e-9)
    return Kernel(
        id=name,
        device=device,
        basis="the profile",
        kernel=kernel,
        inputs=inputs,
        dtypes=types,
        outputs=outputs,
        note="",
        state="/".join(sorted({s.state for s in found if s.state})),
        n=len(times),
        median=statistics.median(times),
        low=min(times),
        high=max(times),
        mb=round(mb, 4),
        gflop=round(gflop, 4),
        flag="spread over 3x" if spread else "",
        model="",
        files=";".join(sorted({s.file for s in found})),
    )


def waits(samples: Sequence[Sample]) -> list[dict[str, object]]:
    """How long kernels waited, by what the profile calls their state."""
    by: dict[str, list[float]] = defaultdict(list)
    for s in samples:
        if s.wait is not None:
            by[s.state or "not told"].append(s.wait)
    rows = []
    for state, found in sorted(by.items()):
        t = sorted(found)
        at = {q: round(t[min(len(t) - 1, int(q * len(t)))], 2) for q in (0.1, 0.5, 0.9)}
        rows.append(
            {
                "state": state,
                "n": len(t),
                "wait µs, p10": at[0.1],
                "median": at[0.5],
                "p90": at[0.9],
            }
        )
    return rows


def beside(own: Sequence[Kernel], device: str = CARD) -> list[dict[str, object]]:
    """Your card against the published one: points that both have, the longest in sum first."""
    known: dict[tuple[str, str, str], Kernel] = {}
    for k in kernels():
        key = (k.kernel, k.inputs, k.dtype)
        if k.device == device and (key not in known or known[key].n < k.n):
            known[key] = k
    rows = []
    for k in own:
        if other := known.get((k.kernel, k.inputs, k.dtype)):
            rows.append(
                {
                    "kernel": k.kernel,
                    "shapes": k.inputs[:40],
                    "n": k.n,
                    "own µs": f"{k.median:.2f} ({k.low:.2f}–{k.high:.2f})",
                    f"{device} µs": f"{other.median:.2f} ({other.low:.2f}–{other.high:.2f}) [{other.id}]",
                    "own over published": f"{k.median / other.median:.2f}",
                }
            )
    return rows


def refit(own: Sequence[Kernel], least: int = 4) -> dict[str, Fit]:
    """Families fitted to your points; those with fewer than `least` keep the published fit."""
    device = own[0].device if own else ""
    found = {}
    for name, family in FAMILIES.items():
        points = tuple(members(own, family, device))
        found[name] = Fit(family, points) if len(points) >= least else kernel_tables.fits()[name]
    return found


def fit_rows(fits: dict[str, Fit]) -> list[dict[str, object]]:
    """Coefficients of your card beside the published ones."""
    rows = []
    for name, fit in fits.items():
        base, errors = kernel_tables.fits()[name], fit.errors
        if fit is base:
            continue
        rate = {f: 1e3 / (c.get("weights") or c.get("bytes") or float("inf"))
                for f, c in (("own", fit.coefficients), ("base", base.coefficients))}  # fmt: skip
        rows.append(
            {
                "operator": name,
                "points": len(fit.points),
                "start µs": f"{fit.coefficients['start']:.1f} ({base.coefficients['start']:.1f})",
                "GB/s": f"{rate['own']:.0f} ({rate['base']:.0f})",
                "left out: half within": f"{abs(errors[len(errors) // 2]):.0%}" if errors else "–",
            }
        )
    return rows


def model(own: Sequence[Kernel]) -> KernelModel:
    """For forecast/compose.py: your card's points and fits, published ones where yours are few."""
    fits = refit(own)
    if all(fits[f] is kernel_tables.fits()[f] for f in (MATMUL, GROUPED)):
        raise PortError(
            f"own kernels: {len(own)} points are too few; at least 4 matrix products of different sizes are needed"
        )
    return KernelModel(own, fits, own[0].device)


def write(own: Sequence[Kernel], path: str | Path) -> Path:
    """The merged points in the columns of data/npu-kernels/kernels.csv."""
    file = Path(path)
    try:
        with file.open("w", encoding="utf-8", newline="") as lines:
            table = csv.writer(lines, lineterminator="\n")
            table.writerow(OUT)
            table.writerows([getattr(k, name) for name in OUT.values()] for k in own)
    except OSError as error:
        raise PortError(f"{file}: cannot be written: {error.strerror or error}") from error
    return file


def load(path: str | Path) -> tuple[Kernel, ...]:
    """What `write` wrote; PortError for another file."""
    file = Path(path)
    numbers = {f.name: int if f.name == "n" else float for f in fields(Kernel) if f.type != "str"}
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            table = csv.DictReader(lines)
            if tuple(table.fieldnames or ()) != tuple(OUT):
                raise PortError(
                    f"{file}: not a file that `dsv3-port npu-kernels import --out` wrote"
                )
            rows = [{OUT[c]: text for c, text in row.items()} for row in table]
        points = []
        for i, row in enumerate(rows, 1):
            values: dict[str, Any] = {n: numbers.get(n, str)(text) for n, text in row.items()}
            points.append(Kernel(id=f"o{i}", model="", **values))
        return tuple(points)
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise PortError(f"{file}: not readable as merged kernels: {error}") from error

"""Measurements for people: durations, the line that says where they come from, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import PortError
from ..markdown import cell
from ..messages import tr
from .paired import busy_reason, floor_of

if TYPE_CHECKING:
    from .records import Record, Results


def seconds_text(seconds: float) -> str:
    """A duration with three significant digits and a fitting unit."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale or unit == "µs":
            value = seconds / scale
            return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"
    raise AssertionError


def stamp(records: Sequence[Record]) -> str:
    """One line that says where numbers come from: device, dtype, threads, versions, date."""

    def each(values: list[str]) -> str:
        return " / ".join(dict.fromkeys(v for v in values if v))

    devices = each([f"{r.device_name} ({r.tier})" for r in records])
    sizes = each([r.profile for r in records])
    count = tr("{n} threads")
    threads = each([count.format(n=r.threads) if r.threads else "" for r in records])
    versions = each(
        [f"torch {r.versions['torch']}" if "torch" in r.versions else "" for r in records]
    )
    parts = (
        devices,
        sizes,
        each([r.dtype for r in records]),
        threads,
        versions,
        each([r.date[:10] for r in records]),
    )
    return cell(" · ".join(p for p in parts if p))


def results_table(results: Results, baseline: str | None = None) -> str:
    """Markdown: median, spread, first call, and the factor against `baseline` (default: the
    run's first record).

    Times of the host stand-in are not shown.
    """
    records = results.records
    if any(r.tier == "host-npu" for r in records):
        return tr(
            "These records come from the host stand-in: its results are exact, its timings are never shown."
        )
    rows = [
        "| variant | phase | mode | median | min – max | first call | faster than first |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    sizes = [
        (f, unit)
        for f, unit in (
            ("batch", "batch {}"),
            ("context", "{} cached"),
            ("tokens", "{} tokens"),
        )
        if any(
            len({getattr(r, f) for r in records if r.phase == p}) > 1
            for p in {r.phase for r in records}
        )
    ]
    for r in records:
        phase = ", ".join(
            [
                r.phase or "–",
                *(unit.format(getattr(r, f)) for f, unit in sizes if getattr(r, f)),
            ]
        )
        base = baseline or next(o.name for o in records if (o.run, o.phase) == (r.run, r.phase))
        try:
            factor = (
                "busy"
                if r.busy
                else (
                    str(results.select(run=r.run).ratio(base, r.name, r.phase))
                    if base != r.name
                    else "–"
                )
            )
        except PortError:
            factor = "–"
        first = seconds_text(r.first_call_seconds) if r.first_call_seconds is not None else "–"
        rows.append(
            f"| {cell(r.name)} | {cell(phase)} | {cell(r.mode)} | {seconds_text(r.median)} | "
            f"{seconds_text(r.min)} – {seconds_text(r.max)} | {first} | {factor} |"
        )
    notes = "" if not records else "\n\n" + stamp(records)
    if any(r.again for r in records) and not results.busy:
        floor = tr("noise floor {floor:.0%}: the first variant, timed twice")
        notes += f" · {floor.format(floor=floor_of(records))}"
    if results.busy:
        busy = tr("**The machine was busy** ({why}): no factor is given, measure again when quiet.")
        notes += f"\n\n{busy.format(why=busy_reason(records))}"
    return "\n".join(rows) + notes

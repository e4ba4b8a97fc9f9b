"""Where the time of one call goes, drawn."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..bench.machine import BUSY_SHARE, device_info
from ..errors import PortError
from ..messages import told, tr
from .colours import BLUE, CYCLE, GREY, SMALL
from .shapes import name_rows
from .style import LabFigure, figure, finish, styled


@styled
def where_time_goes(
    times: Mapping[str, Mapping[str, float]], top: int = 8, device: str | torch.device = "cpu"
) -> LabFigure:
    """Operators with the most time in any of the calls (from top_operators), side by side, the rest
    as one bar."""
    if not times or not all(times.values()):
        raise PortError("where_time_goes: no times given")
    info = device_info(device)
    if info["tier"] == "host-npu":
        raise PortError(
            "the host stand-in for CANN says nothing about an NPU's speed: its times are never drawn"
        )
    names = list(dict.fromkeys(op for parts in times.values() for op in parts))
    names.sort(key=lambda op: -max(parts.get(op, 0.0) for parts in times.values()))
    shown = names[:top]
    rest = tr("{n} others").format(n=len(names) - len(shown))
    rows = [*shown, rest] if len(names) > len(shown) else shown
    fig, (ax,) = figure(size=(9.5, 1.4 + (0.14 + 0.18 * len(times)) * len(rows)))
    height = 0.84 / len(times)
    said = []
    for k, (name, parts) in enumerate(times.items()):
        values = [1e3 * parts.get(op, 0.0) for op in shown]
        if len(rows) > len(shown):
            values.append(1e3 * sum(t for op, t in parts.items() if op not in shown))
        total = 1e3 * sum(parts.values())
        places = [y + (k - (len(times) - 1) / 2) * height for y in range(len(rows))]
        colour = (GREY, BLUE)[k] if len(times) == 2 else CYCLE[k % 8]
        whole = tr("{name}: {total:.2f} ms in all").format(name=told(name), total=total)
        ax.barh(places, values, height, color=colour, label=whole)
        for y, value in zip(places, values, strict=True):
            text = f" {value:.2f}" if value >= 0.005 else " –"
            ax.text(value, y, text, va="center", fontsize=SMALL - 1)
        largest = max(range(len(shown)), key=values.__getitem__)
        row = tr("{name}, {total:.2f} ms, most in {op} {most:.2f} ms")
        said.append(
            row.format(name=told(name), total=total, op=shown[largest], most=values[largest])
        )
    name_rows(ax, rows, 0.6, 0.4, grid=True)
    ax.set_xlabel(tr("time of its own in one call, ms (with the profiler's cost)"))
    ax.margins(x=0.12)
    ax.legend(loc="lower right")
    where = f"{info['device_name']} ({info['tier']}) · torch {info['versions']['torch']} · {info['date'][:10]}"
    if max(getattr(parts, "busy_share", 0.0) for parts in times.values()) > BUSY_SHARE:
        where += " · " + tr("MACHINE WAS BUSY, times are not to be trusted")
    return finish(
        fig,
        tr("Bars of time by operator: {said}.").format(said=tr("; ").join(said)),
        tr("torch.profiler, medians · {where}").format(where=where),
    )

"""What the recorded cost against work looks like: a curve for each case of part scaling, and memory
over ranks."""

from __future__ import annotations

from collections.abc import Sequence

from ..bench.cases import Case
from ..bench.speed_tables import curve
from ..errors import PortError
from ..forecast.planner import GIB, Forecast
from . import measured as plots
from .measured import fit_exponent
from .style import CYCLE, LIGHT, MARKERS, LabFigure, figure, finish, styled


def cost_of(case: Case) -> LabFigure:
    """Time over what the case varies, with the exponent of each variant."""
    x, results = curve(case)
    return plots.cost_curve(results, x)


@styled
def memory_curve(rows: Sequence[Forecast]) -> LabFigure:
    """Forecast GiB on each rank over the number of ranks (planner.forecast, one dtype): experts,
    attention, the rest and the KV cache, each with its exponent. -1 is a perfect cut, 0 a copy on
    every rank.
    """
    cut = sorted((f for f in rows if f.weights_bytes), key=lambda f: f.world_size)
    if len({f.dtype for f in cut}) != 1 or len({f.world_size for f in cut}) < 2:
        raise PortError(
            "memory_curve needs forecasts of one dtype for two numbers of ranks at least"
        )
    xs = [f.world_size for f in cut]
    lines = {
        "all": [f.total_bytes for f in cut],
        "routed experts": [f.weights_bytes.get("experts", 0) for f in cut],
        "attention": [f.weights_bytes.get("attention", 0) for f in cut],
        "other weights": [
            f.weights_total
            - f.weights_bytes.get("experts", 0)
            - f.weights_bytes.get("attention", 0)
            for f in cut
        ],
        "KV cache": [f.total_bytes - f.weights_total for f in cut],
    }
    fig, (ax,) = figure(size=(9.0, 4.6))
    said = []
    for k, (name, sizes) in enumerate(lines.items()):
        if min(sizes) <= 0:
            continue
        label = f"{name}  (∝ ranks^{fit_exponent(xs, sizes):.2f})"
        ax.plot(
            xs,
            [s / GIB for s in sizes],
            marker=MARKERS[k % 8],
            color=CYCLE[k % 8],
            lw=3 if k == 0 else 2,
            ms=7,
            label=label,
        )
        said.append(
            f"{label} from {sizes[0] / GIB:.3g} GiB on {xs[0]} to {sizes[-1] / GIB:.3g} on {xs[-1]}"
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(xs, [str(x) for x in xs])
    ax.minorticks_off()
    ax.set_xlabel("ranks")
    ax.set_ylabel("GiB on each rank (forecast)")
    ax.grid(color=LIGHT, lw=0.8)
    fig.legend(loc="outside upper center", ncols=3)
    return finish(
        fig,
        "Line chart of forecast memory over ranks: " + "; ".join(said) + ".",
        f"forecast from shapes, {cut[0].dtype}; nothing was measured",
    )

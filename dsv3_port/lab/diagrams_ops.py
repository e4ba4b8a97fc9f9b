"""The picture of operator counts: what the host must launch, by kind. Counts, no timings: true on every device."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.ticker import MaxNLocator

from ..errors import PortError
from .style import CYCLE, NORMAL, SMALL, LabFigure, figure, finish, ink_on, styled, title_of

_KINDS = {  # first match decides
    "NPU operator": ("npu_", "scatter_update"),
    "matrix product": ("aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm", "aten._grouped_mm", "dsv3."),
    "sort, gather, scatter": ("aten.sort", "aten.topk", "aten.gather", "aten.scatter", "aten.index", "aten.embedding",
                              "aten.histc", "aten.bincount", "aten.cumsum", "aten._unsafe_index"),
    "copy, concatenate, cast": ("aten.cat", "aten.clone", "aten.copy", "aten._to_copy", "aten.stack", "aten.fill",
                                "aten.zeros", "aten.ones", "aten.arange", "aten.full", "aten.scalar_tensor"),
    "reduction, softmax": ("aten.mean", "aten.sum", "aten._softmax", "aten.amax", "aten.max", "aten.any",
                           "aten._scaled_dot_product"),
}


@styled
def op_census(counts_by_variant: Mapping[str, Mapping[str, int]]) -> LabFigure:
    """Operators launched by each variant (from measure.count_ops), stacked by kind; shorter means less host work."""
    if not counts_by_variant:
        raise PortError("op_census: no counts given")
    kinds = [*_KINDS, "elementwise"]
    grouped = {name: dict.fromkeys(kinds, 0) for name in counts_by_variant}
    for name, counts in counts_by_variant.items():
        for op, count in counts.items():
            kind = next((k for k, starts in _KINDS.items() if op.startswith(starts)), "elementwise")
            grouped[name][kind] += count
    fig, (ax,) = figure(size=(9.5, 1.7 + 0.5 * len(grouped)))
    totals = {name: sum(parts.values()) for name, parts in grouped.items()}
    widest = max(max(totals.values()), 1)
    for y, (name, parts) in enumerate(grouped.items()):
        left = 0
        for k, kind in enumerate(kinds):
            ax.barh(y, parts[kind], 0.72, left=left, color=CYCLE[k], edgecolor="white", lw=0.8,
                    label=kind if y == 0 else None)
            if parts[kind] > 0.045 * widest:
                ax.text(left + parts[kind] / 2, y, str(parts[kind]), ha="center", va="center", fontsize=SMALL,
                        color=ink_on(CYCLE[k]))
            left += parts[kind]
        ax.text(left + 0.01 * widest, y, str(totals[name]), va="center", fontsize=NORMAL, fontweight="bold")
    ax.set_yticks(range(len(grouped)), [title_of(n) for n in grouped])
    ax.set_ylim(len(grouped) - 0.45, -0.55)
    ax.set_xlim(0, widest * 1.08)
    ax.set_xlabel("operators launched by one call (views not counted)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(axis="y", length=0)
    fig.legend(loc="outside upper center", ncols=3)
    return finish(fig, "Stacked bars of operators launched: "
                  + "; ".join(f"{title_of(n)} {t}" for n, t in totals.items()) + ".")

"""The picture of operator counts: what the host must launch, by kind. Counts, no timings: true on
every device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.ticker import MaxNLocator

from ..errors import PortError
from ..messages import N_, told, tr
from ..steps import title_of
from .colours import CYCLE, NORMAL
from .shapes import name_rows, stack
from .style import LabFigure, figure, finish, key, on_phone, two_widths, wrapped

ELEMENTWISE = N_("elementwise")
_KINDS = {  # first match decides
    N_("NPU operator"): "npu_ scatter_update",
    N_("matrix product"): "aten.mm aten.bmm aten.addmm aten.baddbmm aten._grouped_mm dsv3.",
    N_(
        "sort, gather, scatter"
    ): "aten.sort aten.topk aten.gather aten.scatter aten.index aten.embedding aten.histc "
    "aten.bincount aten.cumsum aten._unsafe_index",
    N_(
        "copy, concatenate, cast"
    ): "aten.cat aten.clone aten.copy aten._to_copy aten.stack aten.fill aten.zeros aten.ones "
    "aten.arange aten.full aten.scalar_tensor aten.constant_pad_nd",
    N_(
        "reduction, softmax"
    ): "aten.mean aten.sum aten._softmax aten.amax aten.max aten.any aten._scaled_dot_product",
}
_GE_KINDS = {  # operator types of a GE graph
    "NPU operator": "RmsNorm AddRmsNorm AddRmsNormCast RotaryMul InterleaveRope SwiGlu GroupedMatmul "
    "MoeInitRouting MoeComputeExpertTokens MoeFinalizeRoutingV2 MoeGatingTopK Scatter "
    "FusedInferAttentionScore",
    "matrix product": "MatMul BatchMatMul",
    "sort, gather, scatter": "TopKV2 Sort GatherV2 GatherElements ScatterElements Cumsum",
    N_(
        "copy, transpose, cast"
    ): "Cast Transpose ConcatV2 SplitV Identity Fill Range BroadcastTo StridedSliceV2 ZerosLike "
    "OnesLike TensorMove",
    "reduction, softmax": "ReduceSum ReduceMean SoftmaxV2 ReduceMax",
}


def kind_of(op: str) -> str:
    """The kind that `op_census` counts an operator as."""
    return _kind(op, _KINDS, str.startswith)


def _kind(
    op: str, table: Mapping[str, str], belongs: Callable[[str, tuple[str, ...]], bool]
) -> str:
    found = (kind for kind, names in table.items() if belongs(op, tuple(names.split())))
    return next(found, ELEMENTWISE)


@two_widths
def op_census(counts_by_variant: Mapping[str, Mapping[str, int]]) -> LabFigure:
    """Operators launched by each variant (from measure.count_ops), stacked by kind; shorter means
    less host work."""
    return _census(
        counts_by_variant,
        _KINDS,
        str.startswith,
        tr("operators launched by one call (views not counted)"),
    )


@two_widths
def ge_census(
    counts_by_variant: Mapping[str, Mapping[str, int]], what: str = N_("decode step")
) -> LabFigure:
    """Operators of converted GE graphs (npu_graphs.kernels_of), stacked by kind: what the graph
    engine gets."""
    label = tr("operators in the GE graph of one {what} (no constants, no reshapes)")
    return _census(
        counts_by_variant,
        _GE_KINDS,
        lambda op, names: op in names,
        label.format(what=told(what)),
    )


def _census(
    counts_by_variant: Mapping[str, Mapping[str, int]],
    table: Mapping[str, str],
    belongs: Callable[[str, tuple[str, ...]], bool],
    label: str,
) -> LabFigure:
    if not counts_by_variant:
        raise PortError("op_census: no counts given")
    kinds = [*table, ELEMENTWISE]
    grouped = {name: dict.fromkeys(kinds, 0) for name in counts_by_variant}
    for name, counts in counts_by_variant.items():
        for op, count in counts.items():
            grouped[name][_kind(op, table, belongs)] += count
    fig, (ax,) = figure(size=(9.5, 1.7 + 0.5 * len(grouped)))
    totals = {name: sum(parts.values()) for name, parts in grouped.items()}
    widest = max(max(totals.values()), 1)
    for y, (name, parts) in enumerate(grouped.items()):
        bar = [
            (n, CYCLE[k], str(n) if n > 0.045 * widest else "")
            for k, n in enumerate(parts.values())
        ]
        end = stack(ax, y, bar, labels=[told(k) for k in kinds] if y == 0 else ())
        text = str(totals[name])
        ax.text(end + 0.01 * widest, y, text, va="center", fontsize=NORMAL, fontweight="bold")
    name_rows(ax, [title_of(n) for n in grouped])
    ax.set_xlim(0, widest * 1.08)
    ax.set_xlabel(wrapped(fig, label) if on_phone() else label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    key(fig, 3)
    said = "; ".join(f"{title_of(n)} {t}" for n, t in totals.items())
    return finish(fig, tr("Stacked bars of {what}: {said}.").format(what=label, said=said))

"""What one measured forward on an NPU is made of (data/npu-kernels/forward-prefill-3585.csv)."""

from __future__ import annotations

from collections import defaultdict

from ..forecast.kernels import CARD, forward, label
from ..forecast.traced import Traced
from ..messages import N_, sentences, told, tr
from .colours import PURPLE, SMALL, VERMILLION
from .npu_step import supported
from .shapes import PHONE_BAR, lines_above, name_rows
from .style import LabFigure, figure, finish, on_phone, two_widths, wrapped

_ALLOTTED = N_("SwiGlu, allotted rows")
_EMPTY = "458880x4096"  # SwiGLU over rows that were allotted and hold nothing


def shares() -> list[tuple[str, int, float, tuple[str, ...]]]:
    """(kernel, launches, ms, ids of its rows), longest first; SwiGLU over allotted rows apart."""
    sums: dict[str, list[float]] = defaultdict(list)
    rows: dict[str, list[str]] = defaultdict(list)
    for launch in forward():
        if launch.us is None:
            continue
        empty = launch.kernel == "SwiGlu" and launch.inputs == _EMPTY
        name = _ALLOTTED if empty else launch.kernel
        sums[name].append(launch.us)
        rows[name].append(launch.id)
    found = [(name, len(us), sum(us) / 1e3, tuple(rows[name])) for name, us in sums.items()]
    return sorted(found, key=lambda item: -item[2])


@two_widths
def npu_forward(most: int = 12) -> LabFigure:
    """Bars of the forward's kernels, the longest `most` of them by name."""
    found = shares()
    rest = found[most:]
    others = tuple(r for *_, rows in rest for r in rows)
    shown = [
        *found[:most],
        (N_("all others"), sum(n for _, n, _, _ in rest), sum(ms for _, _, ms, _ in rest), others),
    ]
    whole = sum(ms for _, _, ms, _ in found)
    fig, (ax,) = figure(size=(11.0, 2.2 + (0.46 if on_phone() else 0.34) * len(shown)))
    derived, said = [], []
    thick = PHONE_BAR if on_phone() else 0.66
    row = tr("{ms:.1f} ms [~{name}], {share:.0%}, {n} launches")
    for y, (kernel, n, ms, rows) in enumerate(shown):
        name = told(kernel)
        colour = VERMILLION if kernel == _ALLOTTED else PURPLE
        ax.barh(y, ms, thick, fc="none", ec=colour, hatch="//")
        derived.append(Traced(ms, "ms", name, rows))
        text = row.format(ms=ms, name=name, share=ms / whole, n=n)
        if not on_phone():
            ax.text(ms + 3, y, text, va="center", fontsize=SMALL)
        said.append(text)
    name_rows(ax, ["" if on_phone() else told(name) for name, *_ in shown], 0.6, 0.4, grid=True)
    if on_phone():  # a kernel's name is in what is said of it
        lines_above(ax, [wrapped(fig, t, 0.93 * fig.bbox.width, fontsize=SMALL) for t in said])
    ax.set_xlim(0, shown[0][2] * (1.05 if on_phone() else 1.95))
    ax.set_xlabel(tr("ms of device time in the forward"))
    caption = tr(
        "One prefill forward of DeepSeek-V3 in bfloat16, 3,585 tokens, one rank of 128. [~name] is the sum of "
        "that kernel's rows. 458,880 rows are allotted to experts and about 3,585 hold tokens: SwiGLU runs over "
        "all. Random numbers, Sort and Index draw experts evenly for the measurement: no cost of a service."
    )
    head = tr("A forward on Ascend {card}, kernel by kernel: measured by others")
    title = head.format(card=CARD)
    alt = tr("{title}: {said}.").format(title=title, said=tr("; ").join(said))
    return supported(
        finish(fig, alt, sentences(caption, label(CARD)), title=title),
        derived,
        [r for *_, rows in shown for r in rows],
    )

"""The ladder on an NPU, put together from kernels that others measured (forecast/compose.py)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ..config import DeepseekV3Config
from ..forecast.compose import SENTENCE, Composed, ladder
from ..forecast.kernels import CARD, label, published
from ..forecast.planner import forecast
from ..forecast.traced import Traced
from ..messages import N_, sentences, told, tr, trn
from ..steps import step, title_of
from .colours import BLUE, GREEN, GREY, INK, LARGE, ORANGE, PURPLE, SKY, SMALL
from .npu_step import supported
from .shapes import name_rows
from .style import LabFigure, figure, finish, on_phone, two_widths, wrapped

_PARTS = {
    "measured": (PURPLE, "//", N_("kernels measured at this size")),
    "fitted": (BLUE, "//", N_("kernels by their operator's fit")),
    "by size": (SKY, "//", N_("other vector kernels, by size alone")),
    "bounded": (ORANGE, "..", N_("not covered: middle of a range")),
}
_IDLE = (GREY, "xx")
# published whole-model figures by the row that they are drawn in
_PUBLISHED = {
    N_("V3.1 eager, published"): ("p2",),
    N_("V3.1 graph, published"): ("p3", "p4"),
    N_("int8 service, published"): ("p5", "p6", "p7"),
}


@two_widths
def npu_ladder(
    config: DeepseekV3Config,
    world_sizes: Sequence[int] = (8, 32),
    batches: Sequence[int] = (1, 8, 32),
    context: int = 4096,
) -> LabFigure:
    """Decode step by step, a panel for each number of ranks and batch, bfloat16 on 910B4-1; below
    each, published figures of whole models on the same axis. More than two batches stand below each
    other, ranks beside each other: on a page three panels in a row are too small to read."""
    panels, columns = [(w, b) for w in world_sizes for b in batches], len(batches)
    if columns > 2:
        panels, columns = [(w, b) for b in batches for w in world_sizes], len(world_sizes)
    fig, top, axes = _panels(len(panels) // columns, columns)
    said, derived, used = [], [], set()
    for k, (ax, (world, batch)) in enumerate(zip(axes, panels, strict=True)):
        steps = ladder(config, world_size=world, batch=batch, context=context)
        said += _panel(fig, ax, steps, named=k % columns == 0 or on_phone())
        derived += [t for s in steps for t in traced(s)]
        used |= {r for s in steps for r in s.rows}
    handles = [Patch(fc="none", ec=c, hatch=h, label=told(t)) for c, h, t in _PARTS.values()]
    handles.append(Patch(fc="none", ec=_IDLE[0], hatch=_IDLE[1], label=tr("device waits")))
    for ax in top:
        ax.axis("off")
    keys = top[0].legend(handles=handles, loc="center left", ncols=len(top) + 1 - on_phone())
    keys.set_in_layout(False)
    what = told(SENTENCE)
    caption = tr(
        "Whiskers: errors of the fits, at least ± 30 %, p10 to p90 of waits, bytes on cited links; the latency "
        "of collectives is in no source and not in it. In eager mode the host launches an operator every 41 µs "
        "[g15], and the device waits where its queue is empty. [~ranks/batch/step] is a composition of its rows."
    )
    title = tr(
        "DeepSeek-V3 decode on Ascend {card}, {context} cached, composed from measured kernels"
    )
    alt = tr("NPU ladder, ms a decode step: {said}")
    return supported(
        finish(
            fig,
            alt.format(said=" ".join(said)),
            sentences(f"{what[0].upper()}{what[1:]}", caption, label(CARD)),
            title=title.format(card=CARD, context=context),
        ),
        derived,
        sorted(used | {p for ids in _PUBLISHED.values() for p in ids}),
    )


def _panels(rows: int, columns: int) -> tuple[LabFigure, list[Axes], list[Axes]]:
    """The figure, what its legend stands in, and its panels."""
    if on_phone():  # all below each other: heights in inches, and what stands around them
        ratios = [1.4, *([6.4] * rows * columns)]
        high = sum(ratios) + 0.8 * rows * columns + 4.4
        size = (0.0, (high - 0.8) / 1.4)  # `figure` makes it a phone's
    else:
        ratios = [0.45, *([5.4] * rows)]
        size = (4.2 + 4.6 * columns, 2.4 + 5.4 * rows)
    across = 1 if on_phone() else columns
    fig, every = figure(len(ratios), across, size, gridspec_kw={"height_ratios": ratios})
    return fig, every[:across], every[across:]


def tag(s: Composed) -> str:
    return f"{s.work.world_size}/{s.work.batch}/{step(s.rung).number}"


def traced(s: Composed) -> list[Traced]:
    """The numbers that a composed step is drawn with."""
    return [Traced(v, "ms", tag(s), s.rows) for v in (s.ms, s.low, s.high)]


def _panel(fig: LabFigure, ax: Axes, steps: Sequence[Composed], named: bool) -> list[str]:
    said = []
    most, thick = max(s.high for s in steps), 0.3 if on_phone() else 0.66
    for y, s in enumerate(steps):
        left = 0.0
        for how, (colour, hatch, _) in _PARTS.items():
            ax.barh(y, s.kernels[how], thick, left=left, fc="none", ec=colour, hatch=hatch)
            left += s.kernels[how]
        ax.barh(y, s.idle, thick, left=left, fc="none", ec=_IDLE[0], hatch=_IDLE[1])
        ax.errorbar(
            s.ms, y, xerr=[[s.ms - s.low], [s.high - s.ms]], fmt="none", ecolor=INK, capsize=3
        )
        text = f"~{s.ms:.0f} ms ({s.low:.0f}–{s.high:.0f}) [~{tag(s)}]"
        ax.text(s.high + most * 0.02, y, text, va="center", fontsize=SMALL)
        row = tr("{step} {text}, {share:.0%} of the kernels covered.")
        said.append(row.format(step=title_of(s.rung), text=text, share=s.covered))
    names = [title_of(s.rung) for s in steps] + _published(ax, len(steps), most)
    name_rows(ax, names if named else [""] * len(names), 0.6, 0.4, grid=True)
    ax.set_xlim(0, most * (2.75 if on_phone() else 1.9))
    ax.set_xlabel(tr("ms a step, composed"))
    w = steps[0].work
    fits = forecast(w.config, (w.world_size,), batch=w.batch, seq_len=w.context)[0]
    room = "" if fits.fits else tr("; does not fit 64 GiB cards")
    size = trn("{n} token", "{n} tokens", w.batch).format(n=w.batch)
    title = tr("TP {world}, {size}{room}").format(world=w.world_size, size=size, room=room)
    ax.set_title(wrapped(fig, title, fontsize=LARGE, fontweight="bold") if on_phone() else title)
    of_all = tr("TP {world}, {n} tokens{room}:")
    return [of_all.format(world=w.world_size, n=w.batch, room=room), *said]


def _published(ax: Axes, first: int, most: float) -> list[str]:
    """Diamonds of published figures, from row `first` on; returns the rows' names."""
    known = {p.id: p for p in published()}
    for y, ids in enumerate(_PUBLISHED.values(), first):
        values = [known[i].value for i in ids]
        ax.plot(values, [y] * len(values), "D", mfc="none", mec=GREEN, ms=7)
        text = " ".join(f"{known[i].value:g} ms [{i}]" for i in ids)
        ax.text(
            max(values) + most * (0.06 if on_phone() else 0.03),
            y,
            text,
            va="center",
            fontsize=SMALL,
            color=INK,
        )
    ax.axhline(first - (0.78 if on_phone() else 0.5), color=GREY, lw=0.8)
    return list(map(told, _PUBLISHED))

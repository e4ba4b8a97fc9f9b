"""The pictures of 14: rows that requests take one after the other, and the memory that stays."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ..count.rows import RowLog
from ..messages import N_, told, tr, trn
from .colours import BLUE, CYCLE, GREY, INK, LIGHT, NORMAL, ORANGE, SKY, SMALL, VERMILLION, ink_on
from .shapes import arrow, box, centred
from .style import LabFigure, figure, finish, key, on_phone, styled, two_widths

# of the drawing: (name, row, decode steps before, steps)
DRAWN = (("A", 0, 0, 8), ("B", 1, 0, 3), ("C", 2, 0, 5), ("D", 1, 3, 5), ("E", 2, 5, 3))
COLUMNS = (N_("token id"), N_("cache slot"), N_("padding"), N_("blocks"))
HAND_OVER = 3  # decode steps before it
FAR = "2^40"  # padding of an idle row: behind every position
# what stands in each buffer, row by row: when B has run its last step, when it has ended, when D is there
MOMENTS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    (N_("step 3 has run"), (("41", "12", "0", "2 5"), ("8", "7", "0", "1 0"), ("23", "20", "0", "3 6"))),
    (N_("B has ended: row 1 is idle"), (("41", "12", "0", "2 5"), ("8", "7", FAR, "0 0"), ("23", "20", "0", "3 6"))),
    (N_("D takes it: before step 4"), (("41", "12", "0", "2 5"), ("16", "5", "0", "1 0"), ("23", "20", "0", "3 6"))),
)  # fmt: skip
COLOUR = dict(zip("ABCDE", (SKY, ORANGE, LIGHT, CYCLE[2], CYCLE[4]), strict=True))
_WIDE, _HIGH, _GAP = 1.35, 0.8, 1.5  # of a cell of the buffers; between two moments


@styled
def hand_over() -> LabFigure:
    """Above three rows and who has them step by step; below what is written into the step's memory when
    one row passes from B to D."""
    fig, (rows, memory) = figure(2, 1, (11.0, 5.6), gridspec_kw={"height_ratios": (1, 1.25)})
    rows.set_title(tr("three rows, five requests: a row that is done takes the next one"))
    for name, row, before, steps in DRAWN:
        box(rows, before, row + 0.1, steps, 0.8, COLOUR[name], name, NORMAL, lw=1.5)
    last = max(before + steps for _, _, before, steps in DRAWN)
    for step in range(last):
        centred(rows, step + 0.5, 3.3, str(step + 1), SMALL, color=GREY)
    again = tr("decode step: the same graph, replayed")
    rows.text(last + 0.3, 3.3, again, va="center", fontsize=SMALL)
    rows.plot([HAND_OVER] * 2, [-0.15, 3.1], color=VERMILLION, lw=2, ls="--")
    for row in range(3):
        rows.text(-0.2, row + 0.5, _row(row), ha="right", va="center", fontsize=NORMAL)
    rows.set_xlim(-1.4, last + 7.5)
    rows.set_ylim(3.6, -0.3)
    memory.set_title(
        tr("the memory that the graph reads: never moved, written between two replays")
    )
    written = _moments(memory)
    for ax in (rows, memory):
        ax.axis("off")
    fig.legend(
        handles=[
            Patch(facecolor=VERMILLION, label=tr("written at the hand-over")),
            Patch(facecolor="white", edgecolor=GREY, label=tr("left as it is")),
        ],
        loc="outside upper center",
        ncols=2,
    )
    holds = tr("{moment}: row 1 holds {cells}")
    said = tr("; ").join(
        holds.format(moment=told(moment), cells=tr(", ").join(cells[1]))
        for moment, cells in MOMENTS
    )
    has = tr("{name} has row {row} in steps {first} to {last}")
    whose = tr("; ").join(
        has.format(name=name, row=row, first=before + 1, last=before + steps)
        for name, row, before, steps in DRAWN
    )
    alt = tr(
        "Above, three rows over {n} decode steps: {whose}. Below, {columns} of the three rows at three "
        "moments: {said}. {written} numbers of row 1 are written in all, none of the other rows."
    )
    columns = tr(", ").join(map(told, COLUMNS))
    return finish(
        fig,
        alt.format(n=last, whose=whose, columns=columns, said=said, written=written),
        tr(
            "Drawn, not measured. Columns are the step's static buffers, the last one the block table; the "
            "cache itself is not drawn."
        ),
    )


def _row(number: int) -> str:
    return tr("row {n}").format(n=number)


def _moments(ax: Axes) -> int:
    """Returns how many cells are written from one moment to the next."""
    span, written = len(COLUMNS) * _WIDE + _GAP, 0
    for k, (moment, cells) in enumerate(MOMENTS):
        left = k * span
        look: dict[str, Any] = {"fontsize": NORMAL, "fontweight": "bold", "color": INK}
        ax.text(left, -1.0, told(moment), va="center", **look)
        for c, column in enumerate(COLUMNS):
            centred(ax, left + (c + 0.5) * _WIDE, -0.35, told(column), SMALL, color=GREY)
        for row, values in enumerate(cells):
            for c, value in enumerate(values):
                new = k > 0 and value != MOMENTS[k - 1][1][row][c]
                written += new
                colour = VERMILLION if new else "white"
                box(ax, left + c * _WIDE, row, _WIDE, _HIGH, colour, value, NORMAL, edgecolor=GREY)
            if k == 0:
                ax.text(-0.25, row + _HIGH / 2, _row(row), ha="right", va="center")
        if k:
            arrow(ax, (left - _GAP + 0.2, 1 + _HIGH / 2), (left - 0.2, 1 + _HIGH / 2), INK)
    ax.set_xlim(-1.4, len(MOMENTS) * span - _GAP + 0.3)
    ax.set_ylim(3.0, -1.4)
    return written


@two_widths
def rows_over_time(static: RowLog, slots: RowLog) -> LabFigure:
    """Who has which row in each decode step, in batches and in slots, and how many tokens a step gives.
    Both of the same requests."""
    fig, (above, below, curves) = figure(
        3, 1, (9.0, 7.6), sharex=True, gridspec_kw={"height_ratios": (1, 1, 0.9)}
    )
    most = max(static.steps, slots.steps)
    batches, by_row = tr("batch after batch"), tr("row by row")
    for ax, log, name in ((above, static, batches), (below, slots, by_row)):
        _who(ax, log)
        steps = tr("{name}: {n} steps,").format(name=name, n=log.steps)
        idle = trn("{n} row for nobody", "{n} rows for nobody", log.for_nobody)
        gap = "\n" if on_phone() else "" if steps.endswith("，") else " "
        ax.set_title(f"{steps}{gap}{idle.format(n=log.for_nobody)}")
    looks = ((static, tr("batches"), VERMILLION, "--"), (slots, by_row, BLUE, "-"))
    for log, name, colour, line in looks:
        edges = [*log.occupancy, 0]
        curves.step(
            range(log.steps + 1), edges, where="post", color=colour, ls=line, lw=2, label=name
        )
    curves.set_title(tr("tokens that a step gives"))
    curves.set_ylim(0, 1.5 * slots.slots)
    curves.set_yticks(range(0, slots.slots + 1))
    curves.set_xlim(0, most)
    curves.set_xlabel(tr("decode step"))
    curves.set_ylabel(tr("tokens"))
    curves.legend(loc="upper right", ncols=2)
    key(
        fig,
        2,
        handles=[
            Patch(facecolor=SKY, label=tr("a request, by its number")),
            Patch(facecolor="white", hatch="//", edgecolor=GREY, label=tr("computed for nobody")),
        ],
    )
    alt = tr(
        "{requests} requests in {slots} rows. In batches: {steps} decode steps, {idle} of their {all} rows "
        "without a request. Row by row: {steps2} steps, {idle2} of {all2} rows. Both give {tokens} tokens "
        "behind the prompts' own."
    )
    note = tr(
        "Counted in this run: {requests} requests, {slots} rows; prompts are prefilled between two steps and "
        "are not drawn."
    )
    sizes = {"requests": len(slots.requests), "slots": slots.slots}
    found = {
        "steps": static.steps,
        "idle": static.for_nobody,
        "all": static.slots * static.steps,
        "steps2": slots.steps,
        "idle2": slots.for_nobody,
        "all2": slots.slots * slots.steps,
        "tokens": sum(n - 1 for n in slots.tokens),
    }
    return finish(fig, alt.format(**sizes, **found), note.format(**sizes))


def _who(ax: Axes, log: RowLog) -> None:
    for row in range(log.slots):
        box(ax, 0, row + 0.1, log.steps, 0.8, "white", edgecolor=GREY, hatch="//", lw=0.6)
    for result in log.results:
        steps = result.ended - result.admitted
        colour = CYCLE[result.number % len(CYCLE)]
        if not steps:  # its only token came from the prefill
            continue
        box(ax, result.admitted, result.row + 0.1, steps, 0.8, colour, lw=1.2)
        if steps >= (5 if on_phone() else 2):
            middle = result.admitted + steps / 2
            centred(ax, middle, result.row + 0.5, str(result.number + 1), color=ink_on(colour))
    ax.set_ylim(log.slots, 0)
    ax.set_yticks([row + 0.5 for row in range(log.slots)], [_row(r) for r in range(log.slots)])
    ax.tick_params(axis="y", length=0)

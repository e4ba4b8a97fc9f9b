"""Pictures of several ranks: what they send, and where a decode step's time goes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ..bench.paired import busy_text
from ..bench.results_table import seconds_text
from ..bench.worlds import WorldTimes
from ..count.traffic import Collective, handed_bytes, sent_bytes
from ..messages import told, tr
from .colours import BLUE, GREY, INK, LIGHT, ORANGE, PAPER, SMALL
from .shapes import name_rows, stack
from .style import LabFigure, caption, figure, finish, key, styled, two_widths, wrap_titles


@styled
def traffic_plot(counted: Mapping[int, Sequence[Collective]], what: str = "") -> LabFigure:
    """World size -> collectives of a decode step: calls left, bytes that a rank hands over and
    sends right."""
    worlds = list(counted)
    fig, (left, right) = figure(1, 2, (10.5, 3.8), width_ratios=[2, 3])
    calls = [len(counted[w]) for w in worlds]
    given = [handed_bytes(counted[w]) / 2**20 for w in worlds]
    sent = [sent_bytes(counted[w], w) / 2**20 for w in worlds]
    at = range(len(worlds))
    left.bar(at, calls, 0.6, color=BLUE)
    for x, n in zip(at, calls, strict=True):
        left.text(x, n, f"{n}", ha="center", va="bottom", fontsize=SMALL)
    left.set_title(tr("collectives in a decode step"))
    left.set_ylim(0, max(calls) * 1.15 + 1)
    for shift, values, colour, name in (
        (-0.2, given, BLUE, tr("handed over by a rank (counted)")),
        (0.2, sent, ORANGE, tr("sent by a rank, ring (from the count)")),
    ):
        right.bar([x + shift for x in at], values, 0.38, color=colour, label=name)
        for x, v in zip(at, values, strict=True):
            right.text(
                x + shift, v, f"{v:.2f}", ha="center", va="bottom", fontsize=SMALL, color=INK
            )
    right.set_title(tr("MiB in a decode step"))
    right.set_ylim(0, max([*given, *sent]) * 1.45 + 1e-6)
    right.legend(loc="upper left")
    for ax in (left, right):
        ax.set_xticks(list(at), [str(w) for w in worlds])
        ax.set_xlabel(tr("ranks W"))
        ax.grid(axis="y", color=LIGHT, lw=0.8)
        ax.tick_params(axis="x", length=0)
    world = tr("{w} ranks: {n} calls, {given:.2f} MiB handed over, {sent:.2f} MiB sent")
    said = "; ".join(
        world.format(w=w, n=n, given=g, sent=s)
        for w, n, g, s in zip(worlds, calls, given, sent, strict=True)
    )
    alt = tr("Bar charts of collectives by world size: {said}.").format(said=said)
    return finish(fig, alt, told(what))


@two_widths
def step_split(times: WorldTimes) -> LabFigure:
    """A decode step of each world size: computing, moving (the collectives back to back), waiting
    for other ranks.

    Medians of rank 0. Waiting is what remains of the time within collectives, and holds the
    scheduler's work too. A busy machine's bars are grey, not split, and say no number.
    """
    records = times.results.records
    busy = busy_text(records)
    of = tr("batch {batch}, {context} tokens cached, rank 0's medians")
    note = caption(records, of.format(batch=records[0].batch, context=records[0].context))
    fig, (ax,) = figure(1, 1, (9.5, 1.9 + 0.62 * len(times.worlds)))
    widest = max(statistics.median(s.steps) for s in times.worlds.values()) * 1e3
    said = []
    for y, (name, found) in enumerate(times.worlds.items()):
        step, inside, alone = (
            statistics.median(v) * 1e3 for v in (found.steps, found.inside, found.alone)
        )
        if busy:
            ax.barh(y, step, 0.7, color=GREY, hatch="..", edgecolor=PAPER)
            said.append(told(name))
            continue
        parts = {
            tr("computing"): max(0.0, step - inside),
            tr("moving"): min(alone, inside),
            tr("waiting"): max(0.0, inside - alone),
        }
        bar = [
            (width, colour, f"{width:.1f}" if width > 0.07 * widest else "")
            for width, colour in zip(parts.values(), (BLUE, ORANGE, GREY), strict=True)
        ]
        left = stack(ax, y, bar, 0.7, list(parts) if y == 0 else ())
        text = seconds_text(step / 1e3)
        share = tr("{share:.0%} in collectives").format(share=found.share)
        text = tr("{time}, {share}").format(time=text, share=share) if inside else text
        ax.text(left + 0.012 * widest, y, text, va="center", fontsize=SMALL)
        split = ", ".join(f"{n} {w:.2f} ms" for n, w in parts.items())
        said.append(f"{told(name)} {text}, {split}")
    name_rows(ax, [told(name) for name in times.worlds], 0.5, 0.5, grid=True)
    ax.set_xlim(0, widest * 1.4)
    ax.set_xlabel(tr("time of a decode step, ms (shorter is better)"))
    ax.set_title(busy)
    wrap_titles(fig, [ax])
    if not busy:
        key(fig, 3)
    alt = tr("Stacked bars of a decode step: {said}.").format(said="; ".join(said))
    return finish(fig, alt, note)

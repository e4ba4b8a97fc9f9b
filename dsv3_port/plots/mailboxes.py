"""The picture that opens 08: one capture and two replays as mailboxes with fixed numbers."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ..errors import PortError
from ..messages import N_, told, tr
from .colours import GREY, INK, LIGHT, NORMAL, ORANGE, PURPLE, SKY, SMALL, VERMILLION
from .shapes import arrow, box, centred
from .style import LabFigure, figure, finish, styled

_WIDE, _HIGH, _STEP, _ROW = 1.7, 0.72, 2.1, 1.45
_BOXES = (N_("token ids"), N_("weights"), N_("cache"), "slot", "logits")
_FIRST = 0x10  # the number of the first mailbox


@styled
def mailboxes(ids: Sequence[int] = (7, 2, 9), filled: int = 5) -> LabFigure:
    """What stands at each address in a captured decode step and in its replays, one for each of `ids`,
    behind `filled` positions of the cache. PortError without a replay or without a filled cache."""
    if len(ids) < 2 or filled < 1:
        raise PortError("mailboxes draws a capture and one replay at least, behind one position")
    fig, (ax,) = figure(1, 1, (11.0, 1.7 + 1.25 * len(ids)))
    for k, name in enumerate(_BOXES):
        centred(ax, k * _STEP + _WIDE / 2, -0.62, told(name), NORMAL, fontweight="bold", color=INK)
        number = tr("no. {address}").format(address=f"{_FIRST * (k + 1):#x}")
        centred(ax, k * _STEP + _WIDE / 2, -0.28, number, SMALL, color=GREY)
    for step, token in enumerate(ids):
        _step(ax, step, token, filled + step)
    _elsewhere(ax, (len(ids) - 1) * _ROW, ids[-1])
    ax.set_xlim(-3.4, len(_BOXES) * _STEP + 0.1)
    ax.set_ylim(len(ids) * _ROW + 0.35, -0.95)
    ax.axis("off")
    key = [
        Patch(facecolor=VERMILLION, label=tr("the host copies in")),
        Patch(facecolor=SKY, label=tr("a recorded operator writes")),
        Patch(facecolor=LIGHT, label=tr("stays")),
        Patch(facecolor=PURPLE, label=tr("written; the host clones it")),
    ]
    fig.legend(handles=key, loc="outside upper center", ncols=4)
    last = filled + len(ids) - 1
    alt = tr(
        "Five mailboxes with fixed numbers over a capture and {n} replays: token ids {ids}, copied in by the "
        "host; weights, which stay; the cache, which holds {first} to {last} rows, and the slot, {first} to "
        "{last}, both written by recorded operators; logits, overwritten by each replay and cloned by the "
        "host. The Python name ids points to another box that no replay opens."
    )
    note = tr(
        "Drawn, not measured. Numbers are addresses: a recording knows them, and no names. Arrows: the "
        "postman's way."
    )
    named = {"n": len(ids) - 1, "ids": ", ".join(map(str, ids))}
    return finish(fig, alt.format(first=filled + 1, last=last + 1, **named), note)


def _step(ax: Axes, step: int, token: int, filled: int) -> None:
    y = step * _ROW
    name = tr("replay {n}").format(n=step) if step else tr("capture")
    ax.text(-0.35, y + _HIGH / 2, name, ha="right", va="center", fontsize=NORMAL, color=INK)
    looks = (
        (VERMILLION, str(token)),
        (LIGHT, tr("as loaded")),
        (SKY, tr("{n} rows").format(n=filled + 1)),
        (SKY, str(filled + 1)),
        (PURPLE, tr("after {token}").format(token=token)),
    )
    for k, (colour, text) in enumerate(looks):
        box(ax, k * _STEP, y, _WIDE, _HIGH, colour, text, NORMAL, lw=1.2)
        if k:
            middle = y + _HIGH / 2
            arrow(ax, ((k - 1) * _STEP + _WIDE, middle), (k * _STEP, middle), GREY, lw=1.0)


def _elsewhere(ax: Axes, y: float, token: int) -> None:
    """The tensor that the name points to now: the copy from there is what the host must do."""
    box(ax, -3.2, y + 0.98, _WIDE, 0.62, "white", edgecolor=ORANGE, linestyle="--", lw=1.5)
    elsewhere = tr("no. {address}").format(address="0x77")
    centred(ax, -3.2 + _WIDE / 2, y + 1.29, f"{token}   {elsewhere}", SMALL, color=INK)
    arrow(ax, (-3.2 + _WIDE, y + 1.29), (0.3, y + _HIGH), ORANGE, linestyle="--")
    text = tr("◂ what Python calls ids is this box now; no replay opens it: the host must copy")
    ax.text(0.55, y + 1.29, text, va="center", fontsize=SMALL, color=INK)

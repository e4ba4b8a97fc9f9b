"""Pictures of the forecast (forecast/roofline.py). Every one says FORECAST in its headline and its
alternative text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..errors import PortError
from ..forecast.checks import Check, assumptions_text
from ..forecast.roofline import CARDS, PARTS, StepForecast
from ..messages import N_, told, tr
from ..steps import title_of
from .colours import BLUE, GREEN, GREY, INK, LIGHT, ORANGE, PURPLE, SMALL, VERMILLION
from .shapes import PHONE_BAR, lines_above, name_rows
from .style import LabFigure, broken, figure, finish, on_phone, panel_key, two_widths, wrapped

_COLOURS = dict(zip(PARTS, (BLUE, ORANGE, PURPLE, GREY), strict=True))
_SAID = (N_("roofline"), N_("kernel starts"), N_("collective operators"), N_("host"))
_NAMES = dict(zip(PARTS, _SAID, strict=True))


def _shape(f: StepForecast) -> str:
    w = f.work
    if f.phase == "prefill":
        return tr("prefill, batch {batch}, {n} tokens").format(batch=w.batch, n=w.tokens)
    return tr("decode, batch {batch}, {n} cached").format(batch=w.batch, n=w.context)


def _milliseconds(value: float, _: object = None) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _log_ticks(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 3) if on_phone() else (1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(_milliseconds))
    ax.grid(axis="x", color=LIGHT, lw=0.8)


@two_widths
def forecast_ladder(forecasts: Sequence[StepForecast]) -> LabFigure:
    """Each rung as a bar from the fast to the slow end of its range; prefill and decode apart, one
    card."""
    cards = {f.card for f in forecasts}
    if len(cards) != 1:
        raise PortError(f"forecast_ladder draws one card, not {', '.join(sorted(cards)) or 'none'}")
    phases = list(dict.fromkeys(f.phase for f in forecasts))
    most = max(sum(f.phase == p for f in forecasts) for p in phases)
    fig, axes = figure(1, len(phases), (4.6 + 3.6 * len(phases), 2.6 + 0.42 * most))
    said = []
    thick, beside = (0.4, 6.5) if on_phone() else (0.66, 3.2)  # a bar; room for its text
    for ax, phase in zip(axes, phases, strict=True):
        rows = [f for f in forecasts if f.phase == phase]
        for y, f in enumerate(rows):
            low, high = f.total.low * 1e3, f.total.high * 1e3
            colour = BLUE if f.mode == "eager" else GREEN
            ax.barh(y, high - low, thick, left=low, color=colour, alpha=0.85)
            ends = [y - thick / 2, y + thick / 2]
            ax.plot([f.total.middle * 1e3] * 2, ends, color="white", lw=2)
            text = f"{_milliseconds(low)} – {_milliseconds(high)}"
            ax.text(high * 1.06, y, text, va="center", fontsize=SMALL)
            said.append(f"{phase} {title_of(f.rung)} {text} ms")
        named = on_phone() or ax is axes[0]
        name_rows(ax, [title_of(f.rung) if named else "" for f in rows])
        _log_ticks(ax)
        ax.set_xlim(
            min(f.total.low for f in rows) * 1e3 / 1.3,
            max(f.total.high for f in rows) * 1e3 * beside,
        )
        ax.set_xlabel(tr("ms a step, FORECAST (logarithmic)"))
        ax.set_title(_shape(rows[0]))
    modes = ((BLUE, tr("eager mode")), (GREEN, tr("graph mode")))
    panel_key(axes[0], [Patch(color=colour, label=mode) for colour, mode in modes])
    card, world = CARDS[forecasts[0].card], forecasts[0].work.world_size
    alt = tr("FORECAST, nothing measured, ranges of a step's time: {said}.")
    note = tr(
        "From the fast to the slow end of the assumptions, line: geometric middle. {assumed}. Rates: {source}."
    )
    title = tr("FORECAST, nothing measured: bfloat16 on {world} × {card}")
    return finish(
        fig,
        alt.format(said=tr("; ").join(said)),
        note.format(assumed=assumptions_text(), source=told(card.source)),
        title=title.format(world=world, card=told(card.name)),
    )


@two_widths
def forecast_parts(forecasts: Sequence[StepForecast]) -> LabFigure:
    """What the slow and the fast end of each rung are made of. In eager mode host and device run
    side by side."""
    if not forecasts or len({(f.card, f.phase) for f in forecasts}) != 1:
        raise PortError("forecast_parts draws one phase on one card")
    fig, axes = figure(1, 2, (11.8, 2.6 + 0.42 * len(forecasts)))
    said = []
    ends = (tr("fast end"), tr("slow end"))
    off, thick = (0.12, 0.22) if on_phone() else (0.18, 0.34)
    for ax, end, name in zip(axes, ("low", "high"), ends, strict=True):
        for y, f in enumerate(forecasts):
            left = 0.0
            for part in PARTS[:3]:
                size = getattr(f.parts[part], end) * 1e3
                ax.barh(y - off, size, thick, left=left, color=_COLOURS[part])
                left += size
            host = getattr(f.parts["host"], end) * 1e3
            ax.barh(y + off, host, thick, color=_COLOURS["host"])
            each = tr(", ").join(
                f"{told(_NAMES[p])} {_milliseconds(getattr(f.parts[p], end) * 1e3)}" for p in PARTS
            )
            row = tr("{end} {step}: {parts}")
            said.append(row.format(end=name, step=title_of(f.rung), parts=each))
        named = on_phone() or ax is axes[0]
        name_rows(ax, [title_of(f.rung) if named else "" for f in forecasts], grid=True)
        ax.set_xlabel(tr("ms, FORECAST"))
        ax.set_title(name)
    panel_key(axes[0], [Patch(color=_COLOURS[p], label=told(_NAMES[p])) for p in PARTS])
    card, world = CARDS[forecasts[0].card], forecasts[0].work.world_size
    alt = tr("FORECAST, nothing measured, ms of each part: {said}.")
    title = tr("FORECAST, nothing measured: {what}, {world} × {card}")
    return finish(
        fig,
        alt.format(said=tr("; ").join(said)),
        tr(
            "Upper bar: the device, lower bar: the host, which launches ahead of it; the longer one is the "
            "step. Where the host must wait for a value (the expert loop) they add up."
        ),
        title=title.format(what=_shape(forecasts[0]), world=world, card=told(card.name)),
    )


@two_widths
def forecast_checks(checks: Sequence[Check]) -> LabFigure:
    """The forecast's ranges over the cited figures, which are 1: what lies outside was forecast
    wrongly."""
    fig, (ax,) = figure(size=(10.5, 2.2 + (0.78 if on_phone() else 0.66) * len(checks)))
    said, thick = [], PHONE_BAR if on_phone() else 0.5
    names, colours = [], []  # of each row
    for y, c in enumerate(checks):
        low, high = c.forecast.low / c.measured, c.forecast.high / c.measured
        colour = GREEN if c.inside else VERMILLION
        hatch = "" if c.inside else "//"
        ax.barh(y, high - low, thick, left=low, color=colour, hatch=hatch, edgecolor="white")
        text = tr("{low} – {high} {unit} forecast, {cited} cited: {verdict}").format(
            low=_milliseconds(c.forecast.low),
            high=_milliseconds(c.forecast.high),
            unit=told(c.unit),
            cited=_milliseconds(c.measured),
            verdict=c.verdict,
        )
        colours.append(INK if c.inside else VERMILLION)
        said.append(tr("{name}: {factor}").format(name=told(c.what), factor=text))
        if on_phone():
            room: dict[str, Any] = {"room": 0.9 * fig.bbox.width, "fontsize": SMALL}
            names.append("\n".join(wrapped(fig, t, **room) for t in (told(c.what), text)))
        else:
            names.append("\n".join(broken(told(c.what), 34)))
            look: dict[str, Any] = {"color": colours[-1], "transform": ax.get_yaxis_transform()}
            ax.text(0.01, y - 0.4, text, va="center", fontsize=SMALL, **look)
    ax.axvline(1, color=INK, lw=1.6, ls="--")
    if on_phone():
        lines_above(ax, names, colours)
    else:
        name_rows(ax, names, 0.7, 0.5)
    _log_ticks(ax)
    ax.set_xlim(
        min(c.forecast.low / c.measured for c in checks) / 1.5,
        max(4.0, *(1.5 * c.forecast.high / c.measured for c in checks)),
    )
    label = tr("FORECAST over cited (logarithmic); the dashed line is what was measured")
    ax.set_xlabel(wrapped(fig, label, 0.93 * fig.bbox.width) if on_phone() else label)
    sources = tr("; ").join(dict.fromkeys(c.source for c in checks))
    return finish(
        fig,
        tr("FORECAST against cited figures: {said}.").format(said=tr("; ").join(said)),
        tr("Cited from {sources}.").format(sources=sources),
        title=tr("FORECAST against cited figures, which come from other engines"),
    )

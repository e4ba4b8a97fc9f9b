"""Pictures of a porting step on an NPU, from kernels that others measured (forecast/npu_steps.py).

Bars are open and hatched: never those of a recorded run. Every time stands with its rows, and a
figure with a time that no row supports is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.text import Text

from ..errors import PortError
from ..forecast.kernels import by_id, label
from ..forecast.npu_parts import Pair, Part, formula, total, traced
from ..forecast.npu_steps import kernels_of
from ..forecast.traced import Traced, check
from ..messages import tr
from ..steps import STEPS, title_of
from .colours import GREY, INK, PURPLE, SMALL
from .style import LabFigure, broken, figure, finish, on_phone, two_widths

_WIDTH, _ROW = 11.8, 1.5  # inches: the figure, a pair
_WRAP = 118  # characters of small text across the figure
_PHONE_ROW, _PHONE_WRAP = 2.1, 46  # the same of a figure as wide as a phone


def steps_of(name: str) -> list[str]:
    """The steps of a notebook, or the step itself."""
    found = [s.id for s in STEPS if name in (s.id, s.number, s.notebook)]
    if not found:
        raise PortError(f"npu_step: {name!r} is neither a step nor a notebook that takes one")
    return found


@two_widths
def npu_step(name: str) -> LabFigure:
    """Before and after of a step in measured kernels, a row for each size; `name` is a step or a
    notebook (all of its steps). What nothing covers is said below."""
    steps = [kernels_of(s) for s in steps_of(name)]
    pairs = [(s, p) for s in steps for p in s.pairs]
    notes = [(s, text) for s in steps for text in s.said]
    lines = sum(len(_broken(text, 24).splitlines()) for _, text in notes)
    row = _PHONE_ROW if on_phone() else _ROW
    ratios = [row] * len(pairs) + [max(0.3, 0.22 * lines)]
    fig, axes = figure(
        len(ratios), 1, (_WIDTH, sum(ratios) + 1.6), gridspec_kw={"height_ratios": ratios}
    )
    head = tr("{step}. ") if len(steps) > 1 else ""
    named = {s.step: head.format(step=title_of(s.step)) for s in steps}
    said = [_draw(ax, p, named[s.step]) for ax, (s, p) in zip(axes, pairs, strict=False)]
    said += _write(axes[-1], [named[s.step] + text for s, text in notes])
    devices = list(dict.fromkeys(d for s in steps for d in s.devices))
    title = tr(" and ").join(title_of(s.step) for s in steps[:2]) if len(steps) < 3 else name
    return supported(
        finish(
            fig,
            tr("{title}, {said}").format(title=title, said=" ".join(said)),
            label(*devices),
            title=tr("{title} on an NPU: kernels measured by others").format(title=title),
        ),
        traced([p for _, p in pairs]),
        [r for _, p in pairs for part in (*p.before, *p.after) for r in part.rows],
    )


def supported(fig: LabFigure, derived: Sequence[Traced], rows: Sequence[str]) -> LabFigure:
    """The figure with its rows, after every time in its texts was found in them; else PortError."""
    fig.npu_rows, fig.npu_derived = tuple(dict.fromkeys(rows)), tuple(derived)
    check([t.get_text() for t in fig.findobj(Text)] + [fig.alt_text], fig.npu_derived)
    return fig


def _samples(parts: Sequence[Part]) -> str:
    """How many samples stand behind a side; of a fit, how many points."""
    known = by_id()
    fits = [str(len(p.rows)) for p in parts if p.how == "fitted"]
    counts = [f"n {known[p.rows[0]].n}" for p in parts if p.how != "fitted" and p.rows[0] in known]
    fit = tr("fit of {n} points").format(n=tr(" and ").join(fits))
    return ", ".join([*([fit] if fits else []), *counts])


def _value(parts: Sequence[Part]) -> str:
    us, low, high = total(parts)
    digits = 0 if us >= 1000 else 1 if us >= 10 else 2
    spread = f" ({low:,.{digits}f}–{high:,.{digits}f})"
    about = "~" if any(p.how == "fitted" for p in parts) else ""
    return f"{about}{us:,.{digits}f} µs{spread} [{formula(parts)}]"


def _broken(text: str, less: int = 0) -> str:
    """In lines as wide as the figure, `less` so many characters."""
    room = _PHONE_WRAP - less // 2 if on_phone() else _WRAP - less
    return "\n".join(broken(text, room))


def _draw(ax: Axes, pair: Pair, named: str) -> str:
    """Two bars with whiskers, on a phone their texts above them; returns what they say."""
    most = max(total(side)[2] for side in (pair.before, pair.after))
    said = []
    before, after = tr("before"), tr("after")
    for y, (when, parts) in enumerate(((before, pair.before), (after, pair.after))):
        us, low, high = total(parts)
        fitted = any(p.how == "fitted" for p in parts)
        ax.barh(
            y,
            us,
            0.3 if on_phone() else 0.62,
            facecolor="none",
            edgecolor=GREY if y == 0 else PURPLE,
            hatch="" if fitted else "//",
            linestyle="--" if fitted else "-",
            linewidth=1.6,
        )
        ax.errorbar(us, y, xerr=[[us - low], [high - us]], fmt="none", ecolor=INK, capsize=4)
        where = "" if pair.same_device else f", {parts[0].device}"
        text = f"{_value(parts)}{where}, {_samples(parts)}".removesuffix(", ")
        if on_phone():
            ax.text(0, y - 0.2, _broken(f"{when} {text}"), va="bottom", fontsize=SMALL)
        else:
            ax.text(high + most * 0.02, y, text, va="center", fontsize=SMALL)
        said.append(f"{when} {text}")
    ax.set_yticks((0, 1), ("", "") if on_phone() else (before, after))
    ax.set_ylim(1.3 if on_phone() else 1.6, -0.9 if on_phone() else -0.6)
    ax.set_xlim(0, most * (1.05 if on_phone() else 2.5))
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    head = named + tr("{size}: {what}. {verdict}").format(
        size=pair.size, what=pair.what, verdict=pair.verdict
    )
    ax.set_title(_broken(head, 18), fontsize=SMALL + 1)
    ax.set_xlabel(_broken(pair.near), loc="left", fontsize=SMALL)
    row = tr("{head}: {said} ({near}).")
    return row.format(head=head, said=", ".join(said), near=pair.near)


def _write(ax: Axes, notes: Sequence[str]) -> Sequence[str]:
    """Sentences for what no pair can show."""
    ax.axis("off")
    lines = [_broken("• " + text) for text in notes]
    ax.text(0, 1, "\n".join(lines), va="top", fontsize=SMALL, transform=ax.transAxes)
    return notes

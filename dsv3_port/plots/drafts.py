"""The pictures of 13: what steps with drafts compute and give, how many drafts were accepted, and what
such a step costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..bench.drafts import ONE, PAIR, WHOLE
from ..bench.outcome import Outcome, outcome
from ..bench.records import Results
from ..count.step_work import StepWork
from ..engine.generate import Generation
from ..errors import PortError
from ..messages import told, tr
from .colours import BLUE, GREEN, GREY, INK, LIGHT, NORMAL, ORANGE, SKY, SMALL, VERMILLION
from .shapes import box, centred, name_rows, stack
from .style import LabFigure, caption, figure, finish, key, on_phone, two_widths, wrap_titles

# of the drawing: the model's own words, the first from prefill, and what is drafted in each step
WORDS = ("Mira", "lived", "near", "the", "river", ".")
DRAFTS = ("lived", "a", "river")
REFUSED: dict[str, Any] = {"edgecolor": VERMILLION, "hatch": "//", "lw": 1.2}


@dataclass(frozen=True)
class Step:
    """One decode step of the drawing: where it begins, its draft, whether that is accepted."""

    start: int
    draft: str = ""

    @property
    def right(self) -> bool:
        return self.draft == WORDS[self.start + 1]

    @property
    def gives(self) -> tuple[str, ...]:
        return WORDS[self.start + 1 : self.start + 2 + self.right]


def _with_drafts() -> list[Step]:
    steps, at = [], 0
    for draft in DRAFTS:
        steps.append(Step(at, draft))
        at += len(steps[-1].gives)
    return steps


@two_widths
def draft_steps() -> LabFigure:
    """The same words by steps of one token, and by steps of a token and its draft."""
    fig, axes = figure(1, 2, (11.0, 3.9))
    plain, ahead = [Step(k) for k in range(len(WORDS) - 1)], _with_drafts()
    titles = (
        tr("one token a step: {n} steps").format(n=len(plain)),
        tr("a token and its draft a step: {n} steps").format(n=len(ahead)),
    )
    for ax, steps, title in zip(axes, (plain, ahead), titles, strict=True):
        _steps(ax, steps)
        ax.set_title(title)
        ax.set_ylim(len(plain) + 0.1, -0.25)
    wrap_titles(fig, axes)
    parts = [
        Patch(facecolor=LIGHT, label=tr("in the cache")),
        Patch(facecolor=SKY, label=tr("last token")),
        Patch(facecolor=ORANGE, label=tr("draft, accepted")),
        Patch(facecolor="white", label=tr("draft, refused: given back"), **REFUSED),
    ]
    key(fig, 4, handles=parts)
    alt = tr(
        "Left: {plain} steps compute one token each and give one each. Right: {ahead} steps give the same "
        "words: {said}. The position of a refused draft is the next step's first."
    )
    said = tr("; ").join(_told_step(k, s) for k, s in enumerate(ahead, 1))
    return finish(
        fig,
        alt.format(plain=len(plain), ahead=len(ahead), said=said),
        tr(
            "Drawn, not measured. From left to right: positions in the cache; from top to bottom: steps; "
            "behind the arrow: what a step gives."
        ),
    )


def _told_step(number: int, s: Step) -> str:
    """A step of the right half in words."""
    right = tr(
        "step {k} computes {word!r} and the draft {draft!r}, which is accepted, and gives {gives!r}"
    )
    wrong = tr(
        "step {k} computes {word!r} and the draft {draft!r}, which is refused, and gives {gives!r}"
    )
    gives = " ".join(s.gives)
    return (right if s.right else wrong).format(
        k=number, word=WORDS[s.start], draft=s.draft, gives=gives
    )


def _steps(ax: Axes, steps: Sequence[Step]) -> None:
    for y, s in enumerate(steps):
        for x, word in enumerate(WORDS[: s.start]):
            box(ax, x, y, 0.94, 0.8, LIGHT, word)
        box(ax, s.start, y, 0.94, 0.8, SKY, WORDS[s.start])
        if s.draft and s.right:
            box(ax, s.start + 1, y, 0.94, 0.8, ORANGE, s.draft)
        elif s.draft:
            box(ax, s.start + 1, y, 0.94, 0.8, "white", **REFUSED)
            back: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            centred(ax, s.start + 1.47, y + 0.4, s.draft, bbox=back)
        end = s.start + 1 + bool(s.draft)
        ax.text(end + 0.1, y + 0.4, f"→ {' '.join(s.gives)}", va="center", fontsize=NORMAL)
    ax.set_xlim(-0.1, len(WORDS) + 1.9)
    ax.axis("off")


def tokens_a_step(texts: Sequence[Generation]) -> float:
    """Over all texts, without the first token of each, which prefill gives."""
    steps = sum(len(g.accepted) for g in texts)
    if not steps:
        raise PortError("these texts were made without drafts: give those of a model with MTP")
    return sum(len(g.token_ids) - 1 for g in texts) / steps


@two_widths
def accepted_steps(texts: Sequence[Generation]) -> LabFigure:
    """Each text's decode steps, a square each: draft accepted or refused; and how many steps it takes
    one by one."""
    rate = tokens_a_step(texts)
    fig, (ax,) = figure(1, 1, (10.0, 1.5 + 0.55 * len(texts)))
    said, labels = [], []
    for y, g in enumerate(texts):
        for step, right in enumerate(g.accepted):
            colour, look = (BLUE, {}) if right else ("white", REFUSED)
            box(ax, step + 0.06, y - 0.3, 0.88, 0.6, colour, **look)
        alone, steps, right = len(g.token_ids) - 1, len(g.accepted), sum(g.accepted)
        ax.plot([alone, alone], [y - 0.34, y + 0.34], color=INK, lw=2.5)
        found = {"prompt": _short(str(g.prompt)), "alone": alone, "steps": steps, "right": right}
        labels.append(tr("{prompt}: {alone} in {steps}").format(**found))
        row = tr("{prompt}: {alone} tokens in {steps} steps, {right} drafts accepted")
        said.append(row.format(**found))
    name_rows(ax, labels)
    ax.set_xlim(0, max(len(g.token_ids) for g in texts))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(tr("decode steps"))
    ax.set_title(tr("{rate:.2f} tokens a step").format(rate=rate))
    parts = [
        Patch(facecolor=BLUE, label=tr("draft accepted: two tokens")),
        Patch(facecolor="white", label=tr("refused: one"), **REFUSED),
        Patch(facecolor=INK, label=tr("where one by one ends")),
    ]
    key(fig, 3, handles=parts)
    return finish(
        fig,
        tr("Squares of decode steps. {said}.").format(said=tr("; ").join(said)),
        tr(
            "Counted in this run, greedy: tokens behind the first, which prefill gives, in so many steps."
        ),
    )


@two_widths
def draft_costs(
    times: Results, work: Mapping[int, Mapping[str, StepWork]], texts: Sequence[Generation]
) -> LabFigure:
    """What a step with a draft costs, in steps of one token: timed here (bench.drafts.pair_times), and
    the bytes that DeepSeek-V3's would move (batch -> count.speculation.speculation_work); and what such
    a step gave in `texts`."""
    given = tokens_a_step(texts)
    fig, (timed, counted) = figure(
        2, 1, (10.0, 4.9), sharex=True, gridspec_kw={"height_ratios": (2, len(work) + 0.3)}
    )
    found = [outcome(times, ONE, name, "step") for name in (PAIR, WHOLE)]
    costs = _timed(timed, found)
    bytes_ = _counted(counted, work)
    for ax in (timed, counted):
        ax.axvline(1, color=INK, lw=1.2)
        ax.axvline(given, color=GREEN, lw=2.2, ls="--")
        ax.set_xlim(0, 1.22 * max(2.0, given, *costs, *bytes_.values()))
    counted.set_xlabel(tr("steps of one token"))
    gave = tr("tokens a step, this run: {given:.2f}").format(given=given)
    parts = [
        Patch(facecolor=GREY, label=tr("time, this device")),
        Patch(facecolor=BLUE, label=tr("bytes of verifying")),
        Patch(facecolor=ORANGE, label=tr("bytes of drafting")),
        Patch(facecolor=GREEN, label=gave),
    ]
    key(fig, 4, handles=parts)
    busy = next((o.busy for o in found if o.busy), "")
    first = times.records[0]
    at = tr("timed: embedded model, batch {batch}").format(batch=first.batch)
    timed.set_title(at + (f" ({busy})" if busy else ""))
    counted.set_title(tr("counted: DeepSeek-V3 on one rank, 4096 positions, bfloat16"))
    wrap_titles(fig, (timed, counted))
    cost, of_batch = tr("{name}: {factor}"), tr("batch {batch}: {times:.2f} times the bytes")
    said = [cost.format(name=told(o.after), factor=o.factor) for o in found]
    said += [of_batch.format(batch=b, times=n) for b, n in bytes_.items()]
    alt = tr(
        "Bars of cost against a step of one token. {said}. A step gave {given:.2f} tokens here."
    )
    return finish(
        fig,
        alt.format(said=tr("; ").join(said), given=given),
        caption(times.records, tr("drafts pay where a bar ends left of the dashed line")),
    )


def _timed(ax: Axes, found: Sequence[Outcome]) -> list[float]:
    """Bars of the paired ratios; grey and hatched, without a number, on a busy machine."""
    costs = [1 / o.ratio.median for o in found]
    for y, (o, cost) in enumerate(zip(found, costs, strict=True)):
        more: dict[str, Any] = {"hatch": "..", "edgecolor": "white"} if o.busy else {}
        ax.barh(y, cost, 0.66, color=GREY, **more)
        low, high = 1 / o.ratio.high, 1 / o.ratio.low
        ax.plot([low, high], [y, y], color=INK, lw=2)
        if not o.busy:
            _number(ax, max(high, cost), y, cost)
    name_rows(ax, [told(o.after) for o in found])
    return costs


def _counted(ax: Axes, work: Mapping[int, Mapping[str, StepWork]]) -> dict[int, float]:
    """Batch -> bytes of verifying and drafting over those of a plain step."""
    sums = {}
    for y, (batch, parts) in enumerate(work.items()):
        plain = parts["decode"].nbytes
        verify, draft = (parts[n].nbytes / plain for n in ("verify", "draft"))
        sums[batch] = stack(ax, y, [(verify, BLUE, ""), (draft, ORANGE, "")], 0.66)
        _number(ax, sums[batch], y, sums[batch])
    one = tr("batch {batch}")
    name_rows(ax, [one.format(batch=batch) for batch in work])
    return sums


def _number(ax: Axes, x: float, y: float, value: float) -> None:
    """Behind a bar that ends at x, readable on the dashed line too."""
    back: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    ax.text(x + 0.03, y, f"{value:.2f}", va="center", fontsize=SMALL, bbox=back, zorder=5)


def _short(text: str) -> str:
    most = 34 if on_phone() else 30
    return text if len(text) <= most else text[: most - 1] + "…"

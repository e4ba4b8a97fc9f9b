"""Pictures of memory, and of what others published: no timing of this machine is in them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ..config import DeepseekV3Config
from ..errors import PortError
from ..forecast.planner import GIB, Forecast, kv_bytes_per_token
from ..messages import N_, told, tr
from ..paths import recorded_file
from ..plan import PortPlan
from .colours import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LARGE,
    NORMAL,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILLION,
    YELLOW,
)
from .shapes import box, name_rows, stack
from .style import LabFigure, figure, finish, styled

CITED = "cited.json"
CITED_TEXTS = ("title", "model", "hardware", "conditions", "note")
_COLOURS = {
    N_("experts"): BLUE,
    N_("attention"): ORANGE,
    N_("shared"): GREEN,
    N_("dense"): YELLOW,
    N_("embedding"): SKY,
    N_("head"): SKY,
    N_("other"): GREY,
    "KV cache": PURPLE,
}


@styled
def memory_bars(rows: Sequence[Forecast], hbm: float = 64.0) -> LabFigure:
    """Forecasts (planner.forecast) as stacked bars against a card's memory of `hbm` GiB; misfits
    are marked."""
    if not rows:
        raise PortError("memory_bars: no forecasts given")
    fig, (ax,) = figure(size=(10.0, 1.9 + 0.42 * len(rows)))
    widest = max([f.total_bytes / GIB for f in rows] + [hbm])
    parts = [
        c for c in _COLOURS if any(f.weights_bytes.get(c, 0) > 0.004 * widest * GIB for f in rows)
    ]
    said = []
    for y, f in enumerate(rows):
        sizes = [(c, f.weights_bytes.get(c, 0)) for c in parts]
        sizes.append(("other", f.weights_total - sum(s for _, s in sizes)))
        sizes.append(("KV cache", f.total_bytes - f.weights_total))
        left = stack(ax, y, [(size / GIB, _COLOURS[part], "") for part, size in sizes])
        undivided = tr("this number of cards does not divide the model")
        text = f"{left:.0f} GiB" if f.weights_bytes else undivided
        misfit = tr("does not fit") if f.weights_bytes else tr("cannot be cut")
        verdict = tr("fits") if f.fits else misfit
        ax.text(
            left + 0.008 * widest,
            y,
            f"{text}  {verdict}" if f.weights_bytes else text,
            va="center",
            fontsize=SMALL,
            color=INK if f.fits else VERMILLION,
            zorder=3,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
        row = tr("{n} cards {dtype}: {size:.0f} GiB, {verdict}")
        said.append(row.format(n=f.world_size, dtype=f.dtype, size=left, verdict=verdict))
    ax.axvline(hbm, color=VERMILLION, lw=2, ls="--")
    one = tr("one card: {size:g} GiB").format(size=hbm)
    ax.text(hbm, -0.62, f" {one}", color=VERMILLION, fontsize=SMALL, va="bottom")
    name_rows(ax, [f"{f.world_size} × {f.dtype}" for f in rows], 0.6, 0.4)
    ax.set_xlim(0, widest * 1.2)
    ax.set_xlabel(tr("GiB on each card (forecast)"))
    names = [*parts, "other", "KV cache"]
    fig.legend(
        handles=[Patch(color=_COLOURS[n], label=told(n)) for n in names],
        loc="outside upper center",
        ncols=min(len(names), 7),
    )
    alt = tr("Stacked bars of forecast memory per card: {said}.").format(said="; ".join(said))
    return finish(fig, alt)


@styled
def kv_cache_to_scale(
    config: DeepseekV3Config, context: int = 131072, dtype: str = "bfloat16"
) -> LabFigure:
    """The expanded and the latent KV cache of one sequence as areas on one scale."""
    c = config
    expanded, latent = (
        kv_bytes_per_token(c, plan, dtype) * context
        for plan in (PortPlan.upstream(), PortPlan.full())
    )
    fig, (ax,) = figure(size=(9.0, 4.8))
    side, small = 1.0, math.sqrt(latent / expanded)
    heads, gap, left = c.num_attention_heads, 0.25, 0.0
    width = c.qk_head_dim + c.v_head_dim
    for name, part, colour in (
        (tr("keys without position"), c.qk_nope_head_dim, BLUE),
        (tr("rotary keys"), c.qk_rope_head_dim, SKY),
        (tr("values"), c.v_head_dim, ORANGE),
    ):
        share, of = side * part / width, tr("{heads} heads × {part}")
        text = f"{name}\n{of.format(heads=heads, part=part)}"
        box(ax, 0, left, side, share, colour, text, lw=1.5)
        left += share
    row = c.kv_lora_rank + c.qk_rope_head_dim
    once = tr("one latent row for all heads\n{sum} numbers")
    box(ax, side + gap, 0, small, small, VERMILLION, lw=1.5)
    ax.text(
        side + gap + small + 0.04,
        small / 2,
        once.format(sum=f"{c.kv_lora_rank} + {c.qk_rope_head_dim} = {row}"),
        va="center",
        fontsize=SMALL,
    )
    big: dict[str, Any] = {"fontsize": LARGE, "fontweight": "bold"}
    sizes = {"large": _size_text(expanded), "small": _size_text(latent)}
    large = tr("expanded: {large}").format(**sizes)
    ax.text(side / 2, side + 0.03, large, ha="center", **big)
    text = tr("low rank: {small}").format(**sizes)
    ax.text(side + gap, small + 0.03, text, color=VERMILLION, **big)
    smaller = tr("{times:.1f} times smaller").format(times=expanded / latent)
    ax.text(side + gap, small + 0.15, smaller, fontsize=NORMAL)
    ax.set_xlim(-0.02, side + gap + 1.05)
    ax.set_ylim(-0.03, side + 0.12)
    ax.set_aspect("equal")
    ax.axis("off")
    note = tr(
        "KV cache of one sequence of {context:,} tokens, {layers} layers, {dtype}; areas to scale"
    )
    alt = tr(
        "Two squares to scale: the expanded cache takes {large}, the low-rank cache {small}, {times:.1f} "
        "times less."
    )
    return finish(
        fig,
        alt.format(times=expanded / latent, **sizes),
        note.format(context=context, layers=c.num_hidden_layers, dtype=dtype),
    )


def _size_text(size: float) -> str:
    for unit, scale in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:{'.3g' if size < 1000 * scale else ',.0f'}} {unit}"
    return f"{size:.0f} bytes"


# ---- what others published -----------------------------------------------------------------------


@lru_cache(maxsize=1)
def cited() -> dict[str, dict[str, Any]]:
    """Published figures of other models and machines, each with source, conditions and date."""
    try:
        table: dict[str, dict[str, Any]] = json.loads(
            recorded_file(CITED).read_text(encoding="utf-8")
        )
    except (OSError, ValueError) as error:
        raise PortError(
            f"{CITED}: the cited figures are not readable ({error}); run inside a checkout"
        ) from error
    return table


@styled
def cited_figures(which: str) -> LabFigure:
    """A published table as bars, marked as somebody else's measurement. `which` is a key of
    cited()."""
    table = cited()
    if which not in table:
        raise PortError(f"no cited figures {which!r}; there are {', '.join(table)}")
    entry = table[which]
    columns, rows = entry["columns"], entry["rows"]
    across = min(2, len(columns))
    down = math.ceil(len(columns) / across)
    fig, axes = figure(
        down, across, (11.0 if across > 1 else 9.0, 1.9 + down * (0.6 + 0.4 * len(rows)))
    )
    said, crossed = [], False
    for k, (ax, column) in enumerate(zip(axes, columns, strict=False)):
        values = [r["values"][k] for r in rows]
        crossed |= _published_bars(ax, values, entry["cumulative"])
        name_rows(ax, [told(r["label"]) if k % across == 0 else "" for r in rows])
        ax.set_xlim(0, max(values) * 1.28)
        ax.set_title(f"{told(column)}, {entry['unit']}")
        each = ", ".join(f"{told(r['label'])} {v:g}" for r, v in zip(rows, values, strict=True))
        said.append(tr("{name}: {factor}").format(name=told(column), factor=each))
    above, first = (
        tr("Crossed: slower than the row above. "),
        tr("Crossed: slower than the first row. "),
    )
    key = (above if entry["cumulative"] else first) if crossed else ""
    text = tr(
        "{key}{model}; {hardware}; {conditions}. {note} Source: {source} ({date}), read {read}."
    )
    words = {k: told(entry[k]) for k in CITED_TEXTS}
    where = {"source": entry["source"], "date": entry["source_date"], "read": entry["read"]}
    alt = tr("Cited, not measured here: {said} ({unit}).")
    return finish(
        fig,
        alt.format(said=tr("; ").join(said), unit=entry["unit"]),
        text.format(key=key, **words, **where),
        title=tr("CITED, other model or hardware: {title}").format(title=words["title"]),
    )


def _published_bars(ax: Axes, values: Sequence[float], cumulative: bool) -> bool:
    """One bar a value, crossed where it is slower than the row above, or than the first; whether
    any is."""
    crossed = False
    for y, value in enumerate(values):
        worse = value > 1.005 * values[max(y - 1, 0) if cumulative else 0]
        crossed |= worse
        look: dict[str, Any] = (
            {"edgecolor": VERMILLION, "hatch": "xx"}
            if worse
            else {"edgecolor": PURPLE, "hatch": ".."}
        )
        ax.barh(y, value, 0.72, facecolor="white", lw=1.6, **look)
        text = f"{value:g}" + (f"  {values[0] / value:.2f}×" if y else "")
        colour = VERMILLION if worse else INK
        ax.text(value + 0.015 * max(values), y, text, va="center", fontsize=SMALL, color=colour)
    return crossed

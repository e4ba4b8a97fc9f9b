"""Prefill over the length of the prompt: the most memory held at one time, and time."""

from __future__ import annotations

from ..bench.cases import Case
from ..bench.paired import busy_text
from ..bench.prompt_table import peaks_of, prompt_name
from ..bench.speed_tables import fit_exponent
from ..forecast.planner import GIB
from ..messages import told, tr
from .colours import CYCLE, GREY, LIGHT, MARKERS
from .style import LabFigure, caption, figure, finish, on_phone, panel_key, two_widths


@two_widths
def prompt_curves(case: Case) -> LabFigure:
    """Two panels over one case of part prompts. Memory is counted, and drawn whatever the machine did
    meanwhile; a busy machine's times are grey and dashed, without exponents."""
    results, busy = case.results.latest(), busy_text(case.records)
    note = caption(
        case.records,
        tr("memory beside weights and cache: counted; time: medians, bands quartiles"),
    )
    fig, (memory, time) = figure(columns=2, size=(11.0, 3.6 if on_phone() else 4.8))
    said = []
    for k, name in enumerate(results.names):
        peaks, colour, mark = peaks_of(case, name), CYCLE[k % 8], MARKERS[k % 8]
        xs, ys = list(peaks), [p / GIB for p in peaks.values()]
        label = f"{told(prompt_name(name))} (∝ tokens^{fit_exponent(xs, ys):.2f})"
        memory.plot(xs, ys, marker=mark, color=colour, lw=2, ms=7, label=label)
        grows = tr("{line}: {first:.3g} GiB at {low:,} tokens, {last:.3g} at {high:,}")
        ends = {"first": ys[0], "low": xs[0], "last": ys[-1], "high": xs[-1]}
        said.append(grows.format(line=label, **ends))
        line = sorted((r for r in results if r.name == name), key=lambda r: r.tokens)
        medians = [r.median for r in line]
        colour, dash = (GREY, "--") if busy else (colour, "-")
        time.fill_between(xs, [r.q1 for r in line], [r.q3 for r in line], color=colour, alpha=0.22)
        label = told(prompt_name(name))
        label += "" if busy else f" (∝ tokens^{fit_exponent(xs, medians):.2f})"
        time.plot(xs, medians, dash, marker=mark, color=colour, lw=2, ms=7, label=label)
        if not busy:
            said.append(f"{medians[0]:.3g} s, {medians[-1]:.3g} s")
    ticks = sorted({r.tokens for r in results})
    for ax, what in ((memory, tr("GiB held at one time")), (time, tr("seconds a prompt"))):
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(ticks, [f"{t:,}" for t in ticks])
        ax.minorticks_off()
        ax.set_xlabel(tr("tokens of the prompt"))
        ax.set_ylabel(what)
        ax.grid(color=LIGHT, lw=0.8)
        ax.set_title(busy if ax is time else "")
        if on_phone():
            panel_key(ax, ax.get_lines())
        else:
            ax.legend(loc="best")
    alt = tr("Memory and time of prefill over its length: {said}.").format(said="; ".join(said))
    return finish(fig, alt, note)

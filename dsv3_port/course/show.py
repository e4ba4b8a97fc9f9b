"""What a notebook shows besides numbers and code: where we are, which device the numbers are from,
tables.

Everything returned renders in JupyterLab, in nbconvert's HTML and, as plain text, in a terminal.
Colours are the theme's own where JupyterLab defines them, and readable on light and dark where it
does not.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from ..bench.machine import device_info
from ..messages import N_, told, tr, trn
from ..steps import SECOND, STEPS, Step
from .diff import RULE


@dataclass(frozen=True)
class Shown:
    """Something to look at, as HTML, Markdown and plain text."""

    html: str
    markdown: str

    def _repr_html_(self) -> str | None:
        return self.html or None

    def _repr_markdown_(self) -> str:
        return told(self.markdown)  # a notebook's own sentence; others are in the reader's language

    def __repr__(self) -> str:
        return self._repr_markdown_()


def progress(here: str = "") -> Shown:
    """The ladder of steps with those of notebook `here` marked: done ✓, here ▶, still to come."""
    chips = []
    for s in steps_around(here):
        state = "here" if s.notebook == here else "done" if "" < s.notebook < here else "next"
        look = {
            "done": f"border:{RULE};opacity:.8",
            "here": "border:2px solid #0072B2;background:rgba(0,114,178,.19);font-weight:bold",
            "next": "border:1px dashed rgba(128,128,128,.6);opacity:.8",
        }[state]
        mark = {"done": "✓ ", "here": "▶ ", "next": ""}[state]
        name = f"{s.number} {html.escape(told(s.title))}".strip()
        chips.append(
            f'<div style="{look};border-radius:6px;padding:3px 8px;font-size:12px;line-height:1.35">{mark}'
            f"{name}</div>"
        )
    body, label = "".join(chips), tr("steps of the port")
    return Shown(
        f'<div aria-label="{label}" style="display:flex;flex-wrap:wrap;gap:6px;margin:.4em 0">{body}'
        "</div>",
        progress_map(here),
    )


def steps_around(notebook: str) -> tuple[Step, ...]:
    """Part I's steps; in a notebook of Part II with Part II's behind them."""
    second = notebook and notebook in {s.notebook for s in SECOND}
    return (*STEPS, *SECOND) if second else STEPS


def progress_map(here: str = "") -> str:
    """The ladder as Markdown, with the steps of notebook `here` marked; for the "where we are" cells."""
    step_head, notebook_head = tr("step"), tr("notebook")
    rows = [f"| | {step_head} | {notebook_head} |", "|---|---|---|"]
    for s in steps_around(here):
        mark = "**▶ {}**" if s.notebook == here else "{}"
        where = f"`{s.notebook}`" if s.notebook else "–"
        rows.append(f"| {s.number} | {mark.format(told(s.title))} | {where} |")
    return "\n".join(rows)


_TIERS = {
    "cpu": N_(
        "Results are exact. Timings are this CPU's and say nothing about an NPU's speed; what carries over is "
        "counted: bytes, operators, shapes."
    ),
    "cuda": N_(
        "Timings are this GPU's. It launches kernels as an NPU does, so launch cost shows; its milliseconds are "
        "not an NPU's."
    ),
    "host-npu": N_(
        "The real torch_npu runs on a host stand-in for CANN: results are exact, timings are never shown."
    ),
    "npu": N_("Timings are this NPU's."),
}


def banner(device: str = "cpu") -> Shown:
    """The line every notebook shows first: which device this is and what its numbers are worth."""
    info = device_info(device)
    text = told(_TIERS[info["tier"]])
    where = tr("{device} · tier {tier} · torch {torch}").format(
        device=info["device_name"], tier=info["tier"], torch=info["versions"]["torch"]
    )
    if info["tier"] == "cpu":
        where += trn(" · {n} thread", " · {n} threads", info["threads"]).format(n=info["threads"])
    return Shown(
        f'<div style="border-left:4px solid #0072B2;padding:4px 10px;margin:.4em 0;background:'
        f'rgba(128,128,128,.1)"><b>{html.escape(where)}</b><br>{html.escape(text)}</div>',
        f"**{where}**  \n{text}",
    )


def table(
    rows: Iterable[Mapping[str, Any] | Sequence[Any]], headers: Sequence[str] | None = None
) -> Shown:
    """Rows (dicts, or sequences with `headers`) as a Markdown table; numbers stand as they are
    given, texts in the reader's language where the catalogue has them."""
    listed = list(rows)
    if not listed:
        return Shown("", tr("(no rows)"))
    if isinstance(listed[0], Mapping):
        headers = (
            list(dict.fromkeys(key for row in listed for key in row))
            if headers is None
            else headers
        )
        listed = [[row.get(key, "") for key in headers] for row in listed]  # type: ignore[union-attr]
    cells = [[_escaped(value) for value in row] for row in listed]
    return Shown(
        "",
        tabulate(
            cells,
            [_escaped(str(h)) for h in headers or ()],
            tablefmt="github",
            disable_numparse=True,
        ),
    )


def _escaped(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return told(value).replace("|", "\\|").replace("\n", " ") if isinstance(value, str) else value

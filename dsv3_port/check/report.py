"""What a comparison by stage found: a row for each stage, and the first that is not OK."""

from __future__ import annotations

import html
from dataclasses import dataclass

from ..messages import told, tr


@dataclass(frozen=True)
class Row:
    """One stage. `max_abs` and `max_rel` compare values; at a gate they are counts and shares of
    tokens instead."""

    stage: str
    status: str  # OK, DIFF, SHAPE, MISSING
    max_abs: float | None = None
    max_rel: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Report:
    rows: list[Row]
    rtol: float
    names: tuple[str, str]

    @property
    def first_divergence(self) -> Row | None:
        """The first stage that is not OK; what comes after it may only have inherited the
        difference."""
        return next((r for r in self.rows if r.status != "OK"), None)

    @property
    def ok(self) -> bool:
        return self.first_divergence is None

    def summary(self) -> str:
        first, (a, b) = self.first_divergence, map(told, self.names)
        if first is None:
            same = tr("{a} and {b} agree at all {n} stages (within {bound:.0e})")
            return same.format(a=a, b=b, n=len(self.rows), bound=self.rtol)
        parts = tr("{a} and {b} part at {stage}: {what}")
        what = f"{first.status} {_figures(first)}".rstrip()
        return parts.format(a=a, b=b, stage=first.stage, what=what)

    def __str__(self) -> str:
        width = max(len(r.stage) for r in self.rows)
        lines = [f"[{r.status:^7}] {r.stage:<{width}}  {_figures(r)}".rstrip() for r in self.rows]
        return "\n".join([*lines, self.summary()])

    def _repr_html_(self) -> str:
        ink = {"OK": "#009E73", "DIFF": "#D55E00", "SHAPE": "#CC79A7", "MISSING": "#CC79A7"}
        first = self.first_divergence
        rows = "".join(
            f'<tr style="{"outline:2px solid #D55E00" if r is first else ""}"><td style="color:{ink[r.status]};'
            f'font-weight:bold">{r.status}</td><td style="text-align:left"><code>{html.escape(r.stage)}</code></td>'
            f'<td style="text-align:left">{html.escape(_figures(r))}</td></tr>'
            for r in self.rows
        )
        stage, difference = tr("stage"), tr("difference")
        heads = f"<th>{stage}</th><th>{difference}</th>"
        head = f"<thead><tr><th></th>{heads}</tr></thead>"
        return (
            f"<table>{head}<tbody>{rows}</tbody></table><p><b>{html.escape(self.summary())}</b></p>"
        )


def _figures(row: Row) -> str:
    if row.detail:
        return row.detail
    if row.max_abs is None:
        return ""
    off = tr("max |Δ| {absolute:.1e}, of the largest value {relative:.1e}")
    return off.format(absolute=row.max_abs, relative=row.max_rel)

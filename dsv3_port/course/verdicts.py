"""What the learner sees of a function of theirs: a state in words and a mark, and why. HTML and text.

Colour alone says nothing: every state has a mark and a word, and screen readers are told.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

from ..messages import N_, told
from .slots import Slot
from .written import Place


@dataclass(frozen=True)
class State:
    mark: str
    word: str  # of the catalogue
    ink: str
    runs: bool  # the learner's function is what later cells run


STATES = {
    "empty": State("…", N_("not written yet"), "#767676", False),
    "raised": State("✘", N_("raised an error"), "#D55E00", False),
    "late": State("✘", N_("did not come back"), "#D55E00", False),
    "wrong": State("✘", N_("not the same"), "#D55E00", False),
    "dear": State("▲", N_("right, and costs more"), "#B57900", True),
    "right": State("✔", N_("right"), "#009E73", True),
}


@dataclass(frozen=True)
class Verdict:
    """One judgement. `text` says what was found and what was looked at, `mistake` names the entry of
    slot.wrong that was met, `place` the line that failed."""

    slot: Slot
    state: str
    text: str
    mistake: str = ""
    place: Place | None = None
    below: str = ""  # HTML: yours beside the finished code

    def __bool__(self) -> bool:
        return STATES[self.state].runs

    def _repr_html_(self) -> str:
        s = STATES[self.state]
        lines = [html.escape(self.text)]
        if self.place is not None:
            text = html.escape(str(self.place))
            lines.insert(0, f'<code style="overflow-wrap:anywhere">{text}</code>')
        return (
            f'<div role="status" data-slot="{self.slot.id}" data-state="{self.state}" style="border-left:'
            f'4px solid {s.ink};padding:4px 10px;margin:.4em 0;background:rgba(128,128,128,.1)">'
            f'<span style="color:{s.ink};font-weight:bold" aria-hidden="true">{s.mark}</span> '
            f"<b>{html.escape(told(self.slot.title))}: {told(s.word)}</b><br>{'<br>'.join(lines)}</div>{self.below}"
        )

    def __str__(self) -> str:
        s = STATES[self.state]
        lines = [f"{s.mark} {told(self.slot.title)} ({self.slot.id}): {told(s.word)}"]
        if self.place is not None:
            lines.append(str(self.place))
        return "\n  ".join([*lines, self.text])

    __repr__ = __str__

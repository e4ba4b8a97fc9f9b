"""What the learner sees of a function of theirs: a state in words and a mark, and why. HTML and text.

Colour alone says nothing: every state has a mark and a word, and screen readers are told.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

from .slots import Slot
from .written import Place


@dataclass(frozen=True)
class State:
    mark: str
    word: str
    word_zh: str
    ink: str
    runs: bool  # the learner's function is what later cells run


STATES = {
    "empty": State("…", "not written yet", "尚未作答", "#767676", False),
    "raised": State("✘", "raised an error", "运行出错", "#D55E00", False),
    "late": State("✘", "did not come back", "超时", "#D55E00", False),
    "wrong": State("✘", "not the same", "结果不一致", "#D55E00", False),
    "dear": State("▲", "right, and costs more", "结果正确，但代价更高", "#B57900", True),
    "right": State("✔", "right", "正确", "#009E73", True),
}


@dataclass(frozen=True)
class Verdict:
    """One judgement. `text` says what was found and what was looked at, `mistake` names the entry of
    slot.wrong that was met, `place` the line that failed."""

    slot: Slot
    state: str
    text: str
    text_zh: str = ""
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
        if self.text_zh:
            lines.append(f'<span lang="zh" style="opacity:.85">{html.escape(self.text_zh)}</span>')
        return (
            f'<div role="status" data-slot="{self.slot.id}" data-state="{self.state}" style="border-left:'
            f'4px solid {s.ink};padding:4px 10px;margin:.4em 0;background:rgba(128,128,128,.1)">'
            f'<span style="color:{s.ink};font-weight:bold" aria-hidden="true">{s.mark}</span> '
            f"<b>{html.escape(self.slot.title)}: {s.word}</b> "
            f'<span lang="zh">{s.word_zh}</span><br>{"<br>".join(lines)}</div>{self.below}'
        )

    def __str__(self) -> str:
        s = STATES[self.state]
        lines = [f"{s.mark} {self.slot.title} ({self.slot.id}): {s.word} {s.word_zh}"]
        if self.place is not None:
            lines.append(str(self.place))
        return "\n  ".join([*lines, self.text, *([self.text_zh] if self.text_zh else [])])

    __repr__ = __str__

"""Text of others in Markdown: shown, never obeyed."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

# ` and * and ~~ change the face, | ends a cell, $ is mathematics, and links come of ](, ://
_MARKS = re.compile(r"([\\`*|$]|~(?=~)|\](?=[(\[:])|:(?=//))")


def cell(text: object) -> str:
    """One line that is no markup, neither HTML's nor Markdown's: records come from others too."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return _MARKS.sub(r"\\\1", "".join(c for c in line if c.isprintable()))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table all of whose cells are escaped."""
    lines = [[cell(c) for c in heads], ["---"] * len(heads), *([cell(c) for c in r] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

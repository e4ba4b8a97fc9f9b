"""Markdown in two languages: sections of the twin know which section they translate, and which
state of it.

Under each heading of a twin stands a comment, which neither GitHub nor mkdocs shows:

    ## 切分
    <!-- source: splitting 3f2a9c1b7d0e -->

the key of the original's heading, and the fingerprint of that section once a translator has looked
at it. It stands in the text, so that two translators of one file never meet in a third one. What
lies between `<!-- NAME:begin -->` and `<!-- NAME:end -->` is written from the code, into twins too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .translations import fingerprint

MARK = re.compile(r"^<!-- source: (\S+)(?: ([0-9a-f]{12}))? -->\n?", re.MULTILINE)
_TABLE = re.compile(
    r"(<!-- [\w-]+:begin[^>]*-->\n).*?(<!-- [\w-]+:end -->)", re.DOTALL
)  # ci/tools/readme.py writes what lies between
_FENCE = re.compile(r"^(```|~~~)")
_CODE = re.compile(
    r"^```(?:text|shell|bash|sh|console|python|yaml|toml|json)\b[^\n]*\n(.*?)^```",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Section:
    """A heading with what follows it, up to the next heading; the first may have none."""

    level: int  # of the heading, 0 where there is none
    text: str  # heading and body, without the mark
    key: str = ""
    seal: str = ""

    @property
    def source(self) -> str:
        """The fingerprint of its text; tables that are written from the code do not count."""
        return fingerprint(_TABLE.sub(r"\1\2", self.text))

    def marked(self) -> str:
        """Its text with the mark under the heading."""
        if not self.key:
            return self.text
        mark = f"<!-- source: {self.key}{self.seal and ' ' + self.seal} -->\n"
        head, line, rest = self.text.partition("\n") if self.level else ("", "", self.text)
        return f"{head}{line}{mark}{rest}"


def without_marks(text: str) -> str:
    return MARK.sub("", text)


def read_sections(text: str) -> list[Section]:
    """The sections of a Markdown text. Of an original, keys are made of the headings; of a twin,
    they are those of its marks, "" where a section has none."""
    parts: list[list[str]] = [[]]
    fenced = False
    for line in text.splitlines(keepends=True):
        fenced ^= bool(_FENCE.match(line))
        if not fenced and re.match(r"#{1,6} ", line):
            parts.append([])
        parts[-1].append(line)
    twin, seen = bool(MARK.search(text)), dict[str, int]()
    found = []
    for part in ("".join(lines) for lines in parts):
        if not part.strip():
            continue
        level = len(part) - len(part.lstrip("#")) if part.startswith("#") else 0
        if mark := MARK.search(part):
            found.append(Section(level, MARK.sub("", part), mark[1], mark[2] or ""))
            continue
        key = "" if twin else _key(part.partition("\n")[0] if level else "top", seen)
        found.append(Section(level, part, key))
    return found


def _key(heading: str, seen: dict[str, int]) -> str:
    """The heading's words joined by hyphens; the second of the same words ends in -2."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\]\([^)]*\)", "]", heading).lower())
    key = "-".join(words)[:40].strip("-") or "section"
    seen[key] = seen.get(key, 0) + 1
    return key if seen[key] == 1 else f"{key}-{seen[key]}"


def code_of(text: str) -> list[str]:
    """Lines of a text's code blocks, without comments."""
    return [
        bare
        for block in _CODE.findall(text)
        for line in block.splitlines()
        if (bare := re.sub(r"(^|\s+)#.*", "", line).rstrip())
    ]


def differences(original: Sequence[Section], twin: Sequence[Section]) -> list[str]:
    """What keeps a Markdown file from being a twin: other sections, or other code in them."""
    ours, theirs = ({s.key: s for s in sections} for sections in (original, twin))
    found = [f"section {key}: missing" for key in ours if key not in theirs]
    found += [
        f"section {key or repr(section.text.splitlines()[0])}: "
        + ("the original has no such section" if key else "has no mark of its source")
        for key, section in theirs.items()
        if key not in ours
    ]
    if not found and [*ours] != [s.key for s in twin]:
        found.append("its sections stand in another order than the original's")
    for key, section in ours.items():
        other = theirs.get(key)
        if other is None:
            continue
        if section.level != other.level:
            found.append(f"section {key}: its heading is of another level than the original's")
        if code_of(section.text) != code_of(other.text):
            found.append(f"section {key}: its code differs from the original's")
    return found


def stale(original: Sequence[Section], twin: Sequence[Section]) -> list[str]:
    """Keys of the sections that are to be translated, or looked at again."""
    theirs = {s.key: s.seal for s in twin}
    return [s.key for s in original if s.key in theirs and theirs[s.key] != s.source]

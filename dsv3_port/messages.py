"""What a reader is told, in their language: Python's gettext over `locale/zh.po`.

`tr("text")` looks a text up when it is said, `trn` one that counts; `N_` marks a text that is kept, which
`told` looks up when it is said. Values go in by name, `tr("line {n}").format(n=n)`, so that a translation
may order them anew. Errors, names of operators, stages and files stay as they are. ci/tools/messages.py
finds the texts and what of them is not in Chinese yet.

Which language is in force is told by whoever meets the reader (engine/language.py says which):
`use`, once in a process.
"""

from __future__ import annotations

import ast
import contextlib
import gettext
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LOCALE = Path(__file__).with_name("locale")
LANGUAGES = ("en", "zh")
_FIELD = re.compile(r"\{\d\}")  # an f-string of a notebook: its values have no names
_ENTRY = re.compile(r'^(#,[^\n]*fuzzy|(?:msgid|msgid_plural|msgstr(?:\[0\])?) ".*"|".*")$')


def _pattern(message: str) -> re.Pattern[str]:
    """What a message with numbered fields, {0} {1}, may look like."""
    return re.compile("(.+?)".join(map(re.escape, _FIELD.split(message))))


class Catalogue(gettext.NullTranslations):
    """The messages of one .po file; what is not in it stays English."""

    def __init__(self, messages: dict[str, str]) -> None:
        super().__init__()
        self.messages = messages
        numbered = sorted((m for m in messages if _FIELD.search(m)), key=len, reverse=True)
        self.patterns = [(_pattern(m), messages[m]) for m in numbered if messages[m]]

    def with_values(self, text: str) -> str:
        """A text that is there but for its values: "3 cached steps" by "{0} cached steps"."""
        if text in self.messages:
            return self.gettext(text)
        for pattern, form in self.patterns:
            if found := pattern.fullmatch(text):
                return form.format(*map(self.gettext, found.groups()))
        return text

    def gettext(self, message: str) -> str:
        return self.messages.get(message) or message

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        return self.messages.get(msgid1) or super().ngettext(msgid1, msgid2, n)


def read_po(text: str) -> dict[str, str]:
    """Message -> translation. Chinese has one form for all numbers, so a plural's is msgstr[0];
    entries marked fuzzy are left out, as gettext's own tools do."""
    found: dict[str, str] = {}
    entry: dict[str, str] = {}
    part, fuzzy = "", False

    def close() -> None:
        if entry.get("msgid") and not fuzzy:
            found[entry["msgid"]] = entry.get("msgstr") or entry.get("msgstr[0]") or ""

    for line in text.splitlines():
        if not _ENTRY.match(line):
            continue
        if line.startswith("#,") or line.startswith("msgid ") and "msgid" in entry:
            if entry:
                close()
            entry, fuzzy = {}, line.startswith("#,")
        word, _, quoted = line.partition(' "') if line[0] == "m" else ("", "", line[1:])
        part = word or part
        if not line.startswith("#,"):
            entry[part] = entry.get(part, "") + ast.literal_eval(f'"{quoted}')
    close()
    return found


@cache
def catalogue(language: str) -> Catalogue:
    file = LOCALE / f"{language}.po"
    return Catalogue(read_po(file.read_text(encoding="utf-8"))) if file.is_file() else Catalogue({})


_language = "en"


def language() -> str:
    """en or zh: what `tr` says."""
    return _language


def use(name: str) -> None:
    global _language
    _language = name


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Within it another language is in force."""
    before = language()
    use(name)
    try:
        yield
    finally:
        use(before)


def tr(message: str) -> str:
    """A text that is written right here, never in an f-string: babel must see it."""
    return catalogue(_language).gettext(message)


def told(text: str) -> str:
    """A text that `N_` marked, or that stands in the course's data or in a notebook's code, where it is
    said."""
    return catalogue(_language).with_values(text)


def trn(one: str, many: str, n: int) -> str:
    return catalogue(_language).ngettext(one, many, n)


def N_(message: str) -> str:
    """The text itself, marked for the catalogue."""
    return message


def sentences(*parts: str) -> str:
    """Sentences one after the other, each with a full stop of its language."""
    stop, gap = ("。", "") if _language == "zh" else (".", " ")
    return gap.join(p if p[-1] in ".?!。？！" else p + stop for p in parts if p)

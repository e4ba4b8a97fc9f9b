"""What of a text is words: is a twin's text translated, and what of the original is not in it?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from dsv3_port.course.translations import fingerprint

_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_NOT_PROSE = re.compile(
    r"```.*?```|<!--.*?-->|`[^`]*`|!?\[[^\]]*\]\([^)]*\)|<[^>]+>|\$[^$]*\$|^\w+:\S+$",
    re.DOTALL | re.MULTILINE,
)


def prose(text: str, code: bool = False) -> str:
    """What there is to translate in a text: no code, links, tables from the code, formulas."""
    if code:
        return " ".join(re.findall(r'#.*|"""[^"]*"""', text))
    return _NOT_PROSE.sub(
        " ", re.sub(r"(<!-- [\w-]+:begin).*?(:end -->)", "", text, flags=re.DOTALL)
    )


def still_english(original: str, twin: str, code: bool = False) -> str:
    """Why a twin's text cannot be sealed; "" where it can."""
    said = re.findall(r"[a-z]{3,}", prose(original, code))
    if len(said) < 2:
        return ""
    if fingerprint(original) == fingerprint(twin):
        return "still the English text"
    return "" if _CHINESE.search(prose(twin, code)) else "holds no Chinese"


_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-+|#>]|\* |\d+\. ))")
_INLINE = re.compile(r"(`+).+?\1|\$[^$\n]+\$", re.DOTALL)


def dead_stars(text: str) -> Iterator[str]:
    """Emphasis that stays stars on a page: CommonMark closes none between punctuation and a letter, and
    Chinese has no space there, as in **甲（乙）**丙."""
    for block in _BLOCK.split(_FENCE.sub("", text)):
        bare = _INLINE.sub(lambda m: f"`{'x' * (len(m[0]) - 2)}`", block)
        for width in (1, 2):
            runs = [*re.finditer(rf"(?<![*\\])\*{{{width}}}(?!\*)", bare)]
            for k, run in enumerate(runs if len(runs) % 2 == 0 else []):
                before, after = bare[: run.start()][-1:] or " ", bare[run.end() :][:1] or " "
                inner, outer = (before, after) if k % 2 else (after, before)
                if _CHINESE.match(outer) and unicodedata.category(inner)[0] in "PSZ":
                    yield block[max(run.start() - 12, 0) : run.end() + 12].replace("\n", " ")


_WIDE = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"  # Chinese characters and marks
_SOFT = re.compile(f"^(?!#)(.*[{_WIDE}])\n *(?=[{_WIDE}])", re.MULTILINE)


def joined(text: str) -> str:
    """The text without line breaks between two Chinese characters: a page shows each as a space."""
    parts = re.split(r"(^ *```.*?^ *```[^\n]*$)", text, flags=re.DOTALL | re.MULTILINE)
    while (made := [p if k % 2 else _SOFT.sub(r"\1", p) for k, p in enumerate(parts)]) != parts:
        parts = made
    return "".join(parts)


def to_look_at(original: str, twin: str) -> Iterator[str]:
    """Code and numbers of the original that the twin does not have: often right, worth a look."""
    for kind, pattern in (("code", r"`[^`\n]+`"), ("number", r"(?<![\w.])\d[\d,.]*\d|\d+")):
        have = set(re.findall(pattern, twin))
        left = [w for w in dict.fromkeys(re.findall(pattern, original)) if w not in have]
        if left:
            yield f"{kind} of the original that is not in the twin: {', '.join(left)}"

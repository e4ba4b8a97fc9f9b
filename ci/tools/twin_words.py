"""What of a text is words: is a twin's text translated, and what of the original is not in it?"""

from __future__ import annotations

import re
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


def to_look_at(original: str, twin: str) -> Iterator[str]:
    """Code and numbers of the original that the twin does not have: often right, worth a look."""
    for kind, pattern in (("code", r"`[^`\n]+`"), ("number", r"(?<![\w.])\d[\d,.]*\d|\d+")):
        have = set(re.findall(pattern, twin))
        left = [w for w in dict.fromkeys(re.findall(pattern, original)) if w not in have]
        if left:
            yield f"{kind} of the original that is not in the twin: {', '.join(left)}"

"""What is said in the tables that readme.py writes. Headings, and the cells of SPOKEN's columns, stand in
the catalogue of messages; in a Chinese page each cell is what the catalogue says for it, and names and
numbers stay."""

from __future__ import annotations

import re
from collections.abc import Iterator

# columns whose cells are sentences or words of ours, by table
SPOKEN: dict[str, tuple[str, ...]] = {
    "settings": ("values", "meaning"),
    "layers": ("what lives there",),
    "versions": ("CANN", "pairing from", "what was run, where"),
    "signatures": ("GE converter",),
    "hostnpu-refused": ("what it stands for",),
    "hostnpu-vendor": ("outcome", "what that is", "why"),
    "hostnpu-rules": ("rule", "source", "device enforces", "host NPU enforces"),
    "operator-checks": ("the device's side",),
    "npu-points": ("said by",),
    "npu-gaps": ("mode",),
    "npu-fits": ("operator",),
    "npu-decode": ("NPU kernel", "by"),
    "npu-prefill": ("NPU kernel", "by"),
    "speed": ("start of a process",),
}
# cells and lines with values in them, and words inside of such; forecast's and bench's own are theirs
PATTERNS = (
    *("same", "fits the call", "**differs**", "absent", "C++ between kernels"),
    "[{0}] {1}: not there: {2}",
    "{0}, {1} tokens",
    "{0} decode over {1}",
    "{0} prefill over {1}",
    "beyond its points: {0} {1}: the nearest point is {2} times away",
    "beyond its points: {0} MB are {1} times the largest point",
    "{0} of the measured time; errors of its kernels add up to {1}",
    "{0} files, {1} tests; {2} ran, of which {3} ({4}) pass, are refused by name or cannot pass anywhere.",
    "{0} and {1} more",
)
# names and units that are headings or cells, the same in every language
KEPT = re.compile(
    r"`.*`|MB|GB/s|TFLOP/s|torch|torch_npu|CANN|Python|GFLOP|[\d.]+(?:post\d+|rc\d+|X)?"
    r"|[A-Z]\w*|FP8.*|AssertionError.*|TypeError.*"
)
_WORD = re.compile(r"[A-Za-z]{2}")
_BAR = re.compile(r"(?<!\\)\|")
_PATTERN_ONLY = re.compile(r"^(?:beyond its points: .*\d|\d+% of the measured time)")


def rows(table: str) -> Iterator[tuple[list[str], list[str]]]:
    """(headings, cells) of each row; of a row of headings, twice the same."""
    heads: list[str] = []
    lines = table.split("\n")
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith("|") or line.startswith(("|---", "| ---")):
            continue
        cells = [part.strip() for part in _BAR.split(line)[1:-1]]
        if following.startswith(("|---", "| ---")):
            heads = cells
        yield heads, cells


def words(name: str, table: str) -> Iterator[str]:
    """What the catalogue must have for this table, which is in English."""
    for heads, cells in rows(table):
        for head, cell in zip(heads, cells, strict=True):
            said = heads is cells or head in SPOKEN.get(name, ())
            if said and _WORD.search(cell) and not KEPT.fullmatch(cell):
                if not _PATTERN_ONLY.match(cell):
                    yield cell


def in_language(name: str, table: str) -> str:
    """The table as the language in force says it. A cell outside of SPOKEN's columns is a name, though
    the catalogue may have such a word, unless it is a pattern's."""
    from dsv3_port.messages import catalogue, language, told

    known, lines, found = catalogue(language()).messages, [], rows(table)
    spoken = {told(head) for head in SPOKEN.get(name, ())}.union(SPOKEN.get(name, ()))
    for line in table.split("\n"):
        if not line.startswith("|"):
            lines.append(told(line))
            continue
        if line.startswith(("|---", "| ---")):
            lines.append(line)
            continue
        heads, cells = next(found)
        parts = _BAR.split(line)
        for k, (head, cell) in enumerate(zip(heads, cells, strict=True), 1):
            said = heads is cells or head in spoken or cell not in known
            if said and _WORD.search(cell) and not KEPT.fullmatch(cell):
                parts[k] = parts[k].replace(cell, told(cell))
        lines.append("|".join(parts))
    return "\n".join(lines)

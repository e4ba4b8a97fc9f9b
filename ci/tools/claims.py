"""What Markdown of a notebook may not say: how fast something is. Outcomes of a run come from the run
(`lab.say`), numbers of others from a cell tagged `cited`.

Folded answers (`<details>`) may name a number: the next code cell asserts it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
_FOLDED = re.compile(r"<details>.*?</details>", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(
    r"\d[\d.,]*\s?(?:ms|µs|us|×|%|times)(?![\w*])|(?<![\w*])×\s?\d[\d.]*(?=[\s.,;])"
)
_WORD = re.compile(r"\b(?:faster|slower|gains?|gained|loses|speed-?up)\b", re.IGNORECASE)
# a product of sizes, "7 × 128", is no factor of time
_PRODUCT = re.compile(r"\d[\d.,]*\s?×\s?[\d(A-Z]|[A-Z)\d]\s?×\s?\d|[A-Z]\s?×\s?[A-Z]")


def claims(text: str) -> list[str]:
    """The words of one Markdown cell that state an outcome."""
    plain = _PRODUCT.sub(" ", _FOLDED.sub(" ", _CODE.sub(" ", text)))
    return [m[0].strip() for pattern in (_NUMBER, _WORD) for m in pattern.finditer(plain)]


def check_claims(cells: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    for cell in cells:
        if cell.get("cell_type") != "markdown":
            continue
        if {"cited", "card"} & set(cell.get("metadata", {}).get("tags", [])):
            continue
        source = cell.get("source", "")
        for word in claims("".join(source) if isinstance(source, list) else source):
            yield (
                cell,
                (
                    f"states an outcome ({word!r}): let the run say it (lab.say), or tag the cell 'cited' "
                    "and name source, device and date"
                ),
            )

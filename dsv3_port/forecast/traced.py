"""A number of an NPU stands with the rows that it rests on, and is checked against them.

In a text: `11.4 µs [k81 + k362]`, `22.1 µs [2 × k209]`, `5.5 ms [122 × k182]`, with a scale
`36.0 µs [k408 × 0.88]`; a range `(10.7–15.6)` before the bracket is of the same rows' smallest and
largest. What a fit or a composition says has the sign ~ (`~64 µs [~RmsNorm]`) and must be handed in
as `Traced`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import PortError
from .kernels import by_id, forward, gaps, published

_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_TIME = re.compile(rf"(~?)({_NUMBER})(?:\s*(?:–|to|and|→)\s*~?({_NUMBER}))?\s*(µs|us|ms)\b")
_TAG = re.compile(r"\[(~?)([^\[\]]*)\]")
_TERM = re.compile(
    rf"(?:({_NUMBER})\s*×\s*)?([kgfp]\d+)(?:\s*×\s*({_NUMBER}))?(?:\s*×\s*({_NUMBER}))?"
)
_RANGE = re.compile(rf"\(({_NUMBER})–({_NUMBER})\)")


@dataclass(frozen=True)
class Traced:
    """A number that no row holds as it is: of a fit, or composed. `tag`: what its bracket says."""

    value: float
    unit: str  # µs or ms
    tag: str
    rows: tuple[str, ...]


def times_of(name: str) -> list[float]:
    """Every time of one row in µs: median first, then smallest and largest (or p10, p90, layer,
    step). PortError for an id that no file has."""
    if k := by_id().get(name):
        return [k.median, k.low, k.high]
    for g in gaps():
        if g.id == name:
            more = [g.layer_us or g.wait, 1e3 * g.step_ms if g.step_ms else g.wait]
            return [g.wait, g.wait_p10, g.wait_p90, g.duration, *more]
    for p in published():
        if p.id == name and p.unit in ("ms", "µs"):
            return [p.value * (1e3 if p.unit == "ms" else 1.0)]
    for f in forward():
        if f.id == name and f.us is not None:
            return [f.us]
    raise PortError(f"npu-kernels: there is no time in row {name!r}")


def sums(formula: str) -> list[float]:
    """`2 × k209 + k81 × 0.5` in µs: by medians, by smallest, by largest; other columns of a single
    row besides."""
    terms = [part.strip() for part in formula.replace(";", "+").split("+")]
    found: list[list[float]] = []
    for term in terms:
        match = _TERM.fullmatch(term)
        if match is None:
            raise PortError(f"npu-kernels: {term!r} is not a row such as 2 × k209")
        factor = 1.0
        for text in (match[1], match[3], match[4]):
            factor *= float(text.replace(",", "")) if text else 1.0
        found.append([factor * t for t in times_of(match[2])])
    if len(found) == 1:
        return found[0]
    return [sum(column) for column in zip(*(f[:3] for f in found), strict=True)]


def _close(said: str, value: float) -> bool:
    digits = len(said.partition(".")[2])
    number = float(said.replace(",", ""))
    return abs(number - value) <= 0.5001 * 10**-digits + 0.004 * abs(value)


def problems(text: str, extra: Sequence[Traced] = ()) -> list[str]:
    """Each time in the text that no row, citation or `extra` supports, as a sentence; [] is well."""
    flat = " ".join(text.split())
    found = []
    for match in _TIME.finditer(flat):
        tag = _TAG.search(flat, match.end())
        between = flat[match.end() : tag.start()] if tag else ""
        said = [n for n in (match[2], match[3]) if n]
        where = f"{match[0]!r} in '…{flat[max(0, match.start() - 30) : match.end() + 20]}…'"
        if tag is None or len(_RANGE.sub("", between)) > 60:
            found.append(f"{where} names no row")
            continue
        if ranged := _RANGE.search(between):
            said += [ranged[1], ranged[2]]
        scale = 1e3 if match[4] == "ms" else 1.0
        try:
            values = _supported(tag[2], bool(tag[1]), extra)
        except PortError as error:
            found.append(f"{where}: {error}")
            continue
        missing = [n for n in said if not any(_close(n, v / scale) for v in values)]
        if missing:
            found.append(f"{where}: {', '.join(missing)} is not what [{tag[2]}] says")
    return found


def _supported(tag: str, derived: bool, extra: Sequence[Traced]) -> list[float]:
    if not derived:
        return sums(tag)
    known = [t for t in extra if t.tag == tag and t.rows]
    if not known:
        raise PortError(f"npu-kernels: nothing derived is called {tag!r}")
    return [t.value * (1e3 if t.unit == "ms" else 1.0) for t in known]


def check(texts: Iterable[str], extra: Sequence[Traced] = ()) -> None:
    """PortError with every unsupported number of the texts."""
    if wrong := [p for text in texts for p in problems(text, extra)]:
        raise PortError("an NPU time without a row: " + "; ".join(wrong))

"""The table of part prompts of ci/bench/speed.py: prefill over the length of the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from .cases import FULL, Bench, Case
from .results_table import seconds_text

SCORES, CHUNKED = "scores in memory", "by chunks"  # beside the full port
PEAK = "peak_bytes_"  # and a length: names of facts
PROMPT_HEADS = (
    "prefill of one prompt",
    "scores in memory",
    "whole",
    "by chunks",
    "whole is faster by",
    "by chunks",
)


def prompt_name(name: str) -> str:
    """A variant of part prompts in words."""
    return "whole" if name == FULL else name


def peaks_of(case: Case, name: str) -> dict[int, float]:
    """Tokens -> the most bytes that this variant held at one time, of a case of part prompts."""
    facts = case.facts.get(name, {})
    found = {int(k.removeprefix(PEAK)): v for k, v in facts.items() if k.startswith(PEAK)}
    return dict(sorted(found.items()))


def prompt_rows(found: Sequence[Bench]) -> list[tuple[str, ...]]:
    """Of each length in part prompts: what, time and most memory of each variant, and how many times
    faster than with the scores in memory; – where those did not fit."""
    rows: list[tuple[str, ...]] = []
    for case in (c for b in found if b.part == "prompts" for c in b.cases):
        for length in sorted({r.tokens for r in case.records}):
            results = case.results.select(tokens=length)
            cells = [
                f"{seconds_text(results.get(n).median)}, {peaks_of(case, n)[length] / 1e6:,.0f} MB"
                if n in results.names
                else "–"
                for n in (SCORES, FULL, CHUNKED)
            ]
            there = SCORES in results.names
            factors = [str(results.ratio(SCORES, n)) if there else "–" for n in (FULL, CHUNKED)]
            r = case.records[0]
            rows.append((f"{r.profile} {r.dtype}, {length:,} tokens", *cells, *factors))
    return rows

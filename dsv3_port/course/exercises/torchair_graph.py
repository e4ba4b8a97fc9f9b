"""Exercises of 07_torchair_graph."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from . import Exercise

# ---- which lengths to compile for ----------------------------------------------------------------

PROMPT_LENGTHS = (35, 90, 118, 120, 131, 250, 480, 500, 760, 900)  # one request each
MOST_GRAPHS = 3


def padding_waste(lengths: Any, prompts: Any = PROMPT_LENGTHS) -> int:
    """Padded positions that are computed for nothing, each prompt at the shortest length that holds
    it."""
    return sum(min(n for n in lengths if n >= p) - p for p in prompts)


def _best() -> tuple[int, ...]:
    sets = (c for c in combinations(PROMPT_LENGTHS, MOST_GRAPHS) if max(c) == max(PROMPT_LENGTHS))
    return min(sets, key=padding_waste)


_LENGTHS = {
    "one length": (
        [1024],
        "One graph for all prompts is INPUT_MAX_LEN as the old sample has it: correct, and most of what is "
        "computed is padding. You may compile three.",
    ),
    "powers of two": (
        [128, 256, 1024],
        "Powers of two ignore the traffic: 131 tokens pad to 256 and 480 to 1024. Choose lengths that "
        "occur: a graph length just below a cluster's longest prompt is never useful.",
    ),
    "a graph each": (
        sorted(PROMPT_LENGTHS),
        "No padding at all, and a compilation for every new length, for ever: the recompilation storm of "
        "this notebook. Three graphs are allowed.",
    ),
    "longest does not fit": (
        [120, 250, 500],
        "The longest prompt has 900 tokens and fits into none of your lengths; pad_left refuses "
        "it. The largest length must hold the longest prompt.",
    ),
}


def _check_lengths(answer: Any) -> str | None:
    try:
        lengths = sorted({int(n) for n in answer})
    except (TypeError, ValueError):
        return "Give a list of up to three prompt lengths, such as [128, 512, 1024]."
    if not lengths or lengths[0] < 1:
        return "Give one positive length at least."
    if len(lengths) > MOST_GRAPHS:
        return "a graph each"
    if lengths[-1] < max(PROMPT_LENGTHS):
        return "longest does not fit"
    if len(lengths) == 1:
        return "one length"
    if lengths == _LENGTHS["powers of two"][0]:
        return "powers of two"
    waste, best = padding_waste(lengths), padding_waste(_best())
    if waste <= best:
        return None
    return (
        f"Your lengths compute {waste} padded positions; {best} is possible with three graphs. Look at the gap "
        "above each prompt."
    )


EXERCISES = (
    Exercise(
        id="07.prompt_lengths",
        notebook="07_torchair_graph",
        title="Three graphs for ten prompts",
        minutes=10,
        difficulty=2,
        check=_check_lengths,
        wrong=dict(_LENGTHS),
        solution="""
from itertools import combinations
from dsv3_port.course.exercises.torchair_graph import PROMPT_LENGTHS, padding_waste

sets = [c for c in combinations(PROMPT_LENGTHS, 3) if max(c) == max(PROMPT_LENGTHS)]
answer = list(min(sets, key=padding_waste))
""",
    ),
)

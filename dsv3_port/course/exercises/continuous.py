"""Exercises of 14_slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...count.batching import in_batches, in_slots
from . import Exercise

Steps = Callable[[Sequence[int], int], int]


def _turns(tokens: Sequence[int], rows: int) -> int:
    """Requests dealt to the rows in turn, whoever is idle."""
    return max(sum(n - 1 for n in tokens[row::rows]) for row in range(rows))


_FORMS: dict[str, tuple[Steps, str]] = {
    "batch after batch": (
        lambda tokens, rows: in_batches(tokens, rows).steps,
        "That is static batching: nobody begins before the longest of the batch has ended. Here a row that is "
        "done takes the next request.",
    ),
    "prefill counted as a step": (
        lambda tokens, rows: in_slots([n + 1 for n in tokens], rows).steps,
        "A request's first token comes from its prefill, not from a decode step: n tokens take n - 1 steps.",
    ),
    "work shared out evenly": (
        lambda tokens, rows: -(-sum(n - 1 for n in tokens) // rows),
        "As if rows could share a text: a request stays in its row, and at the end some rows have nobody.",
    ),
    "the longest alone": (
        lambda tokens, rows: max(n - 1 for n in tokens),
        "No schedule takes fewer steps than the longest text, but others stand in its row before it, or behind "
        "it.",
    ),
    "dealt in turn": (
        _turns,
        "You deal the requests out to the rows beforehand. Who comes next goes to the row that is done first, "
        "and that depends on what ran in it.",
    ),
}
_CASES = (((9, 3, 4, 1, 5), 2), ((2, 12, 2, 2, 9, 1, 4), 3), ((7,), 4))


def _check(answer: Any) -> str | None:
    got = [int(answer(list(tokens), rows)) for tokens, rows in _CASES]
    if got == [in_slots(tokens, rows).steps for tokens, rows in _CASES]:
        return None
    for name, (form, _) in _FORMS.items():
        if got == [form(*case) for case in _CASES]:
            return name
    at = next(k for k, case in enumerate(_CASES) if got[k] != in_slots(*case).steps)
    tokens, rows = _CASES[at]
    return f"{list(tokens)} tokens in {rows} rows take {in_slots(tokens, rows).steps} steps; yours {got[at]}."


EXERCISES = (
    Exercise(
        id="14.steps",
        notebook="14_slots",
        title="Decode steps that a schedule takes",
        minutes=10,
        difficulty=2,
        check=_check,
        function="steps(tokens, rows) that returns a number.",
        wrong=dict(_FORMS),
        solution="""
def steps(tokens, rows):
    busy = [0] * rows                     # steps until each row is idle
    for n in tokens:
        first = busy.index(min(busy))     # the row that is idle first
        busy[first] += n - 1              # its first token came from the prefill
    return max(busy)

answer = steps
""",
    ),
)

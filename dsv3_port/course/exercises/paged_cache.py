"""Exercises of 12_paged_cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import Exercise

Needed = Callable[[Sequence[int], Sequence[int], int, int], Any]


def _up(n: int, size: int) -> int:
    return -(-n // size)


def _needed(held: Sequence[int], lengths: Sequence[int], new: int, size: int) -> list[int]:
    return [max(0, _up(n + new, size) - h) for h, n in zip(held, lengths, strict=True)]


def _each(form: Callable[[int, int, int, int], int]) -> Needed:
    return lambda held, lengths, new, size: [
        form(h, n, new, size) for h, n in zip(held, lengths, strict=True)
    ]


_FORMS: dict[str, tuple[Needed, str]] = {
    "rounded down": (
        _each(lambda h, n, new, size: max(0, (n + new) // size - h)),
        "You round down: 17 rows in blocks of 16 need two blocks, and the 17th of yours has no place.",
    ),
    "a block too early": (
        _each(lambda h, n, new, size: max(0, (n + new) // size + 1 - h)),
        "16 rows fill a block of 16 to its end, and yours takes the next one already. It would be held for "
        "nothing until the next row comes, or for ever where the text ends there.",
    ),
    "what is held forgotten": (
        _each(lambda h, n, new, size: _up(n + new, size)),
        "You count all blocks that the sequence needs. It holds some of them already.",
    ),
    "the new rows alone": (
        _each(lambda h, n, new, size: _up(new, size)),
        "The last block of a sequence is seldom full: new rows go there first.",
    ),
    "less than none": (
        _each(lambda h, n, new, size: _up(n + new, size) - h),
        "A sequence that holds more than it needs takes none: 0, not less.",
    ),
}
_CASES = (
    ((1, 2, 0, 3), (15, 32, 0, 20), 1, 16),
    ((1, 1, 1, 4), (16, 9, 3, 20), 7, 16),
    ((2, 0), (17, 0), 40, 16),
)


def _check(answer: Any) -> str | None:
    got = []
    for case in _CASES:
        found = answer(*case)
        if not hasattr(found, "__len__") or len(found) != len(case[0]):
            return "needed must return one number for each sequence."
        got.append([int(n) for n in found])
    if got == [_needed(*case) for case in _CASES]:
        return None
    for name, (form, _) in _FORMS.items():
        if got == [form(*case) for case in _CASES]:
            return name
    held, lengths, new, size = _CASES[0]
    return (
        f"Four sequences hold {list(held)} blocks of {size} and {list(lengths)} rows. For {new} row more they "
        f"take {_needed(*_CASES[0])}; yours {got[0]}."
    )


EXERCISES = (
    Exercise(
        id="12.needed",
        notebook="12_paged_cache",
        title="Blocks to take for the next rows",
        minutes=8,
        difficulty=2,
        check=_check,
        function="needed(held, lengths, new, size) that returns a number for each sequence.",
        wrong=dict(_FORMS),
        solution="""
def needed(held, lengths, new, size):
    found = []
    for h, n in zip(held, lengths):
        blocks = -(-(n + new) // size)        # rounded up
        found.append(max(0, blocks - h))
    return found

answer = needed
""",
    ),
)

"""Exercises of 16_one_launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...hostnpu.formats import to_nz
from . import Exercise

Byte = Callable[[int, int, int, int], Any]
C0, ROWS = 32, 16


def _across(row: int, column: int, rows: int, columns: int) -> int:
    fractal = row // ROWS * -(-columns // C0) + column // C0
    return (fractal * ROWS + row % ROWS) * C0 + column % C0


def _down_within(row: int, column: int, rows: int, columns: int) -> int:
    fractal = column // C0 * -(-rows // ROWS) + row // ROWS
    return (fractal * C0 + column % C0) * ROWS + row % ROWS


def _sixteen(row: int, column: int, rows: int, columns: int) -> int:
    fractal = column // 16 * -(-rows // ROWS) + row // ROWS
    return (fractal * ROWS + row % ROWS) * 16 + column % 16


def _no_zeros(row: int, column: int, rows: int, columns: int) -> int:
    return column // C0 * rows * C0 + row * C0 + column % C0


def _rounded_down(row: int, column: int, rows: int, columns: int) -> int:
    fractal = column // C0 * (rows // ROWS) + row // ROWS
    return (fractal * ROWS + row % ROWS) * C0 + column % C0


_FORMS: dict[str, tuple[Byte, str]] = {
    "plain order": (
        lambda row, column, rows, columns: row * columns + column,
        "That is ND: one row behind the other. Which fractal of 16 rows and 32 columns is the element in, and "
        "how many fractals lie before it?",
    ),
    "fractals across": (
        _across,
        "You go on to the right, along the rows. The next fractal is the one below; only at the end of the "
        "rows do the next 32 columns begin.",
    ),
    "down within a fractal": (
        _down_within,
        "Within a fractal a row's 32 bytes lie together, and 16 such rows follow each other. Only the fractals "
        "go down.",
    ),
    "16 columns": (
        _sixteen,
        "A row of a fractal has 32 bytes. 16 columns are that for types of two bytes; of int8 there are 32.",
    ),
    "no zeros behind the rows": (
        _no_zeros,
        "You count the rows that are there. Fractals are whole: behind the last row zeros fill up 16.",
    ),
    "rounded down": (
        _rounded_down,
        "The fractals below each other cover all rows: a rest of fewer than 16 has one of its own. Round up.",
    ),
}
_SHAPES = ((20, 40), (48, 70), (16, 32), (3, 100))


def _every(form: Byte) -> list[list[int]]:
    """The byte of each element, row by row, for all shapes."""
    return [
        [int(form(r, c, rows, columns)) for r in range(rows) for c in range(columns)]
        for rows, columns in _SHAPES
    ]


def _due() -> list[list[int]]:
    """By what the host NPU stores: where each element's number is found."""
    found = []
    for rows, columns in _SHAPES:
        numbers = torch.arange(1, rows * columns + 1).view(rows, columns)
        at = to_nz(numbers, C0).flatten()
        found.append(torch.empty(rows * columns).long())
        found[-1][at[at > 0] - 1] = (at > 0).nonzero().flatten()
    return [one.tolist() for one in found]


def _check(answer: Any) -> str | None:
    got, due = _every(answer), _due()
    if got == due:
        return None
    for name, (form, _) in _FORMS.items():
        if got == _every(form):
            return name
    for (rows, columns), mine, right in zip(_SHAPES, got, due, strict=True):
        if mine != right:
            at = next(i for i, (a, b) in enumerate(zip(mine, right, strict=True)) if a != b)
            return (
                f"Of [{rows}, {columns}] element [{at // columns}, {at % columns}] lies at byte {right[at]}; "
                f"yours says {mine[at]}."
            )
    return None


EXERCISES = (
    Exercise(
        id="16.byte",
        notebook="16_one_launch",
        title="The byte of an element in FRACTAL_NZ",
        minutes=8,
        difficulty=2,
        check=_check,
        function="byte(row, column, rows, columns) that returns a number.",
        wrong=dict(_FORMS),
        solution="""
def byte(row, column, rows, columns):
    down = -(-rows // 16)                               # fractals below each other
    fractal = column // 32 * down + row // 16           # whole ones that lie before it
    return (fractal * 16 + row % 16) * 32 + column % 32

answer = byte
""",
    ),
)

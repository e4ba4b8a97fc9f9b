"""Checks for a notebook's exercises: right, or a hint that fits the mistake. The exercises are in
exercises/."""

from __future__ import annotations

import html
import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

from ..errors import PortError
from ..messages import told, tr
from . import exercises as _package
from .exercises import Exercise

__all__ = ["EXERCISES", "Exercise", "Verdict", "check", "of_notebook"]


def _collect() -> dict[str, Exercise]:
    found: dict[str, Exercise] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(_package.__path__)):
        for exercise in importlib.import_module(f"{_package.__name__}.{module}").EXERCISES:
            if exercise.id in found:
                raise AssertionError(f"two exercises are called {exercise.id}")
            found[exercise.id] = exercise
    return dict(sorted(found.items()))


EXERCISES: dict[str, Exercise] = _collect()


@dataclass(frozen=True)
class Verdict:
    """What the learner sees. `ok` is None while nothing was answered; `mistake` names the usual one
    that was met."""

    exercise: Exercise
    ok: bool | None
    text: str
    mistake: str = ""

    def __bool__(self) -> bool:
        return bool(self.ok)

    @property
    def _mark(self) -> tuple[str, str]:
        return {True: ("✔", "#009E73"), False: ("✘", "#D55E00"), None: ("…", "#808080")}[self.ok]

    def _repr_html_(self) -> str:
        mark, ink = self._mark
        return (
            f'<div style="border-left:4px solid {ink};padding:4px 10px;margin:.4em 0;background:'
            f'rgba(128,128,128,.1)"><b style="color:{ink}">{mark}</b> <b>{html.escape(told(self.exercise.title))}</b> '
            f"{html.escape(self.text)}</div>"
        )

    def __repr__(self) -> str:
        return f"{self._mark[0]} {told(self.exercise.title)}: {self.text}"


def check(exercise_id: str, answer: Any) -> Verdict:
    """Judge an answer. `...` or None counts as not yet answered; an answer that raises gets its
    error as the hint."""
    if exercise_id not in EXERCISES:
        raise PortError(f"unknown exercise {exercise_id!r}; there are {', '.join(EXERCISES)}")
    exercise = EXERCISES[exercise_id]
    if answer is ... or answer is None:
        return Verdict(
            exercise, None, tr("No answer yet: replace the three dots and run the cell again.")
        )
    if exercise.function and not callable(answer):
        give = tr("Give a function {described}").format(described=told(exercise.function))
        return Verdict(exercise, False, give)
    try:
        result = exercise.check(answer)
    except Exception as error:  # the learner's code may raise anything
        raised = tr("Your answer raised {error}").format(error=f"{type(error).__name__}: {error}")
        return Verdict(exercise, False, raised)
    if result is None:
        return Verdict(exercise, True, tr("Right."))
    if result in exercise.wrong:
        return Verdict(exercise, False, told(exercise.wrong[result][1]), result)
    return Verdict(exercise, False, result)


def of_notebook(notebook: str) -> list[Exercise]:
    """The exercises of one notebook, in the order of their ids."""
    return [e for e in EXERCISES.values() if e.notebook == notebook]

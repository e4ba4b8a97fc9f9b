"""Exercises of 13_mtp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Exercise

Chances = Callable[[Tensor, Tensor], Tensor]


def _residual(p: Tensor, q: Tensor) -> Tensor:
    more = (p - q).clamp(min=0)
    return more / more.sum()


def _distance(p: Tensor, q: Tensor) -> Tensor:
    return (p - q).abs() / (p - q).abs().sum()


_FORMS: dict[str, tuple[Chances, str]] = {
    "the model's own": (
        lambda p, q: p,
        "Where q is larger than p, drafting alone gives the token often enough. How often may a refusal "
        "give it as well?",
    ),
    "the draft's": (
        lambda p, q: q,
        "After a refusal you draw from the drafts' own distribution: tokens that are drafted too seldom "
        "never catch up.",
    ),
    "less than nothing": (
        lambda p, q: p - q,
        "Some of your probabilities are below 0: where q is larger than p. There nothing is missing.",
    ),
    "not one together": (
        lambda p, q: (p - q).clamp(min=0),
        "The parts are right, and they add up to less than 1: a distribution is divided by its sum.",
    ),
    "the distance": (
        _distance,
        "You give to the tokens that were drafted too often as much as to those that were drafted too "
        "seldom: which side of the difference is missing?",
    ),
    "the other way round": (
        lambda p, q: _residual(q, p),
        "You add where the drafts gave too much. Missing is what the model gives more than they do.",
    ),
}
_CASES = tuple(
    (torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64))
    for p, q in (
        ((0.5, 0.3, 0.2, 0.0), (0.2, 0.5, 0.2, 0.1)),
        ((0.1, 0.6, 0.2, 0.1), (0.7, 0.1, 0.1, 0.1)),
        ((0.25, 0.25, 0.5, 0.0), (0.0, 0.0, 0.3, 0.7)),
    )
)


def _check(answer: Any) -> str | None:
    got = []
    for p, q in _CASES:
        found = answer(p.clone(), q.clone())
        if not isinstance(found, Tensor) or found.shape != p.shape:
            return "residual must return a tensor [V], a probability for each token."
        got.append(found.double())

    def same(form: Chances) -> bool:
        pairs = zip(got, _CASES, strict=True)
        return all(torch.allclose(x, form(*case), rtol=0, atol=1e-6) for x, case in pairs)

    if same(_residual):
        return None
    for name, (form, _) in _FORMS.items():
        if same(form):
            return name
    p, q = _CASES[0]
    want, yours = ([round(x, 3) for x in t.tolist()] for t in (_residual(p, q), got[0]))
    return f"For p = {p.tolist()} and q = {q.tolist()} it is {want}; yours {yours}."


EXERCISES = (
    Exercise(
        id="13.residual",
        notebook="13_mtp",
        title="What is drawn after a refusal",
        minutes=8,
        difficulty=2,
        check=_check,
        function="residual(p, q) that returns a probability for each token.",
        wrong=dict(_FORMS),
        solution="""
def residual(p, q):
    missing = (p - q).clamp(min=0)      # where the drafts give too little
    return missing / missing.sum()

answer = residual
""",
    ),
)

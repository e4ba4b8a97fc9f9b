"""Exercises of 04_one_hot_gating."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Exercise

Mask = Callable[[Tensor, Tensor], Tensor]


def _scores(shift: float) -> tuple[Tensor, Tensor]:
    """Biased scores [64, 8] and the experts of the chosen groups [64, 8], two groups of four."""
    generator = torch.Generator().manual_seed(4)
    scores = torch.rand(64, 8, generator=generator) * 0.9 + 0.1 + shift
    keep = (torch.rand(64, 4, generator=generator).argsort(1) < 2).repeat_interleave(2, 1)
    scores[0, keep[0].int().argmax()] = shift + 0.05  # the lowest score of all belongs to a kept expert
    return scores, keep


def _check_mask_value(answer: Any) -> str | None:
    if not callable(answer):
        return "Give a function masked(scores, keep) that returns the scores with rejected experts made unchoosable."
    for shift in (0.0, -2.0):  # without and with a bias that makes every score negative
        scores, keep = _scores(shift)
        given = scores.clone()
        out = answer(given, keep.clone())
        if not isinstance(out, Tensor) or out.shape != scores.shape:
            got = getattr(out, "shape", type(out).__name__)
            return f"masked must return a tensor [64, 8] like its scores, not {got}."
        if not torch.equal(given, scores):
            return "in place"
        if not torch.equal(out[keep], scores[keep]):
            return "inverted" if torch.equal(out[~keep], scores[~keep]) else "The scores of kept experts must stay."
        if not torch.equal(out.nan_to_num(), out.nan_to_num(nan=1.0)):
            return "There is a NaN: infinity times zero is one. Choose between two values instead of multiplying."
        lowest_kept = scores.masked_fill(~keep, torch.inf).amin(1, keepdim=True)
        beaten = (out < lowest_kept) | keep
        if bool(beaten.all()):
            continue
        if bool((out[~keep] == 0).all()):
            return "product" if bool(torch.signbit(out[~keep]).all()) and shift < 0 else "zero"
        return "lowest score" if bool((out[~keep] == scores.min()).all()) else (
            "A rejected expert still beats a kept one when biases are negative: compare the two values at that place.")
    return None


def _in_place(scores: Tensor, keep: Tensor) -> Tensor:
    return scores.masked_fill_(~keep, -torch.inf)


EXERCISES = (
    Exercise(
        id="04.mask_value", notebook="04_one_hot_gating", title="A mask that survives negative biases", minutes=8,
        difficulty=2, check=_check_mask_value,
        wrong={
            "zero": (lambda scores, keep: scores.masked_fill(~keep, 0.0),
                     "0.0 only looks like the lowest score: sigmoid scores are positive, but a negative correction "
                     "bias pushes kept experts below 0 and the top-k then prefers the rejected ones. Which number "
                     "loses against every score?"),
            "product": (lambda scores, keep: scores * keep,
                        "Multiplying by the mask writes 0.0, and 0.0 beats every negative score. Which number loses "
                        "against every score?"),
            "lowest score": (lambda scores, keep: scores.masked_fill(~keep, float(scores.min())),
                             "The lowest score of all can itself belong to a kept expert: then it ties with the "
                             "rejected ones, and top-k may take either. Go strictly below."),
            "inverted": (lambda scores, keep: scores.masked_fill(keep, -torch.inf),
                         "The chosen groups are the ones you masked out: keep is True where an expert may be chosen, "
                         "masked_fill writes where its mask is True."),
            "in place": (_in_place,
                         "The result is right, but your function overwrote the scores it was given; the weights are "
                         "gathered from them afterwards. Use masked_fill without the underscore."),
        },
        solution='''
def masked(scores, keep):
    return scores.masked_fill(~keep, float("-inf"))

answer = masked
'''),
)

"""Exercises of 15_int8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...weights.int8 import quantize_rows
from . import Exercise

Pair = tuple[Tensor, Tensor]
Quantize = Callable[[Tensor], Pair]


def _by(
    scale: Callable[[Tensor], Tensor], codes: Callable[[Tensor], Tensor] = torch.round
) -> Quantize:
    def form(weight: Tensor) -> Pair:
        factor = scale(weight)
        return codes(weight / factor).clamp(-128, 127).to(torch.int8), factor

    return form


def _rows(weight: Tensor) -> Tensor:
    return weight.abs().amax(1, keepdim=True) / 127


_FORMS: dict[str, tuple[Quantize, str]] = {
    "one scale for the matrix": (
        _by(lambda w: (w.abs().amax() / 127).expand(len(w), 1)),
        "The row with the largest number sets the scale of all: a row of small ones is left with a few codes. A "
        "scale for each output costs four bytes a row.",
    ),
    "a scale for each input": (
        _by(lambda w: w.abs().amax(0, keepdim=True) / 127),
        "A scale for each column depends on k, and the sum runs over k: behind it nothing can be multiplied in. "
        "The rows are the outputs.",
    ),
    "128 steps": (
        _by(lambda w: w.abs().amax(1, keepdim=True) / 128),
        "The largest number of a row would need the code 128; clamped to 127 it is off by a whole step. Divide "
        "by 127.",
    ),
    "truncated": (
        _by(_rows, torch.trunc),
        "You cut off what stands behind the point: every weight moves towards zero. Round to the nearest.",
    ),
    "from the lowest to the highest": (
        _by(lambda w: (w.amax(1, keepdim=True) - w.amin(1, keepdim=True)) / 255),
        "Those are 256 steps from the lowest to the highest number, which need a zero point: without one, a row "
        "that is not symmetric runs out of codes at one end.",
    ),
    "the scale upside down": (
        lambda w: ((w / _rows(w)).round().to(torch.int8), 1 / _rows(w)),
        "The codes are right; times your scale they are not the weights again. Is it 127 / max or max / 127?",
    ),
}


def _weight() -> Tensor:
    """Rows of very different size; one with halves for codes, one all positive."""
    weight = torch.randn(5, 13, generator=torch.Generator().manual_seed(15))
    weight *= torch.tensor([0.01, 1.0, 30.0, 1.0, 2.0]).unsqueeze(1)
    weight[3] = torch.arange(13) - 5.5
    weight[3, 0] = -127.0
    weight[4].abs_()
    return weight


def _same(a: Pair, b: Pair) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1].reshape(-1), b[1].reshape(-1))


def _check(answer: Any) -> str | None:
    weight = _weight()
    found = answer(weight.clone())
    if not isinstance(found, list | tuple) or len(found) != 2:
        return "quantize must return two tensors: codes and scales."
    codes, scale = found
    if not isinstance(codes, Tensor) or not isinstance(scale, Tensor) or codes.dtype != torch.int8:
        return "The codes must be a tensor of torch.int8, the scales one of float32."
    want = quantize_rows(weight)
    if _same((codes, scale), want):
        return None
    for name, (form, _) in _FORMS.items():
        if _same((codes, scale), form(weight)):
            return name
    if codes.shape != weight.shape or scale.numel() != len(weight):
        return (
            f"Of weight {list(weight.shape)} come codes {list(weight.shape)} and scales [{len(weight)}, 1]; yours "
            f"are {list(codes.shape)} and {list(scale.shape)}."
        )
    row = next(
        k
        for k in range(len(weight))
        if not torch.equal(codes[k], want[0][k]) or float(scale.reshape(-1)[k]) != float(want[1][k])
    )
    return (
        f"Row {row}: scale {float(want[1][row]):.6g} and codes {want[0][row, :4].tolist()}…; yours "
        f"{float(scale.reshape(-1)[row]):.6g} and {codes[row, :4].tolist()}…"
    )


EXERCISES = (
    Exercise(
        id="15.quantize",
        notebook="15_int8",
        title="Codes and scales of a matrix",
        minutes=8,
        difficulty=1,
        check=_check,
        function="quantize(weight) that returns codes and scales.",
        wrong=dict(_FORMS),
        solution="""
import torch

def quantize(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127     # [N, 1]: a row is an output
    return (weight / scale).round().to(torch.int8), scale

answer = quantize
""",
    ),
)

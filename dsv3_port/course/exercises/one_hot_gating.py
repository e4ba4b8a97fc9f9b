"""Exercises of 04_one_hot_gating."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Exercise

Mask = Callable[[Tensor, Tensor], Tensor]
Weigh = Callable[[Tensor, Tensor, int, float], tuple[Tensor, Tensor]]

# ---- where the correction bias counts ------------------------------------------------------------


def _weigh(scores: Tensor, bias: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
    chosen = (scores + bias).topk(k, -1)[1]
    weights = scores.gather(1, chosen)
    return chosen, weights / weights.sum(-1, keepdim=True) * scale


def _bias_in_weights(scores: Tensor, bias: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
    weights, chosen = (scores + bias).topk(k, -1)
    return chosen, weights / weights.sum(-1, keepdim=True) * scale


def _without_bias(scores: Tensor, bias: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
    return _weigh(scores, torch.zeros_like(bias), k, scale)


def _not_normalised(scores: Tensor, bias: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
    chosen = _weigh(scores, bias, k, scale)[0]
    return chosen, scores.gather(1, chosen) * scale


def _not_scaled(scores: Tensor, bias: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
    return _weigh(scores, bias, k, 1.0)


def _over_all(scores: Tensor, bias: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
    chosen, weights = _not_normalised(scores, bias, k, scale)
    return chosen, weights / scores.sum(-1, keepdim=True)


def _softmax(scores: Tensor, bias: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
    chosen = _weigh(scores, bias, k, scale)[0]
    return chosen, scores.gather(1, chosen).softmax(-1) * scale


_WEIGHS: dict[str, tuple[Weigh, str]] = {
    "bias in the weights": (
        _bias_in_weights,
        "Your experts are right, their weights hold the bias. It was trained to balance load, not "
        "to scale outputs: gather the weights from the scores without it.",
    ),
    "without bias": (
        _without_bias,
        "You chose by the plain scores: the bias never moved a token. It is added before the top-k, and "
        "only there.",
    ),
    "not normalised": (
        _not_normalised,
        "The K weights of a token do not add up to `scale`: divide by their sum first "
        "(norm_topk_prob), then scale.",
    ),
    "not scaled": (
        _not_scaled,
        "Your weights add up to 1. routed_scaling_factor, here `scale`, comes last; without it the routed "
        "experts are too quiet beside the shared one.",
    ),
    "over all experts": (
        _over_all,
        "You divided by the sum over all E experts. The sum is over the K chosen ones, or each "
        "token's output shrinks by what was not chosen.",
    ),
    "softmax": (
        _softmax,
        "That is a softmax over the chosen scores, as in older mixture models. DeepSeek-V3 scores by sigmoid "
        "and divides by the plain sum.",
    ),
}


def _check_weigh(answer: Any) -> str | None:
    generator = torch.Generator().manual_seed(41)
    scores = torch.rand(32, 8, generator=generator) * 0.8 + 0.1
    bias, k, scale = torch.tensor([0.6, -0.3, 0.0, 0.25, -0.15, 0.4, 0.05, -0.05]), 3, 2.5
    got = answer(scores.clone(), bias.clone(), k, scale)
    if not isinstance(got, tuple) or len(got) != 2 or not all(isinstance(t, Tensor) for t in got):
        return "weigh must return two tensors: (chosen [T, K], weights [T, K])."
    if got[0].is_floating_point():
        return (
            "First come the chosen experts' indices, then the weights (topk returns values first)."
        )
    if any(t.shape != (32, k) for t in got):
        return f"chosen (indices) and weights must both be [32, {k}], not {[list(t.shape) for t in got]}."

    def same_as(form: Weigh) -> bool:
        def rows(
            pair: tuple[Tensor, Tensor],
        ) -> Tensor:  # [T, E]: the order of the chosen does not matter
            return torch.zeros(32, 8).scatter(1, pair[0].long(), pair[1].float())

        return torch.allclose(rows(got), rows(form(scores, bias, k, scale)), rtol=1e-4, atol=1e-6)

    if same_as(_weigh):
        return None
    found = next((name for name, (form, _) in _WEIGHS.items() if same_as(form)), None)
    return found or (
        "Neither the experts nor the weights agree: choose by scores + bias, weigh by scores."
        if not torch.equal(got[0].sort(-1)[0], _weigh(scores, bias, k, scale)[0].sort(-1)[0])
        else "The experts are right, the weights are not: gather, divide by their sum, scale."
    )


# ---- the value of the mask -----------------------------------------------------------------------


def _scores(shift: float) -> tuple[Tensor, Tensor]:
    """Biased scores [64, 8] and the experts of the chosen groups [64, 8], two groups of four."""
    generator = torch.Generator().manual_seed(4)
    scores = torch.rand(64, 8, generator=generator) * 0.9 + 0.1 + shift
    keep = (torch.rand(64, 4, generator=generator).argsort(1) < 2).repeat_interleave(2, 1)
    scores[0, keep[0].int().argmax()] = (
        shift + 0.05
    )  # the lowest score of all belongs to a kept expert
    return scores, keep


def _check_mask_value(answer: Any) -> str | None:
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
            return (
                "inverted"
                if torch.equal(out[~keep], scores[~keep])
                else "The scores of kept experts must stay."
            )
        if not torch.equal(out.nan_to_num(), out.nan_to_num(nan=1.0)):
            return "There is a NaN: infinity times zero is one. Choose between two values instead of multiplying."
        lowest_kept = scores.masked_fill(~keep, torch.inf).amin(1, keepdim=True)
        beaten = (out < lowest_kept) | keep
        if bool(beaten.all()):
            continue
        if bool((out[~keep] == 0).all()):
            return "product" if bool(torch.signbit(out[~keep]).all()) and shift < 0 else "zero"
        return (
            "lowest score"
            if bool((out[~keep] == scores.min()).all())
            else (
                "A rejected expert still beats a kept one when biases are negative: compare the two "
                "values at that place."
            )
        )
    return None


def _in_place(scores: Tensor, keep: Tensor) -> Tensor:
    return scores.masked_fill_(~keep, -torch.inf)


EXERCISES = (
    Exercise(
        id="04.bias_where",
        notebook="04_one_hot_gating",
        title="Where the correction bias counts",
        minutes=6,
        difficulty=1,
        check=_check_weigh,
        function="weigh(scores, bias, k, scale) that returns (chosen, weights).",
        wrong=dict(_WEIGHS),
        solution="""
def weigh(scores, bias, k, scale):
    chosen = (scores + bias).topk(k, -1)[1]              # the bias steers the choice
    weights = scores.gather(1, chosen)                   # and nothing else
    return chosen, weights / weights.sum(-1, keepdim=True) * scale

answer = weigh
""",
    ),
    Exercise(
        id="04.mask_value",
        notebook="04_one_hot_gating",
        title="A mask that survives negative biases",
        minutes=8,
        difficulty=2,
        check=_check_mask_value,
        function="masked(scores, keep) that returns the scores with rejected experts made unchoosable.",
        wrong={
            "zero": (
                lambda scores, keep: scores.masked_fill(~keep, 0.0),
                "0.0 only looks like the lowest score: sigmoid scores are positive, but a negative correction "
                "bias pushes kept experts below 0 and the top-k then prefers the rejected ones. Which number "
                "loses against every score?",
            ),
            "product": (
                lambda scores, keep: scores * keep,
                "Multiplying by the mask writes 0.0, and 0.0 beats every negative score. Which number loses "
                "against every score?",
            ),
            "lowest score": (
                lambda scores, keep: scores.masked_fill(~keep, float(scores.min())),
                "The lowest score of all can itself belong to a kept expert: then it ties with the "
                "rejected ones, and top-k may take either. Go strictly below.",
            ),
            "inverted": (
                lambda scores, keep: scores.masked_fill(keep, -torch.inf),
                "The chosen groups are the ones you masked out: keep is True where an expert may be chosen, "
                "masked_fill writes where its mask is True.",
            ),
            "in place": (
                _in_place,
                "The result is right, but your function overwrote the scores it was given; the weights are "
                "gathered from them afterwards. Use masked_fill without the underscore.",
            ),
        },
        solution="""
def masked(scores, keep):
    return scores.masked_fill(~keep, float("-inf"))

answer = masked
""",
    ),
)

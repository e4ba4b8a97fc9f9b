"""Exercises of 06b_small_operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...count.operators import count_ops
from . import Exercise

EPS = 1e-3  # not the operator's default: forgetting to pass it shows

Fused = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _right(residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, _, stream = ops.npu_add_rms_norm(residual, delta, weight, eps)
    return y, stream


def _rstd(residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return ops.npu_add_rms_norm(residual, delta, weight, eps)[:2]


def _swapped(residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _right(residual, delta, weight, eps)[::-1]


def _old_residual(
    residual: Tensor, delta: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return _right(residual, delta, weight, eps)[0], residual


def _added_again(
    residual: Tensor, delta: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    y, stream = _right(residual, delta, weight, eps)
    return y, stream + delta


def _default_epsilon(
    residual: Tensor, delta: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    y, _, stream = ops.npu_add_rms_norm(residual, delta, weight)
    return y, stream


def _unfused(residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    stream = residual + delta
    return ops.npu_rms_norm(stream, weight, eps)[0], stream


_NORMS: dict[str, tuple[Fused, str]] = {
    "rstd": (
        _rstd,
        "The second output is rstd [B, S, 1], not the residual. It broadcasts in every later addition, so that "
        "nothing complains. The order is (normalised, rstd, residual).",
    ),
    "swapped": (
        _swapped,
        "The two are swapped: the normalised value comes first, the new residual last. Both are [B, S, H], so "
        "that no shape tells them apart.",
    ),
    "old residual": (
        _old_residual,
        "You hand on the residual that came in. The block's addition is lost for all later layers; the "
        "operator returns the sum as its last output.",
    ),
    "added again": (
        _added_again,
        "The third output already is residual + delta; you added delta twice.",
    ),
    "default epsilon": (
        _default_epsilon,
        "You left epsilon to its default. For DeepSeek-V3 the default 1e-6 happens to be right, for "
        "other models and for npu_kv_rmsnorm_rope_cache (1e-5) it is not: pass the config's value.",
    ),
    "unfused": (
        _unfused,
        "The values are right, but these are two operators: an addition and npu_rms_norm. The point is one "
        "launch, npu_add_rms_norm.",
    ),
}


def _near(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and torch.allclose(got, want, atol=1e-7)


def _check_norm(answer: Any) -> str | None:
    generator = torch.Generator().manual_seed(6)
    residual, delta = torch.randn(2, 2, 3, 8, generator=generator) * 0.1
    weight = torch.rand(8, generator=generator) + 0.5
    arguments = (residual, delta, weight, EPS)
    got = answer(*(a.clone() if isinstance(a, Tensor) else a for a in arguments))
    if not (
        isinstance(got, (tuple, list)) and len(got) == 2 and all(isinstance(g, Tensor) for g in got)
    ):
        return "add_norm must return two tensors, (normalised, new residual): rstd is not needed in inference."

    def same_as(form: Fused) -> bool:
        return all(_near(g, w) for g, w in zip(got, form(*arguments), strict=True))

    if same_as(_right):
        return None if "npu_add_rms_norm" in count_ops(lambda: answer(*arguments)) else "unfused"
    for name, (form, _) in _NORMS.items():
        if same_as(form):
            return name
    off = 0 if not _near(got[0], _right(*arguments)[0]) else 1
    want = _right(*arguments)[off]
    return (
        f"{('normalised', 'new residual')[off]} should start with {want.flatten()[0]:.4f} for residual "
        f"{residual.flatten()[0]:.4f} and delta {delta.flatten()[0]:.4f}; yours starts with "
        f"{got[off].flatten()[0]:.4f} and has shape {list(got[off].shape)}."
    )


EXERCISES = (
    Exercise(
        id="06b.add_rms_norm",
        notebook="06b_small_operators",
        title="Three outputs, which two?",
        minutes=6,
        difficulty=1,
        check=_check_norm,
        function="add_norm(residual, delta, weight, eps) that returns (normalised, new residual).",
        wrong=dict(_NORMS),
        solution="""
from dsv3_port import ops

def add_norm(residual, delta, weight, eps):
    normalised, _, new_residual = ops.npu_add_rms_norm(residual, delta, weight, eps)
    return normalised, new_residual

answer = add_norm
""",
    ),
)

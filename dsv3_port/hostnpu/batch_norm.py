"""The pieces of synchronised batch normalisation, which PyTorch has for CUDA and torch_npu for the NPU:
torch.nn.SyncBatchNorm calls them around its collectives.

Statistics over all dimensions but the second, in float32; results in the dtype of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _channels(x: Tensor, like: Tensor) -> Tensor:
    """[C] for arithmetic with `like` [N, C, ...]."""
    return x.float().view(1, -1, *[1] * (like.dim() - 2))


def _others(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def stats(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(mean, 1 / sqrt(biased variance + eps)) of each channel."""
    x = input.float()
    variance, mean = torch.var_mean(x, _others(x), correction=0)
    return mean, torch.rsqrt(variance + eps)


def elemt(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    eps: float = 0.0,
) -> Tensor:
    """(input - mean) * invstd * weight + bias."""
    y = (input.float() - _channels(mean, input)) * _channels(invstd, input)
    y = y if weight is None else y * _channels(weight, input)
    y = y if bias is None else y + _channels(bias, input)
    return y.to(input.dtype)


def elemt_out(*args: Any, out: Tensor, **kwargs: Any) -> Tensor:
    found = elemt(*args, **kwargs)
    return out.resize_(found.shape).copy_(found)


def gather_stats_with_counts(
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """(mean, invstd) of all ranks together, from each rank's own [ranks, C] and how many elements a
    channel it had, in mean's dtype; the running statistics move, variance unbiased."""
    share = (counts.double() / counts.double().sum())[:, None]
    own = mean.double()
    whole = (share * own).sum(0)
    spread = invstd.double().pow(-2) - eps + (own - whole).square()
    variance = (share * spread).sum(0)
    total = counts.double().sum()
    for running, value in ((running_mean, whole), (running_var, variance * total / (total - 1))):
        if running is not None:
            running.copy_(running.double().lerp(value, momentum))
    return whole.to(mean.dtype), torch.rsqrt(variance + eps).to(mean.dtype)


def backward_reduce(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(sum of dy, sum of dy * (x - mean), gradients of weight and of bias) of each channel."""
    dy, centred = grad.float(), input.float() - _channels(mean, input)
    total, product = dy.sum(_others(dy)), (dy * centred).sum(_others(dy))
    dtype = torch.float32 if weight is None else weight.dtype
    return total, product, (product * invstd.float()).to(dtype), total.to(dtype)


def backward_elemt(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    """The input's gradient; sums and counts of all ranks."""
    n = count.double().sum().float()
    scale = _channels(invstd, input)
    centred = input.float() - _channels(mean, input)
    dx = grad.float() - _channels(sum_dy, input) / n
    dx = (dx - centred * scale.square() * _channels(sum_dy_xmu, input) / n) * scale
    return (dx if weight is None else dx * _channels(weight, input)).to(input.dtype)


ATEN: dict[str, Callable[..., Any]] = {
    "batch_norm_stats": stats,
    "batch_norm_elemt": elemt,
    "batch_norm_elemt.out": elemt_out,
    "batch_norm_gather_stats_with_counts": gather_stats_with_counts,
    "batch_norm_backward_reduce": backward_reduce,
    "batch_norm_backward_elemt": backward_elemt,
}

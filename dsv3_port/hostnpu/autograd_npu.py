"""Backward operators of npu_* operators that dsv3_port/ops has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops import OPERATORS
from .autograd import gradients


def rms_norm_backward(
    dy: Tensor, input: Tensor, gamma: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """dx in input's dtype, dgamma in float32; the rest is float32 with the forward's rstd."""
    x, g, scale = input.float() * rstd, gamma.float(), dy.float()
    dims = tuple(range(-gamma.dim(), 0))
    lead = tuple(range(input.dim() - gamma.dim()))
    inner = (scale * g * x).mean(dims, keepdim=True)
    d_gamma = scale * x
    return ((scale * g - x * inner) * rstd).to(input.dtype), d_gamma.sum(lead) if lead else d_gamma


def rotary_mul_backward(
    grad: Tensor, input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half"
) -> tuple[Tensor, Tensor, Tensor]:
    """All of input's dtype, as the device casts them first."""
    grad, r1, r2 = (t.to(input.dtype) for t in (grad, r1, r2))
    found = gradients(
        lambda x, cos, sin: OPERATORS["npu_rotary_mul"].meaning(x, cos, sin, rotary_mode),
        (input, r1, r2),
        grad,
    )
    return found[0], found[1], found[2]


def swiglu_backward(grad: Tensor, input: Tensor, dim: int = -1) -> Tensor:
    return gradients(lambda x: OPERATORS["npu_swiglu"].meaning(x, dim), (input,), grad)[0]


def silu_backward(grad: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    """x0: the forward's input; x1, its result, is not needed."""
    return gradients(OPERATORS["npu_silu"].meaning, (x0,), grad)[0]


def moe_token_permute_grad_v2(
    grad_permuted_tokens: Tensor,
    sorted_indices: Tensor,
    tokens_size_0: int,
    tokens_dtype: torch.dtype,
    num_topK: int,
    padded_mode: bool = False,
) -> Tensor:
    """Each token gets the sum of its rows' gradients; a row that was dropped has none."""
    ones = torch.ones(tokens_size_0, num_topK)
    back = OPERATORS["npu_moe_token_unpermute"].meaning
    return back(grad_permuted_tokens, sorted_indices, ones, padded_mode).to(tokens_dtype)


def moe_token_permute_grad(
    tokens: Tensor,
    grad_permuted_tokens: Tensor,
    indices: Tensor,
    sorted_indices: Tensor,
    padded_mode: bool = False,
) -> Tensor:
    each = indices.numel() // max(indices.shape[0], 1)
    given = (grad_permuted_tokens, sorted_indices, tokens.shape[0], tokens.dtype)
    return moe_token_permute_grad_v2(*given, each, padded_mode)


def moe_token_unpermute_grad(
    permuted_tokens: Tensor,
    grad_unpermuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    back = OPERATORS["npu_moe_token_unpermute"].meaning
    if probs is None:
        found = gradients(
            lambda x: back(x, sorted_indices, None, padded_mode),
            (permuted_tokens,),
            grad_unpermuted_tokens,
        )
        return found[0], permuted_tokens.new_empty(0)
    found = gradients(
        lambda x, p: back(x, sorted_indices, p, padded_mode),
        (permuted_tokens, probs),
        grad_unpermuted_tokens,
    )
    return found[0], found[1]


def moe_token_unpermute_grad_v2(
    grad_unpermuted_tokens: Tensor,
    sorted_indices: Tensor,
    permuted_tokens_size_0: int,
    permuted_tokens_dtype: torch.dtype,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
    permuted_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same; the rows themselves are needed for the gradient of probs only."""
    if permuted_tokens is None:
        shape = (permuted_tokens_size_0, grad_unpermuted_tokens.shape[-1])
        permuted_tokens = torch.zeros(shape, dtype=permuted_tokens_dtype)
    given = (permuted_tokens, grad_unpermuted_tokens, sorted_indices)
    return moe_token_unpermute_grad(*given, probs, padded_mode, restore_shape)


NPU: dict[str, Callable[..., Any]] = {
    "npu_rms_norm_backward": rms_norm_backward,
    "npu_rotary_mul_backward": rotary_mul_backward,
    "npu_swiglu_backward": swiglu_backward,
    "npu_silu_backward": silu_backward,
    "npu_moe_token_permute_grad": moe_token_permute_grad,
    "npu_moe_token_permute_grad_v2": moe_token_permute_grad_v2,
    "npu_moe_token_unpermute_grad": moe_token_unpermute_grad,
    "npu_moe_token_unpermute_grad_v2": moe_token_unpermute_grad_v2,
}

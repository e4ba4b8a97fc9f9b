"""SwiGLU and SiLU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .checks import bad, floating
from .table import operator
from .wide import wide


def check_swiglu(input: Tensor, dim: int = -1) -> None:
    floating("npu_swiglu", "input", input)
    if not -input.dim() <= dim < input.dim():
        raise bad("npu_swiglu", "dim", dim, f"a dimension of the input {list(input.shape)}")
    if input.shape[dim] % 2 or input.numel() == 0:
        raise bad(
            "npu_swiglu",
            "input",
            input.shape,
            f"non-empty with an even size along dim {dim}: [gate | up]",
        )
    if not input.is_contiguous():
        raise bad(
            "npu_swiglu",
            "input",
            f"a non-contiguous view with strides {input.stride()}",
            "contiguous",
        )


@operator(check_swiglu)
def npu_swiglu(input: Tensor, dim: int = -1) -> Tensor:
    """silu(first half) * second half along dim; one cast. A merged projection is therefore laid out
    [gate | up]."""
    gate, up = wide(input).chunk(2, dim)
    return (F.silu(gate) * up).to(input.dtype)


def check_silu(input: Tensor) -> None:
    floating("npu_silu", "input", input)


@operator(check_silu)
def npu_silu(input: Tensor) -> Tensor:
    """input * sigmoid(input); one cast."""
    return F.silu(wide(input)).to(input.dtype)


@operator(check_silu)
def npu_silu_(input: Tensor) -> Tensor:
    """The same in place."""
    return input.copy_(F.silu(wide(input)))

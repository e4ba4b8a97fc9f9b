"""RMSNorm, alone and with the residual addition before it."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import bad, floating, same_dtype
from .table import OPERATORS, operator
from .wide import wide


def _trailing(operator: str, x: Tensor, gamma: Tensor) -> None:
    if not 1 <= gamma.dim() <= x.dim() or gamma.shape != x.shape[x.dim() - gamma.dim() :]:
        raise bad(operator, "gamma", gamma.shape, f"the trailing dims of x {list(x.shape)}")


def normalise(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x * rstd in float32, and rstd, over the trailing dims that gamma spans."""
    x = wide(x)
    dims = tuple(range(-gamma.dim(), 0))
    rstd = torch.rsqrt(x.pow(2).mean(dims, keepdim=True) + epsilon)
    return x * rstd, rstd


def check_rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-06) -> None:
    floating("npu_rms_norm", "x", input)
    _trailing("npu_rms_norm", input, gamma)
    if gamma.dtype != input.dtype and (gamma.dtype != torch.float32 or input.dtype.itemsize != 2):
        raise bad(
            "npu_rms_norm",
            "gamma",
            gamma.dtype,
            f"{input.dtype}, the dtype of x, or float32 with a 16-bit x",
        )


@operator(check_rms_norm)
def npu_rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-06) -> tuple[Tensor, Tensor]:
    """input / sqrt(mean(input^2) + epsilon) * gamma over gamma's trailing dims; one cast, gamma
    product included.

    gamma: the trailing dims of input; input's dtype, or float32 beside 16-bit input.
    Returns (y like input, rstd float32 with the normalised dims 1).
    """
    normalised, rstd = normalise(input, gamma, epsilon)
    return (normalised * wide(gamma)).to(input.dtype), rstd


def check_add_rms_norm(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    epsilon: float = 1e-06,
    operator: str = "npu_add_rms_norm",
) -> None:
    floating(operator, "x1", x1)
    if x2.shape != x1.shape:
        raise bad(operator, "x2", x2.shape, f"{list(x1.shape)}, the shape of x1")
    same_dtype(operator, "x2", x2, "x1", x1)
    _trailing(operator, x1, gamma)
    same_dtype(operator, "gamma", gamma, "x1", x1)


@operator(check_add_rms_norm)
def npu_add_rms_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-06
) -> tuple[Tensor, Tensor, Tensor]:
    """RMSNorm of the residual sum x1 + x2. Returns (y, rstd float32, x = x1 + x2): the new residual
    comes last.

    On A2 and A3, 16-bit types are rounded three times: the sum, the normalised value before gamma,
    and the product; the statistics come from the rounded sum. So y is not bit-equal to
    npu_rms_norm(x1 + x2, gamma).
    """
    x = x1 + x2  # one rounding: PyTorch adds 16-bit types in float32
    normalised, rstd = normalise(x, gamma, epsilon)
    return normalised.to(x.dtype) * gamma, rstd, x


def check_add_rms_norm_cast(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-06) -> None:
    check_add_rms_norm(x1, x2, gamma, epsilon, "npu_add_rms_norm_cast")


@operator(check_add_rms_norm_cast)
def npu_add_rms_norm_cast(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-06
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RMSNorm of x1 + x2 in x1's dtype and cast to float32: (y1 = y2 in float32, y2, rstd, x).

    torchair's pattern pass puts it where npu_add_rms_norm is followed by a cast to float32 (the
    gate). On A2 and A3 float16 is rounded as npu_add_rms_norm rounds it, so both give the same;
    bfloat16 is float32 from the unrounded sum to y2, one cast. Source: kernel and document of CANN's
    ops-nn (its kernel for single bfloat16 rows leaves y1 unrounded; Ascend/op-plugin's document, of
    Ascend950, says y2 = cast(y1)).
    """
    if x1.dtype == torch.float16:
        y2, rstd, x = OPERATORS["npu_add_rms_norm"].meaning(x1, x2, gamma, epsilon)
        return wide(y2), y2, rstd, x
    x = wide(x1) + wide(x2)
    normalised, rstd = normalise(x, gamma, epsilon)
    y2 = (normalised * wide(gamma)).to(x1.dtype)
    return wide(y2), y2, rstd, x.to(x1.dtype)

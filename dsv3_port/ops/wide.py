"""Three helpers that all reference operators share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in the dtype its arithmetic is done in: float32, or float64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()


NARROW = 1024  # products of two int8 numbers whose sum float32 holds: 1024 * 128 * 128 = 2^24


def exact_product(x: Tensor, w: Tensor) -> Tensor:
    """[.., M, K] @ [.., K, N] of whole numbers that int8 holds -> float64 of the exact sums."""
    if x.shape[-1] <= NARROW:
        return (x.float() @ w.float()).double()
    return x.double() @ w.double()


def unsupported(operator: str, **arguments: Any) -> None:
    """Refuse arguments that the reference does not cover (anything but None), by name."""
    for name, value in arguments.items():
        if value is not None:
            raise NotImplementedError(
                f"{operator}: {name} has no reference implementation; it must be None here"
            )

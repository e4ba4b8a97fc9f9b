"""FRACTAL_NZ: int8 matrices in the order in which an NPU's cube units read them.

What W8A8 multiplies by, linear layers and routed experts, is kept as [K, N] and cast once, when the
weights are loaded: graphs have no operator for the cast. It changes no number. W_UK and W_UV are not
int8 and stay. On a CPU or GPU, where npu_format_cast returns what it is given, the matrices are [K, N]
and no more.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .. import ops
from .decoder import DeepseekV3


def matrices(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """(module, name in it, name in the model) of every int8 parameter."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dtype == torch.int8:
                yield module, name, f"{path}.{name}" if path else name


def as_published(model: DeepseekV3) -> dict[str, Tensor]:
    """Every parameter by name, int8 matrices as [..., N, K] whatever the plan's weight_format: views,
    which a loader fills before the cast, and of which `.cpu()` is in plain order after it."""
    found: dict[str, Tensor] = dict(model.named_parameters())
    if model.plan.weight_format == "nz":
        found |= {name: found[name].mT for *_, name in matrices(model)}
    return found


def cast_weights(model: DeepseekV3) -> DeepseekV3:
    """Cast the int8 matrices of a plan with weight_format 'nz', one after the other; returns the model."""
    if model.plan.weight_format != "nz":
        return model
    for module, name, path in list(matrices(model)):
        made = ops.fractal_nz(getattr(module, name).data, path)
        setattr(module, name, nn.Parameter(made, requires_grad=False))
    return model

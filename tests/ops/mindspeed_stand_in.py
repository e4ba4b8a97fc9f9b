"""mindspeed.ops.gmm for tests: MindSpeed's calling convention with its checks, computed on whatever
device x is on.

After the checks of mindspeed/ops/gmm.py (Ascend/MindSpeed) and the limits of its docs/ops/gmm.md:
single tensors, npu_gmm with cumulative groups (int64 tensor or list of int), npu_gmm_v2 with counts
(int64 tensor only), one device, no quantised weights, no single group. The product is written out
here and shares no code with the package.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor


def _check(x: Any, weight: Any, bias: Any, group_list: Any, group_type: Any, lists: bool) -> None:
    for name, value in (("x", x), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value)}")
    if not isinstance(bias, (Tensor, type(None))):
        raise TypeError(f"bias must be a tensor or None, got {type(bias)}")
    if weight.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise TypeError(f"weight must not be quantised, got {weight.dtype}")
    numbers = isinstance(group_list, list) and all(isinstance(n, int) for n in group_list)
    if not isinstance(group_list, Tensor) and not (lists and numbers):
        raise TypeError(
            f"group_list must be {'a list of int or ' if lists else ''}a tensor, got {type(group_list)}"
        )
    if isinstance(group_list, Tensor):
        if group_list.dim() != 1:
            raise ValueError(f"group_list must have one dimension, got {group_list.dim()}")
        if group_list.dtype != torch.int64:
            raise TypeError(f"group_list must be int64, got {group_list.dtype}")
        if group_list.device != x.device:
            raise RuntimeError("group_list and x are on two devices")
    if len(group_list) == 1:
        raise ValueError("group_list must not have length 1")
    if not isinstance(group_type, int):
        raise TypeError(f"group_type must be an int, got {type(group_type)}")
    if group_type != 0 or x.dim() != 2 or weight.dim() != 3:
        raise ValueError("group_type 0 takes x [M, K] and weight [E, K, N]")


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: list[int]) -> Tensor:
    if len(sizes) != len(weight) or sum(sizes) != len(x) or min(sizes) < 0:
        raise ValueError(
            f"groups of {sizes} rows do not divide {len(x)} rows for {len(weight)} weights"
        )
    parts = [rows @ w for rows, w in zip(x.split(sizes), weight, strict=True)]
    if bias is not None:
        parts = [p + b for p, b in zip(parts, bias, strict=True)]
    return torch.cat(parts)


class Gmm(ModuleType):
    """The module; `calls` notes which function was called with which groups."""

    def __init__(self) -> None:
        super().__init__("mindspeed.ops.gmm")
        self.calls: list[tuple[str, list[int]]] = []

    def npu_gmm(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        bias: Tensor | None = None,
        group_list: Any = None,
        group_type: int = 0,
        gemm_fusion: bool = False,
        original_weight: Tensor | None = None,
    ) -> Tensor:
        _check(x, weight, bias, group_list, group_type, lists=True)
        ends = [int(n) for n in group_list]
        self.calls.append(("npu_gmm", ends))
        return _multiply(x, weight, bias, [b - a for a, b in zip([0, *ends], ends, strict=False)])

    def npu_gmm_v2(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        bias: Tensor | None = None,
        group_list: Any = None,
        group_type: int = 0,
        gemm_fusion: bool = False,
        original_weight: Tensor | None = None,
    ) -> Tensor:
        _check(x, weight, bias, group_list, group_type, lists=False)
        self.calls.append(("npu_gmm_v2", group_list.tolist()))
        return _multiply(x, weight, bias, group_list.tolist())


def install(monkeypatch: pytest.MonkeyPatch) -> Gmm:
    """Make `from mindspeed.ops import gmm` give the stand-in."""
    gmm = Gmm()
    ops = ModuleType("mindspeed.ops")
    ops.gmm = gmm  # type: ignore[attr-defined]
    for name, module in (
        ("mindspeed", ModuleType("mindspeed")),
        ("mindspeed.ops", ops),
        ("mindspeed.ops.gmm", gmm),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return gmm

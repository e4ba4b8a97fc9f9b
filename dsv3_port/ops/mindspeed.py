"""MindSpeed's two grouped matmuls, which torch_npu does not have."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError
from .checks import bad, one_of
from .grouped_matmul import check_groups
from .table import OPERATORS, operator

_module: ModuleType | None = None


def mindspeed_gmm() -> ModuleType:
    """mindspeed.ops.gmm, imported when first needed (it builds a C++ extension at first use)."""
    global _module
    if _module is None:
        try:
            from mindspeed.ops import gmm
        except ImportError as error:
            raise PortError(
                f"GMM_PROVIDER is mindspeed, and mindspeed.ops.gmm cannot be imported ({error}): install "
                "MindSpeed as README says, or set GMM_PROVIDER=torch_npu"
            ) from error
        _module = gmm
    return _module


def _check(op: str, x: Tensor, weight: Tensor, group_list: Any, group_type: int, kind: int) -> None:
    one_of(op, "group_type", group_type, 0, 2)
    if not isinstance(group_list, Tensor):
        wanted = "an int64 tensor or a list of int" if kind == 0 else "an int64 tensor"
        raise bad(op, "group_list", group_list, wanted)
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor):
        raise bad(op, "x or weight", type(x).__name__, "a single tensor, not a list")
    if group_type == 0:
        check_groups(op, x, weight, group_list, kind)


def check_gmm(
    x: Tensor,
    weight: Tensor,
    *,
    group_list: Tensor | Sequence[int] | None = None,
    group_type: int = 0,
    **other: Any,
) -> None:
    op = "npu_gmm"
    if isinstance(group_list, (list, tuple)):
        if len(group_list) == 1:
            raise bad(op, "group_list", list(group_list), "longer than 1 when given as a list")
        group_list = torch.tensor(group_list)
    _check(op, x, weight, group_list, group_type, 0)


@operator(check_gmm, mindspeed_gmm)
def npu_gmm(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    group_list: Tensor | Sequence[int] | None = None,
    group_type: int = 0,
    gemm_fusion: bool = False,
    original_weight: Tensor | None = None,
) -> Tensor:
    """MindSpeed's grouped matmul: single tensors, **cumulative** group_list (int64 tensor or list
    of int)."""
    groups = (
        group_list if isinstance(group_list, Tensor) else torch.tensor(group_list, device=x.device)
    )
    y: Tensor = OPERATORS["npu_grouped_matmul"].meaning(
        [x],
        [weight],
        bias=None if bias is None else [bias],
        group_list=groups,
        split_item=3,
        group_type=group_type,
        group_list_type=0,
    )[0]
    return y


def check_gmm_v2(
    x: Tensor,
    weight: Tensor,
    *,
    group_list: Tensor | None = None,
    group_type: int = 0,
    **other: Any,
) -> None:
    _check("npu_gmm_v2", x, weight, group_list, group_type, 1)


@operator(check_gmm_v2, mindspeed_gmm)
def npu_gmm_v2(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    group_list: Tensor | None = None,
    group_type: int = 0,
    gemm_fusion: bool = False,
    original_weight: Tensor | None = None,
) -> Tensor:
    """MindSpeed's second grouped matmul: as npu_gmm, but group_list holds **counts** (int64 tensor
    only)."""
    y: Tensor = OPERATORS["npu_grouped_matmul"].meaning(
        [x],
        [weight],
        bias=None if bias is None else [bias],
        group_list=group_list,
        split_item=3,
        group_type=group_type,
        group_list_type=1,
    )[0]
    return y

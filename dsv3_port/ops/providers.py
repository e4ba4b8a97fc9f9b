"""Who computes npu_grouped_matmul on an NPU: the setting GMM_PROVIDER of engine/settings.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any

from torch import Tensor

from ..errors import PortError
from . import grouped_matmul, mindspeed, table
from .grouped_matmul import cumulative_groups

GMM_PROVIDERS = ("auto", "torch_npu", "mindspeed", "reference")
_gmm_provider = "auto"


def use_gmm_provider(name: str) -> None:
    """Who computes npu_grouped_matmul on an NPU: "torch_npu" (also "auto"), "mindspeed" or the
    "reference".

    The setting GMM_PROVIDER of engine/settings.py. Tensors on other devices always go to the
    reference. MindSpeed is imported here, so that a missing one is told before weights are read,
    and outside of compiled code.
    """
    global _gmm_provider
    if name not in GMM_PROVIDERS:
        raise PortError(f"GMM_PROVIDER is {name!r}; it can be {', '.join(GMM_PROVIDERS)}")
    if name == "mindspeed":
        mindspeed.mindspeed_gmm()
    _gmm_provider = name


@wraps(grouped_matmul.npu_grouped_matmul)
def npu_grouped_matmul(
    x: Sequence[Tensor], weight: Sequence[Tensor], **kwargs: Any
) -> list[Tensor]:
    if _gmm_provider == "reference":
        return table.OPERATORS["npu_grouped_matmul"].checked(x, weight, **kwargs)
    if _gmm_provider == "mindspeed" and table.on_npu(x):
        table.OPERATORS["npu_grouped_matmul"].check(x, weight, **kwargs)
        return [_by_mindspeed(x, weight, **kwargs)]
    return grouped_matmul.npu_grouped_matmul(x, weight, **kwargs)


def _by_mindspeed(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    *,
    group_list: Tensor,
    group_type: int = 0,
    group_list_type: int = 0,
    split_item: int = 3,
    **other: Any,
) -> Tensor:
    """MindSpeed's two functions take single tensors: npu_gmm cumulative groups, npu_gmm_v2 counts.

    Counts go to npu_gmm_v2 as they are: a cumsum would be one more launch a layer. A stack of one
    expert is refused, as MindSpeed's document excludes a group_list of length 1.
    """
    extra = [argument for argument, value in other.items() if value not in (None, 0)]
    if extra or len(x) != 1 or len(weight) != 1 or group_type != 0 or split_item not in (2, 3):
        raise NotImplementedError(
            "npu_grouped_matmul by MindSpeed takes one x and one stacked weight, group_type 0, "
            "split_item 2 or 3, and no " + (", ".join(extra) or "lists")
        )
    if weight[0].shape[0] == 1:
        raise PortError(
            "MindSpeed's grouped matmul takes two experts or more and this rank has one: set "
            "GMM_PROVIDER=torch_npu"
        )
    if group_list_type == 1:
        return mindspeed.mindspeed_gmm().npu_gmm_v2(
            x[0], weight[0], group_list=group_list, group_type=group_type
        )
    groups = cumulative_groups(group_list, group_list_type, weight[0].shape[0])
    return mindspeed.mindspeed_gmm().npu_gmm(
        x[0], weight[0], group_list=groups, group_type=group_type
    )

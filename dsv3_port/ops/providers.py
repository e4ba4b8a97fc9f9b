"""Who multiplies the experts on an NPU: the setting GMM_PROVIDER. Tensors on other devices always
get the meaning, whoever is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import ops
from ..errors import PortError
from . import table
from .grouped_matmul import cumulative_groups
from .mindspeed import mindspeed_gmm

# rows [M, K], weight [E, K, N], ends int64 [E] (the row after each expert's last) -> [M, N]
GroupedMatmul = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_torch_npu(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return ops.npu_grouped_matmul(
        [rows], [weight], group_list=ends, split_item=3, group_type=0, group_list_type=0
    )[0]


def by_reference(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    product: Tensor = table.OPERATORS["npu_grouped_matmul"].checked(
        [rows], [weight], group_list=ends, split_item=3, group_type=0, group_list_type=0
    )[0]
    return product


def by_mindspeed(
    rows: Tensor,
    weight: Tensor,
    groups: Tensor,
    *,
    group_list_type: int = 0,
    group_type: int = 0,
    split_item: int = 3,
    **other: Any,
) -> Tensor:
    """npu_grouped_matmul's arguments for MindSpeed's two functions: npu_gmm takes cumulative groups,
    npu_gmm_v2 counts.

    Counts go to npu_gmm_v2 as they are: a cumsum would be one more launch a layer. A stack of one
    expert is refused, as MindSpeed's document excludes a group_list of length 1.
    """
    extra = [argument for argument, value in other.items() if value not in (None, 0)]
    if extra or group_type != 0 or split_item not in (2, 3):
        raise NotImplementedError(
            "npu_grouped_matmul by MindSpeed takes one x and one stacked weight, group_type 0, "
            "split_item 2 or 3, and no " + (", ".join(extra) or "lists")
        )
    if weight.shape[0] == 1 and table.on_npu(rows):
        raise PortError(
            "MindSpeed's grouped matmul takes two experts or more and this rank has one: set "
            "GMM_PROVIDER=torch_npu"
        )
    if group_list_type == 1:
        return ops.npu_gmm_v2(rows, weight, group_list=groups, group_type=group_type)
    ends = cumulative_groups(groups, group_list_type, weight.shape[0])
    return ops.npu_gmm(rows, weight, group_list=ends, group_type=group_type)


# Each calls `ops.…` late, through the package, so that what counts operators there sees it.
PROVIDERS: dict[str, GroupedMatmul] = {
    "torch_npu": by_torch_npu,
    "mindspeed": by_mindspeed,
    "reference": by_reference,
}
GMM_PROVIDERS = ("auto", *PROVIDERS)


def provider(name: str = "auto") -> GroupedMatmul:
    """The grouped matmul of that name; "auto" is torch_npu's.

    MindSpeed is imported here, so that a missing one is told before weights are read, and outside
    of compiled code.
    """
    if name not in GMM_PROVIDERS:
        raise PortError(f"GMM_PROVIDER is {name!r}; it can be {', '.join(GMM_PROVIDERS)}")
    if name == "mindspeed":
        mindspeed_gmm()
    return PROVIDERS["torch_npu" if name == "auto" else name]

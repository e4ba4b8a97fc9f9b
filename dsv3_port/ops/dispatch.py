"""One function per NPU operator, with torch_npu's name, argument order and defaults.

Each checks its arguments (`contracts`), then calls torch_npu for tensors on an NPU and the plain
PyTorch meaning (`reference`) for all others. torch_npu's operators and MindSpeed's are imported
here and nowhere else, on first use. The first argument is positional, as in torch_npu.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, cast

from torch import Tensor

from ..errors import PortError
from . import contracts, kernels, reference

GMM_PROVIDERS = ("auto", "torch_npu", "mindspeed", "reference")
_gmm_provider = "auto"
_torch_npu: ModuleType | None = None
_mindspeed_gmm: ModuleType | None = None

P = ParamSpec("P")
R = TypeVar("R")


def on_npu(tensor: Tensor) -> bool:
    return tensor.device.type == "npu"


def torch_npu() -> ModuleType:
    """The torch_npu module, imported when first needed; a module global, so that a compiled graph
    sees an attribute."""
    global _torch_npu
    if _torch_npu is None:
        import torch_npu as module

        _torch_npu = module
    return _torch_npu


def mindspeed_gmm() -> ModuleType:
    """mindspeed.ops.gmm, imported when first needed (it builds a C++ extension at first use)."""
    global _mindspeed_gmm
    if _mindspeed_gmm is None:
        try:
            from mindspeed.ops import gmm
        except ImportError as error:
            raise PortError(
                f"GMM_PROVIDER is mindspeed, and mindspeed.ops.gmm cannot be imported ({error}): install "
                "MindSpeed as README says, or set GMM_PROVIDER=torch_npu"
            ) from error
        _mindspeed_gmm = gmm
    return _mindspeed_gmm


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
        mindspeed_gmm()
    _gmm_provider = name


def _operator(meaning: Callable[P, R], check: Callable[..., None]) -> Callable[P, R]:
    """The dispatching form of an operator; its signature and docstring are those of `meaning`."""
    name = meaning.__name__

    @wraps(meaning)
    def call(first: Any, /, *args: Any, **kwargs: Any) -> Any:
        check(first, *args, **kwargs)
        if on_npu(first):
            return getattr(torch_npu(), name)(first, *args, **kwargs)
        return meaning(first, *args, **kwargs)

    return cast(Callable[P, R], call)


npu_rms_norm = _operator(reference.npu_rms_norm, contracts.npu_rms_norm)
npu_add_rms_norm = _operator(reference.npu_add_rms_norm, contracts.npu_add_rms_norm)
npu_add_rms_norm_cast = _operator(reference.npu_add_rms_norm_cast, contracts.npu_add_rms_norm_cast)
npu_swiglu = _operator(reference.npu_swiglu, contracts.npu_swiglu)
npu_rotary_mul = _operator(reference.npu_rotary_mul, contracts.npu_rotary_mul)
npu_interleave_rope = _operator(reference.npu_interleave_rope, contracts.npu_interleave_rope)
npu_kv_rmsnorm_rope_cache = _operator(
    reference.npu_kv_rmsnorm_rope_cache, contracts.npu_kv_rmsnorm_rope_cache
)
scatter_update = _operator(reference.scatter_update, contracts.scatter_update)
scatter_update_ = _operator(reference.scatter_update_, contracts.scatter_update_)
npu_scatter_nd_update = _operator(reference.npu_scatter_nd_update, contracts.npu_scatter_nd_update)
npu_scatter_nd_update_ = _operator(
    reference.npu_scatter_nd_update_, contracts.npu_scatter_nd_update_
)
npu_moe_gating_top_k = _operator(reference.npu_moe_gating_top_k, contracts.npu_moe_gating_top_k)
npu_moe_init_routing = _operator(reference.npu_moe_init_routing, contracts.npu_moe_init_routing)
npu_moe_init_routing_v2 = _operator(
    reference.npu_moe_init_routing_v2, contracts.npu_moe_init_routing_v2
)
npu_moe_compute_expert_tokens = _operator(
    reference.npu_moe_compute_expert_tokens, contracts.npu_moe_compute_expert_tokens
)
npu_moe_finalize_routing = _operator(
    reference.npu_moe_finalize_routing, contracts.npu_moe_finalize_routing
)
npu_fused_infer_attention_score = _operator(
    reference.npu_fused_infer_attention_score, contracts.npu_fused_infer_attention_score
)
npu_transpose_batchmatmul = _operator(
    reference.npu_transpose_batchmatmul, contracts.npu_transpose_batchmatmul
)
npu_prefetch = _operator(reference.npu_prefetch, contracts.npu_prefetch)
npu_format_cast = _operator(reference.npu_format_cast, contracts.npu_format_cast)


@wraps(reference.npu_gmm)
def npu_gmm(x: Tensor, weight: Tensor, **kwargs: Any) -> Tensor:
    contracts.npu_gmm(x, weight, **kwargs)
    return (mindspeed_gmm() if on_npu(x) else reference).npu_gmm(x, weight, **kwargs)


@wraps(reference.npu_gmm_v2)
def npu_gmm_v2(x: Tensor, weight: Tensor, **kwargs: Any) -> Tensor:
    contracts.npu_gmm_v2(x, weight, **kwargs)
    return (mindspeed_gmm() if on_npu(x) else reference).npu_gmm_v2(x, weight, **kwargs)


@wraps(reference.npu_grouped_matmul)
def npu_grouped_matmul(
    x: Sequence[Tensor], weight: Sequence[Tensor], **kwargs: Any
) -> list[Tensor]:
    contracts.npu_grouped_matmul(x, weight, **kwargs)
    if not on_npu(x[0]) or _gmm_provider == "reference":
        return reference.npu_grouped_matmul(x, weight, **kwargs)
    if _gmm_provider == "mindspeed":
        return [_by_mindspeed(x, weight, **kwargs)]
    return torch_npu().npu_grouped_matmul(x, weight, **kwargs)


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
        return mindspeed_gmm().npu_gmm_v2(
            x[0], weight[0], group_list=group_list, group_type=group_type
        )
    groups = reference.cumulative_groups(group_list, group_list_type, weight[0].shape[0])
    return mindspeed_gmm().npu_gmm(x[0], weight[0], group_list=groups, group_type=group_type)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in], weight [out, in] -> [..., out]."""
    return kernels.linear(x, weight)


def head_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Each head's own matrix: x [B, N, S, D], weight [N, D, R] -> [B, N, S, R]."""
    return kernels.head_matmul(x, weight)


def shared_scores(q: Tensor, rows: Tensor) -> Tensor:
    """One key row for all heads: q [B, M, D], rows [B, L, D] -> [B, M, L]."""
    return kernels.shared_scores(q, rows)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + mask) v: q [B, N, S, D], k [B, N, L, D], v [B, N, L, Dv], mask added to
    the scores."""
    return kernels.attention(q, k, v, mask, scale)

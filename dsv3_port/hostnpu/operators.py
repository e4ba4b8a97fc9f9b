"""npu:: operators on the stand-in: those of ops.OPERATORS, each behind its check; all others refuse
by name.

The schemas and the meta (shape) functions stay torch_npu's. The operators are registered for the
npu device only: a tensor that was left on the CPU fails here as it does beside an NPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..ops import OPERATORS
from ..ops.attention_layouts import LAYOUTS, from_bnsd, to_bnsd
from ..ops.checks import device_rules
from . import autograd, autograd_npu, fusion_attention
from .kernels import Kernel
from .registry import names, register

# torch_npu's own code, which needs nothing of the device: storage, events, views, formats (a cast is
# launched.py's "Identity", which lays FRACTAL_NZ out as formats.py says; other formats are tags)
NATIVE = frozenset(
    """
_npu_storage_resize copy_memory_ empty_with_format empty_with_swapped_memory get_npu_format get_storage_size
npu_change_data_ptr unsafe_empty_with_format npu_format_cast npu_format_cast_ _npu_format_cast
""".split()
)


# the version that torch_npu is told (cann_device.c), as numbers: "8.3.RC1" is (8, 3)
CANN = tuple(int(n) for n in os.environ.get("DSV3_HOSTNPU_CANN", "").split(".") if n.isdigit())


def checked(name: str) -> Callable[..., Any]:
    """The operator's meaning behind its check, with the device's rules."""
    operator = OPERATORS[name]

    @wraps(operator.meaning)
    def call(*args: Any, **kwargs: Any) -> Any:
        with device_rules(CANN):
            operator.check(*args, **kwargs)
        return operator.meaning(*args, **kwargs)

    return call


def _grouped_matmul_list(
    x: list[Tensor], weight: list[Tensor], *, group_list: list[int] | None = None, **kwargs: Any
) -> list[Tensor]:
    """npu_grouped_matmul.List: group_list as numbers, cumulative."""
    groups = None if group_list is None else torch.tensor(group_list, dtype=torch.int64)
    return checked("npu_grouped_matmul")(x, weight, group_list=groups, **kwargs)


def _attention_out(name: str) -> Callable[..., Any]:
    """The .out form of a fused attention. Its schema knows no aliases: write into `out`, and return
    new tensors."""

    def call(
        *args: Any, workspace: Tensor | None = None, out: list[Tensor], **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        results = checked(name)(*args, **kwargs)
        for destination, result in zip(out, results, strict=True):
            if not result.numel():  # the lse that nobody asked for: the document says one zero
                destination.zero_()
            else:
                same = result.numel() == destination.numel()
                destination.copy_(result.view_as(destination) if same else result)
        return results

    return call


def attention_by_tensor(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """torchair's own form of the fused attention, which takes its lengths as tensors and exists in
    GE graphs only: for the engine that runs the FX graph."""
    for name in ("actual_seq_qlen", "actual_seq_kvlen"):
        if kwargs.get(name) is not None:
            kwargs[name] = kwargs[name].tolist()
    result: tuple[Tensor, Tensor] = checked(ATTENTION[1])(*args, **kwargs)
    return result


def _attention_outputs(
    query: Tensor,
    value: Tensor,
    *,
    input_layout: str = "BSH",
    num_query_heads: int = 1,
    num_key_value_heads: int = 0,
    return_softmax_lse: bool = False,
    query_rope: Tensor | None = None,
    block_table: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """The results of the fused attention, empty: torch_npu's graphs put them where a task update
    finds them. As wide as a head of the value; absorbed MLA's is as wide as its query."""
    if any(v is not None for v in others.values()):
        raise NotImplementedError(
            "the host stand-in captures the fused attention without scales only"
        )
    source, target = LAYOUTS[input_layout]
    if source not in ("BNSD", "BSND", "BSH") or query_rope is None and block_table is not None:
        raise NotImplementedError(
            "the host stand-in captures the fused attention without packed layouts, and over blocks in its "
            f"absorbed form only; not {input_layout}"
        )
    wide = to_bnsd(query, source, num_query_heads)
    width = wide.shape[-1]
    if query_rope is None:
        width = to_bnsd(value, source, num_key_value_heads or num_query_heads).shape[-1]
    lse = (*wide.shape[:3], 1) if return_softmax_lse else (0,)
    kind = query_rope if query_rope is not None else query  # an int8 query has no int8 result
    out = wide.new_empty(*wide.shape[:3], width, dtype=kind.dtype)
    return from_bnsd(out, target), torch.empty(lse, dtype=torch.float32)


def _attention_workspace(*args: Any, **kwargs: Any) -> Tensor:
    return torch.empty(16, dtype=torch.uint8)


# PyTorch's numbers of dtypes, from 0 on; bfloat16 is 15. torch_npu's own ones begin at 256
_NUMBERED = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16),
    *(torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128, torch.bool),
)


def _dtype_cast(x: Tensor, dtype: torch.dtype | int, *dtypes: None, **others: None) -> Tensor:
    """torch_npu's form of x.to(dtype), which its own C++ code calls too."""
    if isinstance(dtype, int):  # x.to(5) would be a device
        known = {**dict(enumerate(_NUMBERED)), 15: torch.bfloat16}
        if dtype not in known:
            raise NotImplementedError(f"npu_dtype_cast: dtype {dtype} has no host kernel")
        dtype = known[dtype]
    return x.to(dtype)


def _token_unpermute(permuted_tokens: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """npu_moe_token_unpermute, which also hands on what its gradient needs."""
    out = checked("npu_moe_token_unpermute")(permuted_tokens, *args, **kwargs)
    return out, permuted_tokens.clone()


def _mla_prolog(name: str) -> Callable[..., Any]:
    """Results that say nothing are torch_npu's: one zero, and none at all from CANN 8.5 on."""

    def call(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = checked(name)(*args, **kwargs)
        if CANN < (8, 5):
            return found
        return tuple(x[:0] if x.shape == (1,) else x for x in found)

    return call


ATTENTION = "npu_fused_infer_attention_score", "npu_fused_infer_attention_score_v2"
PROLOG = "npu_mla_prolog_v3", "npu_mla_prolog_v3_functional"
ADAPTED: dict[str, Callable[..., Any]] = {
    "npu_grouped_matmul.List": _grouped_matmul_list,
    **{f"{name}.out": _attention_out(name) for name in ATTENTION},
    **{f"_{name}_get_max_workspace": _attention_workspace for name in ATTENTION},
    f"_{ATTENTION[1]}_infer_output": _attention_outputs,
    **{name: _mla_prolog(name) for name in PROLOG},
    "_npu_dtype_cast": _dtype_cast,
    "_npu_moe_token_unpermute": _token_unpermute,
    "npu_dtype_cast": _dtype_cast,
    **autograd.NPU,
    **autograd_npu.NPU,
    **fusion_attention.NPU,
}


def host_kernel(name: str) -> Callable[..., Any] | None:
    """What computes the npu operator of that full name here, if anything does."""
    return ADAPTED.get(name) or (checked(name) if name in OPERATORS else None)


def _refuse(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{name}: the host stand-in has no kernel for this operator; the real NPU may. "
            "Those it has are the operators of dsv3_port/ops"
        )

    return call


def _of(name: str) -> Callable[[Any], Callable[..., Any] | None]:
    return lambda _: host_kernel(name)


def install() -> list[str]:
    """Register all of them; returns the full names of those that refuse."""
    own, refused = names("npu", "PrivateUse1"), []
    kernels: list[tuple[str, Callable[..., Any]]] = []
    for full in sorted(names("npu")):
        name = full.removeprefix("npu::")
        if name.split(".")[0] in NATIVE:
            continue
        if name in ADAPTED or name in OPERATORS:
            kernels.append((full, Kernel(full, _of(name))))
        elif full in own:
            kernels.append((full, _refuse(full)))
            refused.append(name)
    register(kernels)
    return refused

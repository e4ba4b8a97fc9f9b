"""The batched matmul with permutations folded in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import (
    FLOATS,
    ContractError,
    bad,
    cann_version,
    for_device,
    one_of,
    same_dtype,
    shape_of,
)
from .numbers import word_to_scale
from .table import operator
from .wide import unsupported, wide


def check_transpose_batchmatmul(
    input: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    perm_x1: Sequence[int] | None = None,
    perm_x2: Sequence[int] | None = None,
    perm_y: Sequence[int] | None = None,
    batch_split_factor: int | None = 1,
) -> None:
    op = "npu_transpose_batchmatmul"
    for name, x in (("input", input), ("weight", weight)):  # in torch_npu's words
        if x.dtype not in FLOATS and (x.dtype != torch.float64 or for_device(x)):
            raise ContractError(
                f"{op}: {name}'s type supported for float16, float32 and bfloat16, but got {x.dtype}"
            )
    same_dtype(op, "weight", weight, "input", input)
    second: list[tuple[int, ...]] = [(0, 1, 2)]
    if cann_version() >= (8, 5):
        second.append((0, 2, 1))
    for name, perm, wanted in (
        ("perm_x1", perm_x1, [(0, 1, 2), (1, 0, 2)]),
        ("perm_x2", perm_x2, second),
        ("perm_y", perm_y, [(1, 0, 2)]),
    ):
        if perm is not None and tuple(perm) not in wanted:
            choices = " or ".join(str(list(w)) for w in wanted)
            raise ContractError(f"{op}: {name} should be {choices}, but got {list(perm)}")
    batch = 1 if tuple(perm_x1 or ()) == (1, 0, 2) else 0  # dimension
    if (
        input.dim() != 3
        or weight.dim() != 3
        or weight.shape[0] != input.shape[batch]
        or weight.shape[2 if tuple(perm_x2 or ()) == (0, 2, 1) else 1] != input.shape[2]
    ):
        raise bad(
            op,
            "weight",
            weight.shape,
            "[B, K, N] with input [B, M, K] (perm_x1 (1, 0, 2): [M, B, K]); the "
            f"input is {list(input.shape)}",
        )
    if scale is not None:
        if scale.dtype not in (torch.int64, torch.uint64):
            raise bad(op, "scale", scale.dtype, "int64 or uint64, npu_trans_quant_param's words")
        shape_of(op, "scale", scale, weight.numel() // input.shape[2], names="[B*N]")
        one_of(op, "batch_split_factor (with a scale)", batch_split_factor, None, 1)
    if weight.shape[2] % (batch_split_factor or 1):
        raise bad(
            op, "batch_split_factor", batch_split_factor, f"a divisor of N, {weight.shape[2]}"
        )


@operator(check_transpose_batchmatmul)
def npu_transpose_batchmatmul(
    input: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    perm_x1: Sequence[int] | None = None,
    perm_x2: Sequence[int] | None = None,
    perm_y: Sequence[int] | None = None,
    batch_split_factor: int | None = 1,
) -> Tensor:
    """Batched matmul with the permutations folded in: input.permute(perm_x1) @
    weight.permute(perm_x2), then perm_y.

    input [B, M, K] (or [M, B, K] with perm_x1 (1, 0, 2)), weight [B, K, N] -> [M, B, N]: perm_y is
    (1, 0, 2), also when None. batch_split_factor f > 1 -> [f, M, B*N/f]. scale [B*N]: int8
    [M, 1, B*N], cut towards zero as the vendor's golden does. Source: operator document and test of
    Ascend/op-plugin.
    """
    unsupported("npu_transpose_batchmatmul", bias=bias)
    y = wide(input).permute(tuple(perm_x1 or (0, 1, 2))) @ wide(weight).permute(
        tuple(perm_x2 or (0, 1, 2))
    )
    y = y.permute(tuple(perm_y or (1, 0, 2)))
    if scale is not None:
        y = y.flatten(1).unsqueeze(1) * word_to_scale(scale.view(torch.int64))
        return y.trunc().clamp(-128, 127).to(torch.int8)
    y = y.to(input.dtype).contiguous()
    if batch_split_factor in (None, 1):
        return y
    return y.view(y.shape[0], batch_split_factor, -1).transpose(0, 1).contiguous()

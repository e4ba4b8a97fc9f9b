"""The batched matmul with permutations folded in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .checks import bad, floating, one_of, same_dtype
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
    floating(op, "input", input)
    same_dtype(op, "weight", weight, "input", input)
    for name, perm, wanted in (
        ("perm_x1", perm_x1, ((0, 1, 2), (1, 0, 2))),
        ("perm_x2", perm_x2, ((0, 1, 2),)),
        ("perm_y", perm_y, ((1, 0, 2),)),
    ):
        if perm is not None:
            one_of(op, name, tuple(perm), *wanted)
    batch = 1 if tuple(perm_x1 or ()) == (1, 0, 2) else 0  # dimension
    if (
        input.dim() != 3
        or weight.dim() != 3
        or weight.shape[0] != input.shape[batch]
        or weight.shape[1] != input.shape[2]
    ):
        raise bad(
            op,
            "weight",
            weight.shape,
            "[B, K, N] with input [B, M, K] (perm_x1 (1, 0, 2): [M, B, K]); the "
            f"input is {list(input.shape)}",
        )
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
    (1, 0, 2), also when None. batch_split_factor f > 1 -> [f, M, B*N/f]. Source: operator document
    and test of Ascend/op-plugin.
    """
    unsupported("npu_transpose_batchmatmul", bias=bias, scale=scale)
    y = wide(input).permute(tuple(perm_x1 or (0, 1, 2))) @ wide(weight).permute(
        tuple(perm_x2 or (0, 1, 2))
    )
    y = y.permute(tuple(perm_y or (1, 0, 2))).to(input.dtype).contiguous()
    if batch_split_factor in (None, 1):
        return y
    return y.view(y.shape[0], batch_split_factor, -1).transpose(0, 1).contiguous()

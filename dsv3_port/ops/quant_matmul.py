"""The product of two int8 (or int4) matrices with their scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import bad, dtype_of, shape_of
from .numbers import dtype_named, unpack_int4, word_to_offset, word_to_scale
from .table import operator
from .wide import exact_product, unsupported

OP = "npu_quant_matmul"
MOST = 65535  # of a last dimension
RESULTS = torch.int8, torch.float16, torch.bfloat16, torch.int32
# result -> (dtypes of scale without pertoken_scale, with it)
SCALES: dict[torch.dtype, tuple[tuple[torch.dtype, ...], tuple[torch.dtype, ...]]] = {
    torch.int8: ((torch.int64, torch.float32), ()),
    torch.float16: ((torch.int64, torch.float32), (torch.float32,)),
    torch.bfloat16: ((torch.float32, torch.bfloat16), (torch.float32, torch.bfloat16)),
    torch.int32: ((torch.float32, torch.bfloat16), ()),
}
FLOAT_BIAS = torch.bfloat16, torch.float32


def _result(output_dtype: int | None) -> torch.dtype:
    return (
        torch.int8
        if output_dtype is None
        else dtype_named(OP, "output_dtype", output_dtype, *RESULTS)
    )


def _columns(x2: Tensor) -> int:
    return x2.shape[-1] * (8 if x2.dtype == torch.int32 and x2.is_contiguous() else 1)


def check_quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
    **other: object,
) -> None:
    dtype_of(OP, "x1", x1, torch.int8, torch.int32)
    dtype_of(OP, "x2", x2, x1.dtype)
    result, columns = _result(output_dtype), _columns(x2)
    inner = x2.shape[-2] * (8 if x2.dtype == torch.int32 and not x2.is_contiguous() else 1)
    for name, x in (("x1", x1), ("x2", x2)):
        if not 2 <= x.dim() <= 6 or x.shape[-1] > MOST or not x.numel():
            raise bad(
                OP, name, x.shape, f"2-D to 6-D, not empty, its last dimension at most {MOST}"
            )
    if x1.shape[-1] * (8 if x1.dtype == torch.int32 else 1) != inner:
        raise bad(OP, "x2", x2.shape, f"[.., K, N] with x1 {list(x1.shape)}")
    if scale.dim() == 2 and offset is None:
        raise bad(OP, "offset", None, "given with a scale of 2 dimensions")
    if scale.dim() != 2 and (scale.dim() != 1 or scale.shape[0] not in (1, columns)):
        raise bad(OP, "scale", scale.shape, f"[{columns}] or [1]")
    alone, beside = SCALES[result]
    wanted = alone if pertoken_scale is None else beside
    if not wanted:
        raise bad(OP, "pertoken_scale", pertoken_scale, f"None with a result of {result}")
    dtype_of(OP, "scale", scale, *wanted)
    if pertoken_scale is not None:
        dtype_of(OP, "pertoken_scale", pertoken_scale, torch.float32)
        shape_of(OP, "pertoken_scale", pertoken_scale, x1.shape[-2], names="[M]")
    if offset is not None and scale.dim() == 1:
        dtype_of(OP, "offset", offset, torch.float32)
        if result != torch.int8 or offset.dim() != 1 or offset.shape[0] not in (1, columns):
            raise bad(OP, "offset", offset, f"[{columns}] or [1], with a result of int8")
    if bias is not None:
        with_float = result == torch.bfloat16 or (
            result == torch.float16 and pertoken_scale is not None
        )
        dtype_of(OP, "bias", bias, torch.int32, *(FLOAT_BIAS if with_float else ()))
        if bias.shape[-1] != columns or bias.dim() not in (1, 3):
            raise bad(OP, "bias", bias.shape, f"[{columns}] or [batch, 1, {columns}]")


@operator(check_quant_matmul)
def npu_quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
    scale_dtype: int | None = None,
    group_sizes: Sequence[int] | None = None,
    y_scale: Tensor | None = None,
) -> Tensor:
    """(x1 @ x2 + int32 bias) * scale * pertoken_scale + float bias or offset; one cast.

    x1 [.., M, K], x2 [.., K, N] int8 (a transposed view is legal), or int4 eight in an int32; scale [1]
    or [N], pertoken_scale [M], bias [N]. output_dtype None means int8 (rounded, clipped); int32 is the
    product and int32 bias alone. The sums are exact. An int64 scale is npu_trans_quant_param's word,
    whose offset counts too. Source: operator document of Ascend/op-plugin.
    """
    others = {
        "x1_dtype": x1_dtype,
        "x2_dtype": x2_dtype,
        "group_sizes": group_sizes,
        "y_scale": y_scale,
    }
    others |= {"pertoken_scale_dtype": pertoken_scale_dtype, "scale_dtype": scale_dtype}
    unsupported(OP, **others, scale=None if scale.dim() == 1 else "of 2 dimensions")
    if x1.dtype == torch.int32:
        x1 = unpack_int4(x1)
        x2 = unpack_int4(x2) if x2.is_contiguous() else unpack_int4(x2.mT).mT
    total = exact_product(x1, x2)
    if bias is not None and bias.dtype == torch.int32:
        total = total + bias
    result = _result(output_dtype)
    if result == torch.int32:
        return total.to(torch.int32)
    word = scale.dtype == torch.int64
    y = total.float() * (word_to_scale(scale) if word else scale.float())
    if pertoken_scale is not None:
        y = y * pertoken_scale[:, None]
    if bias is not None and bias.dtype != torch.int32:
        y = y + bias.float()
    if result != torch.int8:
        return y.to(result)
    if word:
        y = y + word_to_offset(scale)
    y = y if offset is None else y + offset
    return y.round().clamp(-128, 127).to(torch.int8)

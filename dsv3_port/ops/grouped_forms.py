"""Every form of npu_grouped_matmul that A2 and A3 have, beside the one that the port uses
(grouped matmul of one x, one stacked weight, split along its rows).

A form is a list of problems (rows, weight, its bias and scales) and what becomes of their results:
one tensor for all, or one each. Rules: operator document and host code of Ascend/op-plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import ContractError, bad, for_device
from .numbers import word_to_scale
from .wide import exact_product, wide

OP = "npu_grouped_matmul"
NO_SPLIT, SPLIT_M, SPLIT_K = -1, 0, 2  # group_type
MOST_STACKED, MOST_LISTED, WIDEST = 1024, 128, 65535
# PyTorch's numbers of dtypes, as a torch.dtype arrives through the dispatcher
DTYPES = {1: torch.int8, 3: torch.int32, 5: torch.float16, 6: torch.float32, 15: torch.bfloat16}
# int8 x: the scale's dtype -> the result's (output_dtype must name it, None means int8)
INT8_RESULTS = {
    torch.int64: torch.int8,
    torch.bfloat16: torch.bfloat16,
    torch.float32: torch.float16,
}
FLOAT_BIAS = {
    torch.float16: torch.float16,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
}
ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    1: torch.relu,
    2: lambda x: F.gelu(x, approximate="tanh"),
    4: lambda x: x * torch.sigmoid(1.702 * x),
    5: F.silu,
}

Tensors = Sequence[Tensor]


def check(
    x: Tensors,
    weight: Tensors,
    group_list: Tensor | None,
    split_item: int,
    group_type: int,
    kind: int,
) -> None:
    """Counts and ranks of a form; kind: group_list_type."""
    if len(weight) > MOST_LISTED or (weight[0].dim() == 3 and len(weight[0]) > MOST_STACKED):
        most = f"at most {MOST_STACKED} experts in one tensor, {MOST_LISTED} in a list"
        raise bad(OP, "weight", f"{max(len(weight), len(weight[0]))} experts", most)
    widest = max(t.shape[-1] for t in (*x, *weight))
    if widest > WIDEST:
        raise bad(OP, "x or weight", f"{widest} wide", f"at most {WIDEST} in its last dimension")
    if kind == 2 and for_device(x[0]) and (x[0].dtype != torch.int8 or group_type != SPLIT_M):
        raise bad(OP, "group_list_type", 2, "0 or 1: pairs belong to int8 and group_type 0")
    if group_type == NO_SPLIT:
        if split_item not in (0, 1):
            raise bad(OP, "split_item", split_item, "0 or 1 with group_type -1")
        if group_list is not None:
            raise bad(OP, "group_list", group_list, "None with group_type -1")
        if len(x) != len(weight) or any(w.dim() != 2 for w in weight):
            raise bad(
                OP, "weight", f"{len(weight)} tensors", f"{len(x)}, one 2-D tensor for each x"
            )
        if not 2 <= x[0].dim() <= 6 or any(t.dim() != x[0].dim() for t in x):
            raise bad(OP, "x", [t.dim() for t in x], "tensors of one rank, 2 to 6")
        return
    if any(t.dim() != 2 for t in x):
        raise bad(OP, "x", [t.dim() for t in x], f"2-D tensors with group_type {group_type}")
    if group_type == SPLIT_K:
        if split_item not in (2, 3) or len(x) != 1 or len(weight) != 1 or weight[0].dim() != 2:
            raise bad(
                OP,
                "weight",
                f"{len(weight)} tensors",
                "one [K, N] with one x [M, K] and split_item 2 or 3",
            )
        if group_list is None:
            raise bad(OP, "group_list", None, "given with group_type 2: it cuts K")
        return
    if len(x) > 1 and (len(weight) != len(x) or any(w.dim() != 2 for w in weight)):
        raise bad(OP, "weight", f"{len(weight)} tensors", f"{len(x)}, one 2-D tensor for each x")
    if len(x) == 1 and group_list is None:
        raise bad(OP, "group_list", None, "given with one x")
    if split_item in (0, 1) and group_list is not None:
        if len(x) != 1 or len(weight) != group_list.shape[0]:
            raise bad(
                OP, "group_list", group_list, "as long as weight, with one x, in split_item 0 and 1"
            )


def run(
    x: Tensors,
    weight: Tensors,
    cumulative: Tensor | None,
    split_item: int,
    group_type: int,
    *,
    bias: Tensors | None = None,
    scale: Tensors | None = None,
    antiquant_scale: Tensors | None = None,
    antiquant_offset: Tensors | None = None,
    per_token_scale: Tensors | None = None,
    act_type: int = 0,
    output_dtype: Any = None,
) -> list[Tensor]:
    """The result of any form; `cumulative`: the groups' ends on the split axis, int64."""
    ends = None if cumulative is None else [int(n) for n in cumulative]
    dtype = _result_dtype(x[0], weight[0], scale, output_dtype)
    if group_type == SPLIT_K:
        assert ends is not None
        parts = [
            wide(x[0])[:, a:b] @ wide(weight[0])[a:b]
            for a, b in zip([0, *ends], ends, strict=False)
        ]
        return [torch.stack(parts).to(dtype)]
    one_weight = len(weight) == 1 and weight[0].dim() == 3
    weights = list(weight[0].unbind(0)) if one_weight else list(weight)
    rows = list(x)
    if len(x) == 1 and ends is not None and group_type == SPLIT_M:
        rows = [x[0][a:b] for a, b in zip([0, *ends], ends, strict=False)]
    tokens = per_token_scale
    if tokens is not None and len(tokens) == 1 and len(rows) > 1:
        bounds = [0]
        for r in rows:
            bounds.append(bounds[-1] + r.shape[0])
        tokens = [tokens[0].flatten()[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]

    def of(values: Tensors | None, i: int) -> Tensor | None:
        """A group's own bias or scale: one tensor for each, or one tensor [E, N] for all."""
        if values is None:
            return None
        return values[0][i] if len(values) == 1 and len(weights) > 1 or one_weight else values[i]

    results = [
        _one(
            r,
            w,
            of(bias, i),
            of(scale, i),
            of(antiquant_scale, i),
            of(antiquant_offset, i),
            None if tokens is None else tokens[i],
            act_type,
            dtype,
        )
        for i, (r, w) in enumerate(zip(rows, weights, strict=True))
    ]
    return results if split_item in (0, 1) else [_joined(results, x)]


def _joined(results: list[Tensor], x: Tensors) -> Tensor:
    """One tensor as long as x; rows behind the last group are undefined: NaN, or 0 for integers."""
    y = torch.cat(results)
    missing = sum(t.shape[0] for t in x) - y.shape[0]
    if not missing:
        return y
    return torch.cat(
        (y, y.new_full((missing, y.shape[1]), torch.nan if y.is_floating_point() else 0))
    )


def _result_dtype(
    x: Tensor, weight: Tensor, scale: Tensors | None, output_dtype: Any
) -> torch.dtype:
    asked = output_dtype if isinstance(output_dtype, torch.dtype) else DTYPES.get(output_dtype)
    if output_dtype is not None and asked is None:
        raise bad(OP, "output_dtype", output_dtype, " or ".join(str(d) for d in DTYPES.values()))
    asked = asked or x.dtype
    if x.dtype != torch.int8:
        wanted = x.dtype
    elif scale is None:
        wanted = torch.int32 if weight.dtype == torch.int8 else x.dtype
    else:
        wanted = INT8_RESULTS.get(scale[0].dtype, torch.int8)
    if asked != wanted:
        raise bad(OP, "output_dtype", str(asked), f"{wanted} with x of {x.dtype}" + _with(scale))
    return wanted


def _with(scale: Tensors | None) -> str:
    return "" if scale is None else f" and a scale of {scale[0].dtype}"


def _one(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    antiquant_scale: Tensor | None,
    antiquant_offset: Tensor | None,
    tokens: Tensor | None,
    act_type: int,
    dtype: torch.dtype,
) -> Tensor:
    if antiquant_scale is not None:  # weight-only int8, in the dtype of x
        w = w.to(antiquant_scale.dtype)
        w = (w if antiquant_offset is None else w + antiquant_offset) * antiquant_scale
    integers = x.dtype == torch.int8
    y = exact_product(x, w) if integers else wide(x) @ wide(w)
    late = bias is not None and integers and bias.dtype != torch.int32
    if bias is not None and not late:
        y = y + (bias.double() if integers else wide(bias))
    if scale is not None:
        factor = word_to_scale(scale) if scale.dtype == torch.int64 else scale.float()
        y = y.float() * factor
        if tokens is not None:
            y = y * tokens.float().view(-1, 1)
    if late and bias is not None:
        y = y + bias.float()
    if act_type:
        y = ACTIVATIONS[act_type](y.float())
    return y.round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else y.to(dtype)


def check_operands(
    x: Tensors,
    weight: Tensors,
    bias: Tensors | None,
    scale: Tensors | None,
    antiquant_scale: Tensors | None,
    per_token_scale: Tensors | None,
) -> None:
    """Dtypes that go together on A2 and A3."""
    a, w = x[0].dtype, weight[0].dtype
    if a != w and not (w == torch.int8 and antiquant_scale is not None):
        raise bad(OP, "weight", w, f"{a}, the dtype of x, or int8 with an antiquant_scale")
    if antiquant_scale is not None and (w != torch.int8 or antiquant_scale[0].dtype != a):
        raise bad(
            OP,
            "antiquant_scale",
            antiquant_scale[0].dtype,
            f"{a}, the dtype of x, with an int8 weight",
        )
    if bias is not None:
        wanted = [torch.int32, torch.bfloat16, torch.float16, torch.float32]
        if a != torch.int8:
            wanted = [FLOAT_BIAS[a]] if a in FLOAT_BIAS else [a]
        if bias[0].dtype not in wanted:
            names = " or ".join(str(d).removeprefix("torch.") for d in wanted)
            raise bad(OP, "bias", bias[0].dtype, f"{names} beside x of {a}")
    if scale is not None and (a != torch.int8 or scale[0].dtype not in INT8_RESULTS):
        raise bad(OP, "scale", scale[0].dtype, "int64, bfloat16 or float32, with x of int8")
    if per_token_scale is not None:
        if scale is None or scale[0].dtype == torch.int64:
            raise bad(
                OP,
                "per_token_scale",
                per_token_scale[0].dtype,
                "given with a bfloat16 or float32 scale",
            )
        if per_token_scale[0].dtype != torch.float32:
            raise bad(OP, "per_token_scale", per_token_scale[0].dtype, "float32")


def require_group_type(group_type: int | None) -> None:
    """In torch_npu's words, which code looks for."""
    if group_type is None:
        raise ContractError(f"{OP}: Requires manual passing group_type, current is None.")
    if group_type not in (NO_SPLIT, SPLIT_M, SPLIT_K):
        raise ContractError(f"{OP}: The group type must be -1, 0 or 2, but now is [{group_type}]")

"""Every wrong argument is refused by name, with what it is and what the operator's document wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import ops

i32, i64, f16, bf16 = torch.int32, torch.int64, torch.float16, torch.bfloat16


def f(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def ints(values: Any, dtype: torch.dtype = i32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def gate(x: Tensor | None = None, k: int = 2, **keywords: Any) -> Any:
    settings = {"group_count": 4, "k_group": 2, "group_select_mode": 1, "norm_type": 1} | keywords
    return ops.npu_moe_gating_top_k(f(3, 16) if x is None else x, k, **settings)


def route(row_idx: Tensor | None = None, chosen: Tensor | None = None, active: int = 3) -> Any:
    row_idx = ints([[0, 3], [1, 4], [2, 5]]) if row_idx is None else row_idx
    chosen = ints([[2, 0], [0, 3], [2, 1]]) if chosen is None else chosen
    return ops.npu_moe_init_routing(f(3, 2), row_idx, chosen, active)


def route_v2(**keywords: Any) -> Any:
    return ops.npu_moe_init_routing_v2(
        f(3, 2), ints([[2, 0], [0, 3], [2, 1]]), **({"expert_num": 4} | keywords)
    )


def finalize(
    rows: Tensor | None = None,
    skip1: Any = None,
    skip2: Any = None,
    bias: Any = None,
    scales: Any = None,
    index: Any = None,
    experts: Any = None,
    **keywords: Any,
) -> Any:
    rows = f(6, 2) if rows is None else rows
    scales = f(3, 2) if scales is None else scales
    index = ints([3, 1, 4, 0, 5, 2]) if index is None else index
    return ops.npu_moe_finalize_routing(
        rows, skip1, skip2, bias, scales, index, experts, **keywords
    )


def gmm(
    x: Any = None,
    weight: Any = None,
    groups: Any = (2, 4, 6),
    dtype: torch.dtype = i64,
    **keywords: Any,
) -> Any:
    x = [f(6, 2)] if x is None else x
    groups = ints(groups, dtype) if isinstance(groups, (list, tuple)) else groups
    settings = {"group_list": groups, "group_type": 0, "split_item": 3} | keywords
    return ops.npu_grouped_matmul(x, [f(3, 2, 5)] if weight is None else weight, **settings)


def int8_gmm(pairs: list[list[int]]) -> Any:
    """With group_list_type 2, which a device takes with int8 only."""
    x, weight = ints([[1, 2]] * 6, torch.int8), ints([[[1] * 5] * 2] * 3, torch.int8)
    return gmm([x], [weight], pairs, group_list_type=2, output_dtype=3)


def scatter(
    data: Tensor | None = None, indices: Any = (0, 1), updates: Tensor | None = None, axis: int = -2
) -> Any:
    indices = ints(indices, i64) if isinstance(indices, (list, tuple)) else indices
    return ops.scatter_update_(
        f(2, 1, 4, 3) if data is None else data,
        indices,
        f(2, 1, 2, 3) if updates is None else updates,
        axis,
    )


def cached(**keywords: Any) -> Any:
    values = {
        "kv": f(2, 1, 1, 576),
        "gamma": f(512),
        "cos": f(2, 1, 1, 64),
        "sin": f(2, 1, 1, 64),
        "index": ints([[0], [1]], i64),
        "k_cache": f(2, 1, 4, 64),
        "ckv_cache": f(2, 1, 4, 512),
    }
    mode = keywords.pop("cache_mode", "Norm")
    return ops.npu_kv_rmsnorm_rope_cache(*(values | keywords).values(), cache_mode=mode)


def attend(
    q: Tensor | None = None, k: Tensor | None = None, v: Tensor | None = None, **keywords: Any
) -> Any:
    settings: dict[str, Any] = {"num_heads": 4, "input_layout": "BNSD"} | keywords
    return ops.npu_fused_infer_attention_score(
        f(2, 4, 3, 8) if q is None else q,
        f(2, 4, 5, 8) if k is None else k,
        f(2, 4, 5, 8) if v is None else v,
        **settings,
    )


def rope(x: Tensor, cos: Tensor | None = None) -> Any:
    cos = f(x.shape[0], 1, x.shape[2], 64, dtype=x.dtype) if cos is None else cos
    return ops.npu_interleave_rope(x, cos, cos)


def mla(width: int = 512, kv_heads: int = 1, heads: int = 4, rope_width: int = 64) -> Any:
    return attend(
        f(2, heads, 1, width),
        f(2, kv_heads, 5, width),
        f(2, kv_heads, 5, width),
        num_heads=heads,
        num_key_value_heads=kv_heads,
        query_rope=f(2, heads, 1, rope_width),
        key_rope=f(2, kv_heads, 5, rope_width),
    )


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # norms
    "rms gamma shape": (
        lambda: ops.npu_rms_norm(f(2, 8), f(4)),
        ValueError,
        r"npu_rms_norm: gamma is \[4\]",
    ),
    "rms gamma dtype": (
        lambda: ops.npu_rms_norm(f(2, 8), f(8, dtype=f16)),
        TypeError,
        "gamma is float16",
    ),
    "rms int": (lambda: ops.npu_rms_norm(f(2, 8, dtype=i32), f(8)), TypeError, "x is int32"),
    "add shapes": (
        lambda: ops.npu_add_rms_norm(f(2, 8), f(1, 8), f(8)),
        ValueError,
        r"x2 is \[1, 8\]",
    ),
    "add dtypes": (
        lambda: ops.npu_add_rms_norm(f(2, 8), f(2, 8, dtype=bf16), f(8)),
        TypeError,
        "x2 is bfloat16",
    ),
    "add gamma": (
        lambda: ops.npu_add_rms_norm(f(2, 8, dtype=bf16), f(2, 8, dtype=bf16), f(8)),
        TypeError,
        "gamma is float32; it must be bfloat16",
    ),
    "cast name": (
        lambda: ops.npu_add_rms_norm_cast(f(2, 8), f(1, 8), f(8)),
        ValueError,
        "npu_add_rms_norm_cast: x2",
    ),
    # SwiGLU and rope
    "swiglu odd": (lambda: ops.npu_swiglu(f(2, 7)), ValueError, r"input is \[2, 7\].*even"),
    "swiglu empty": (lambda: ops.npu_swiglu(f(0, 8)), ValueError, "non-empty"),
    "swiglu view": (lambda: ops.npu_swiglu(f(8, 2).t()), ValueError, "non-contiguous"),
    "swiglu dim": (lambda: ops.npu_swiglu(f(2, 8), 2), ValueError, "dim is 2"),
    "rotary odd": (
        lambda: ops.npu_rotary_mul(f(1, 1, 1, 7), f(1, 1, 1, 7), f(1, 1, 1, 7)),
        ValueError,
        "even last",
    ),
    "rotary wide": (
        lambda: ops.npu_rotary_mul(f(1, 1, 1, 896), f(1, 1, 1, 896), f(1, 1, 1, 896)),
        ValueError,
        "896",
    ),
    "rotary mode": (
        lambda: ops.npu_rotary_mul(f(1, 1, 1, 8), f(1, 1, 1, 8), f(1, 1, 1, 8), "quarter"),
        ValueError,
        "should be half or interleave, but got quarter",
    ),
    "rotary cos": (
        lambda: ops.npu_rotary_mul(f(1, 2, 3, 8), f(1, 1, 2, 8), f(1, 1, 3, 8)),
        ValueError,
        r"r1 \(cos\)",
    ),
    "rotary sin width": (
        lambda: ops.npu_rotary_mul(f(1, 2, 3, 8), f(1, 1, 3, 8), f(1, 1, 3, 1)),
        ValueError,
        r"r2 \(sin\).*last dim, 8",
    ),
    "rotary interleave batch": (
        lambda: ops.npu_rotary_mul(f(2, 2, 3, 8), f(2, 1, 3, 8), f(2, 1, 3, 8), "interleave"),
        ValueError,
        "in mode 'interleave'",
    ),
    "rotary matrix": (
        lambda: ops.npu_rotary_mul(f(1, 1, 1, 8), f(1, 1, 1, 8), f(1, 1, 1, 8), "half", f(4, 4)),
        ValueError,
        "rotate",
    ),
    "rope head size": (
        lambda: rope(f(1, 2, 3, 32), f(1, 1, 3, 32)),
        ValueError,
        r"\[B, N, S, 64\]",
    ),
    "rope cos heads": (lambda: rope(f(1, 2, 3, 64), f(1, 2, 3, 64)), ValueError, "head dim is 1"),
    "rope cos dtype": (
        lambda: rope(f(1, 2, 3, 64, dtype=bf16), f(1, 1, 3, 64)),
        TypeError,
        "cos is float32",
    ),
    "rope view": (lambda: rope(f(1, 3, 2, 64).transpose(1, 2)), ValueError, "contiguous"),
    # caches
    "scatter dtype": (
        lambda: scatter(updates=f(2, 1, 2, 3, dtype=f16)),
        TypeError,
        "updates is float16",
    ),
    "scatter data dtype": (
        lambda: scatter(f(2, 1, 4, 3, dtype=i64), updates=f(2, 1, 2, 3, dtype=i64)),
        TypeError,
        "input is int64",
    ),
    "scatter index dtype": (lambda: scatter(indices=f(2)), TypeError, "indices is float32"),
    "scatter rank": (lambda: scatter(updates=f(2, 2, 3)), ValueError, "of the input's rank"),
    "scatter axis": (lambda: scatter(axis=0), ValueError, "axis is 0"),
    "scatter index shape": (lambda: scatter(indices=[0, 1, 2]), ValueError, "one for each row"),
    "scatter rows": (lambda: scatter(indices=[0], updates=f(1, 1, 2, 3)), ValueError, "2 rows"),
    "scatter width": (lambda: scatter(updates=f(2, 1, 2, 4)), ValueError, "but for dims 0 and 2"),
    "scatter end": (lambda: scatter(indices=[0, 3]), ValueError, "indices is 3; .*start 0..2"),
    "scatter negative": (lambda: scatter(indices=[0, -1]), ValueError, "indices is -1"),
    "scatter batch": (lambda: scatter(indices=[[0, 0], [2, 0]]), ValueError, r"row 0\.\.1"),
    "scatter name": (
        lambda: ops.scatter_update(f(2, 4), ints([0, 9], i64), f(2, 1), -1),
        ValueError,
        "^scatter_update: indices",
    ),
    "nd rank": (
        lambda: ops.npu_scatter_nd_update_(f(4, 2), ints([1], i64), f(1, 2)),
        ValueError,
        "rank 2",
    ),
    "nd shape": (
        lambda: ops.npu_scatter_nd_update_(f(4, 2), ints([[1]], i64), f(1, 3)),
        ValueError,
        "updates",
    ),
    "nd bounds": (
        lambda: ops.npu_scatter_nd_update_(f(4, 2), ints([[4]], i64), f(1, 2)),
        ValueError,
        "outside",
    ),
    "nd dtype": (
        lambda: ops.npu_scatter_nd_update(f(4, 2, dtype=i32), ints([[1]]), f(1, 2, dtype=i32)),
        TypeError,
        "input is int32",
    ),
    "cache kv": (lambda: cached(kv=f(2, 1, 1, 128)), ValueError, "kv is .* 576"),
    "cache gamma": (lambda: cached(gamma=f(256)), ValueError, r"gamma is \[256\]"),
    "cache index": (lambda: cached(index=ints([[0], [1]])), TypeError, "index is int32"),
    "cache index shape": (lambda: cached(index=ints([0, 1], i64)), ValueError, r"index is \[2\]"),
    "cache index value": (lambda: cached(index=ints([[0], [4]], i64)), ValueError, r"in 0\.\.3"),
    "cache mode": (lambda: cached(cache_mode="paged"), ValueError, "cache_mode is 'paged'"),
    "cache order": (lambda: cached(k_cache=f(2, 1, 4, 512)), ValueError, "k_cache"),
    # routing
    "gate rank": (lambda: gate(f(3, 4, 4)), ValueError, "x is"),
    "gate bias dtype": (
        lambda: gate(f(3, 16, dtype=bf16), bias=f(16)),
        TypeError,
        "bias is float32",
    ),
    "gate bias shape": (lambda: gate(bias=f(8)), ValueError, "bias"),
    "gate divides": (
        lambda: gate(group_count=3),
        ValueError,
        "a divisor of the number of experts, 16",
    ),
    "gate group size": (lambda: gate(group_count=8), ValueError, "more than 2"),
    "gate k_group": (lambda: gate(k_group=5), ValueError, "k_group is 5"),
    "gate k": (lambda: gate(k=9), ValueError, r"k is 9; it must be in 1\.\.8"),
    "gate k zero": (lambda: gate(k=0), ValueError, "k is 0"),
    "gate renorm": (lambda: gate(renorm=1), ValueError, "renorm is 1"),
    "gate mode": (lambda: gate(group_select_mode=2), ValueError, "group_select_mode"),
    "gate experts": (lambda: gate(f(1, 4096)), ValueError, "2048"),
    "route row_idx dtype": (
        lambda: route(ints([[0, 3], [1, 4], [2, 5]], i64)),
        TypeError,
        "row_idx is int64",
    ),
    "route row_idx shape": (
        lambda: route(ints([0, 3, 1, 4, 2, 5])),
        ValueError,
        r"row_idx is \[6\]",
    ),
    "route row_idx order": (
        lambda: route(ints([[0, 1], [2, 3], [4, 5]])),
        ValueError,
        r"row_idx\[t, j\] = j\*n \+ t",
    ),
    "route row_idx view": (
        lambda: route(ints([[0, 1, 2], [3, 4, 5]]).t()),
        ValueError,
        "contiguous",
    ),
    "route experts dtype": (
        lambda: route(chosen=ints([[2, 0], [0, 3], [2, 1]], i64)),
        TypeError,
        "expert_idx is int",
    ),
    "route experts shape": (lambda: route(chosen=ints([[2, 0], [0, 3]])), ValueError, "expert_idx"),
    "route active": (lambda: route(active=-1), ValueError, "active_num is -1"),
    "v2 expert_num": (lambda: route_v2(expert_num=-1), ValueError, "expert_num is -1"),
    "v2 range": (lambda: route_v2(active_expert_range=[2, 5]), ValueError, "active_expert_range"),
    "v2 type": (lambda: route_v2(expert_tokens_num_type=3), ValueError, "expert_tokens_num_type"),
    "v2 capacity": (lambda: route_v2(drop_pad_mode=1), ValueError, "expert_capacity"),
    "v2 scale": (lambda: route_v2(scale=f(4)), ValueError, "scale"),
    "v2 smooth": (lambda: route_v2(scale=f(3, 2), quant_mode=1), ValueError, "quant_mode 1"),
    "count dtype": (
        lambda: ops.npu_moe_compute_expert_tokens(ints([0, 1], i64), 2),
        TypeError,
        "int64",
    ),
    "count order": (
        lambda: ops.npu_moe_compute_expert_tokens(ints([1, 0]), 2),
        ValueError,
        "not sorted",
    ),
    "count experts": (
        lambda: ops.npu_moe_compute_expert_tokens(ints([0, 1]), 4096),
        ValueError,
        "num_expert is 4096",
    ),
    "finalize scales": (
        lambda: finalize(scales=f(3, 2, dtype=f16)),
        TypeError,
        "scales is float16",
    ),
    "finalize index dtype": (
        lambda: finalize(index=ints([0] * 6, i64)),
        TypeError,
        "expanded_src_to_dst_row is int64",
    ),
    "finalize index shape": (
        lambda: finalize(index=ints([0, 1])),
        ValueError,
        r"expanded_src_to_dst_row is \[2\]; it must be \[n\*k\] with scales",
    ),
    "finalize skip2": (lambda: finalize(skip2=f(3, 2)), ValueError, "only together with skip1"),
    "finalize skip shape": (lambda: finalize(skip1=f(2, 2)), ValueError, "skip1"),
    "finalize skip dtype": (
        lambda: finalize(skip1=f(3, 2, dtype=bf16)),
        TypeError,
        "skip1 is bfloat16",
    ),
    "finalize bias": (lambda: finalize(bias=f(4, 2)), ValueError, "export_for_source_row"),
    "finalize experts": (
        lambda: finalize(experts=ints([[0, 1]] * 3, i64)),
        TypeError,
        "export_for_source_row is int",
    ),
    "finalize minus one": (
        lambda: finalize(index=ints([-1, 1, 2, 3, 4, 5])),
        ValueError,
        "needs drop_pad_mode 1 or 3",
    ),
    "finalize rows": (lambda: finalize(drop_pad_mode=1), ValueError, r"\[E, C, H\]"),
    "finalize mode": (lambda: finalize(drop_pad_mode=4), ValueError, "drop_pad_mode is 4"),
    # grouped matmul
    "gmm list": (lambda: gmm(x=f(6, 2)), TypeError, "x is .* a list of tensors"),
    "gmm group_type": (
        lambda: gmm(group_type=None),
        ValueError,
        "Requires manual passing group_type",
    ),
    "gmm int32": (lambda: gmm(dtype=i32), TypeError, "group_list is int32; it must be int64"),
    "gmm plain list": (
        lambda: ops.npu_grouped_matmul(
            [f(6, 2)], [f(1, 2, 5)], group_list=[6], group_type=0, split_item=3
        ),
        TypeError,
        "group_list is a list",
    ),
    "gmm counts decreasing": (
        lambda: gmm(groups=[3, 1, 2]),
        ValueError,
        r"counts are group_list_type 1",
    ),
    "gmm counts rising": (lambda: gmm(groups=[1, 2, 3]), ValueError, "ending at 6"),
    "gmm cumulative": (lambda: gmm(groups=[2, 4, 6], group_list_type=1), ValueError, "add up to 6"),
    "gmm pairs": (
        lambda: int8_gmm([[1, 3], [0, 3], [0, 0]]),
        ValueError,
        "ascending",
    ),
    "gmm pairs sum": (
        lambda: int8_gmm([[0, 3], [1, 4], [0, 0]]),
        ValueError,
        "add up to 6",
    ),
    "gmm groups": (lambda: gmm(groups=[2, 6]), ValueError, r"group_list is \[2\]"),
    "gmm K": (lambda: gmm(weight=[f(3, 5, 2)]), ValueError, r"w\.transpose\(1, 2\)"),
    "gmm dtype": (
        lambda: gmm(weight=[f(3, 2, 5, dtype=bf16)]),
        TypeError,
        "weight is bfloat16; .*, or int8 with an antiquant_scale",
    ),
    "gmm x view": (lambda: gmm(x=[f(2, 6).t()]), ValueError, "cannot be transposed"),
    "gmm act_type": (lambda: gmm(act_type=3), ValueError, "act_type is 3"),
    "gmm split": (lambda: gmm(split_item=4), ValueError, "split_item is 4"),
    "mindspeed one": (
        lambda: ops.npu_gmm(f(6, 2), f(1, 2, 5), group_list=[6]),
        ValueError,
        "longer than 1",
    ),
    "mindspeed v2 list": (
        lambda: ops.npu_gmm_v2(f(6, 2), f(3, 2, 5), group_list=[2, 2, 2]),
        TypeError,
        r"group_list is \[2, 2, 2\]; it must be an int64 tensor",
    ),
    "mindspeed counts": (
        lambda: ops.npu_gmm(f(6, 2), f(3, 2, 5), group_list=[3, 1, 2]),
        ValueError,
        "npu_gmm",
    ),
    "mindspeed lists": (
        lambda: ops.npu_gmm([f(6, 2)], [f(3, 2, 5)], group_list=[2, 4, 6]),  # type: ignore[arg-type]
        TypeError,
        "not a list",
    ),
    # attention
    "fia layout": (lambda: attend(input_layout="BDSN"), ValueError, "input_layout is 'BDSN'"),
    "fia heads": (lambda: attend(num_heads=3), ValueError, "N = 3 heads"),
    "fia key heads": (lambda: attend(num_key_value_heads=3), ValueError, "a divisor of num_heads"),
    "fia dtype": (lambda: attend(k=f(2, 4, 5, 8, dtype=bf16)), TypeError, "key is bfloat16"),
    "fia head size": (lambda: attend(k=f(2, 4, 5, 6)), ValueError, "query's head size, 8"),
    "fia rope alone": (lambda: attend(query_rope=f(2, 4, 3, 64)), ValueError, "key_rope is None"),
    "fia mla width": (lambda: mla(width=64), ValueError, "512 .*or 128"),
    "fia mla heads": (lambda: mla(heads=12), ValueError, "a power of two"),
    "fia mla key heads": (lambda: mla(kv_heads=4), ValueError, "over one key head"),
    "fia mla rope": (lambda: mla(rope_width=32), ValueError, "of head size 64"),
    "fia mask dtype": (lambda: attend(atten_mask=f(3, 5)), TypeError, "atten_mask is float32"),
    "fia compressed": (
        lambda: attend(atten_mask=f(3, 5, dtype=torch.bool), sparse_mode=3),
        ValueError,
        r"\[2048, 2048\]",
    ),
    "fia no mask": (lambda: attend(sparse_mode=3), ValueError, "atten_mask is None"),
    "fia pages": (
        lambda: attend(block_table=ints([[0], [1]])),
        ValueError,
        "actual_seq_lengths_kv is None",
    ),
    "fia lengths": (lambda: attend(actual_seq_lengths_kv=[5, 6]), ValueError, r"in 0\.\.5"),
    "fia lengths tensor": (
        lambda: attend(actual_seq_lengths_kv=ints([5, 5])),
        TypeError,
        "host numbers",
    ),
    "bmm perm": (
        lambda: ops.npu_transpose_batchmatmul(f(2, 3, 4), f(2, 4, 5), perm_y=(0, 1, 2)),
        ValueError,
        "perm_y",
    ),
    "bmm shape": (
        lambda: ops.npu_transpose_batchmatmul(f(2, 3, 4), f(3, 4, 5)),
        ValueError,
        "weight",
    ),
    "bmm split": (
        lambda: ops.npu_transpose_batchmatmul(f(2, 3, 4), f(2, 4, 5), batch_split_factor=2),
        ValueError,
        "batch_split_factor is 2",
    ),
    # hints
    "prefetch size": (lambda: ops.npu_prefetch(f(2), None, 0), ValueError, "max_size is 0"),
    "prefetch offset": (lambda: ops.npu_prefetch(f(2), None, 1, -1), ValueError, "offset is -1"),
    "format": (lambda: ops.npu_format_cast(f(2), "NZ"), TypeError, "acl_format is 'NZ'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message) as caught:
        call()
    assert "npu_" in str(caught.value) or "scatter_update" in str(caught.value)


@pytest.mark.parametrize(
    "call", [gate, route, route_v2, finalize, gmm, scatter, cached, attend, mla]
)
def test_the_same_calls_with_right_arguments(call: Callable[[], Any]) -> None:
    call()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("quant_mode 2", lambda: route_v2(quant_mode=2)),
        ("input_ids", lambda: gate(input_ids=ints([0]))),
        ("key_shared_prefix", lambda: attend(key_shared_prefix=f(1, 4, 2, 8))),
        ("bias", lambda: ops.npu_transpose_batchmatmul(f(2, 3, 4), f(2, 4, 5), bias=f(5))),
    ],
)
def test_what_the_reference_lacks_is_named(name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(NotImplementedError, match=name):
        call()


def test_values_are_not_read_while_compiling_or_on_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        rows, back, order = ops.npu_moe_init_routing(
            torch.empty(3, 2), torch.empty(3, 2, dtype=i32), torch.empty(3, 2, dtype=i32), 3
        )
        assert rows.shape == (6, 2) and back.shape == order.shape == (6,)

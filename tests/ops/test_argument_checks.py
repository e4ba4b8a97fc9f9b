"""One wrong argument at a time, for every check of the operators that no other test makes refuse:
`python ci/tools/contracts.py` knows which test that is for each. Attention: test_attention_checks.py."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import ops
from dsv3_port.ops.checks import ContractError, device_rules
from tests.ops.meanings import reference

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
I8, I32, I64, BOOL = torch.int8, torch.int32, torch.int64, torch.bool


def t(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def n(values: Any, dtype: torch.dtype = I32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


# the first argument comes by position, the others by name; every one of these calls is right
RIGHT: dict[str, dict[str, Any]] = {
    "npu_swiglu": {"input": t(2, 8)},
    "npu_silu": {"input": t(2, 8)},
    "npu_rms_norm": {"input": t(2, 8), "gamma": t(8)},
    "npu_add_rms_norm": {"x1": t(2, 8), "x2": t(2, 8), "gamma": t(8)},
    "npu_add_rms_norm_dynamic_quant": {
        **{"x1": t(2, 8, dtype=F16), "x2": t(2, 8, dtype=F16), "gamma": t(8, dtype=F16)},
        "smooth_scale1": t(8, dtype=F16),
    },
    "npu_dequant_swiglu_quant": {"x": t(3, 128, dtype=F16), "quant_mode": 1},
    "npu_rotary_mul": {"input": t(1, 2, 3, 8), "r1": t(1, 1, 3, 8), "r2": t(1, 1, 3, 8)},
    "npu_interleave_rope": {
        "x": t(1, 2, 3, 64, dtype=F16),
        "cos": t(1, 1, 3, 64, dtype=F16),
        "sin": t(1, 1, 3, 64, dtype=F16),
    },
    "npu_apply_rotary_pos_emb": {
        **{"query": t(1, 2, 3, 64), "key": t(1, 2, 1, 64)},
        **{"cos": t(1, 2, 1, 64), "sin": t(1, 2, 1, 64)},
    },
    "npu_scatter_nd_update_": {"input": t(4, 2), "indices": n([[1]]), "updates": t(1, 2)},
    "npu_kv_rmsnorm_rope_cache": {
        **{"kv": t(2, 1, 1, 192), "gamma": t(192), "cos": t(2, 1, 1, 64), "sin": t(2, 1, 1, 64)},
        **{"index": n([[0], [1]], I64), "k_cache": t(2, 1, 4, 192), "ckv_cache": t(2, 1, 4, 128)},
        "v": t(2, 1, 1, 128),
    },
    "npu_scatter_pa_kv_cache": {
        **{"key": t(3, 2, 16), "value": t(3, 2, 32)},
        **{"key_cache": t(2, 4, 2, 16), "value_cache": t(2, 4, 2, 32)},
        **{"slot_mapping": n([0, 5, 7]), "cache_mode": "Norm"},
    },
    "npu_moe_init_routing": {
        **{"x": t(3, 2), "row_idx": n([[0, 3], [1, 4], [2, 5]])},
        **{"expert_idx": n([[2, 0], [0, 3], [2, 1]]), "active_num": 3},
    },
    "npu_moe_init_routing_v2": {
        **{"x": t(3, 2), "expert_idx": n([[2, 0], [0, 3], [2, 1]]), "expert_num": 4},
    },
    "npu_moe_compute_expert_tokens": {"sorted_expert_for_source_row": n([0, 1]), "num_expert": 2},
    "npu_moe_gating_top_k": {"x": t(3, 16), "k": 2, "group_count": 4, "k_group": 2},
    "npu_moe_finalize_routing": {
        **{"expanded_permuted_rows": t(6, 2), "skip1": None, "skip2": None, "bias": t(4, 2)},
        **{"scales": t(3, 2), "expanded_src_to_dst_row": n([3, 1, 4, 0, 5, 2])},
        "export_for_source_row": n([[2, 0], [0, 3], [2, 1]]),
    },
    "npu_moe_token_permute": {"tokens": t(3, 4), "indices": n([[1, 0], [2, 1], [0, 2]])},
    "npu_moe_token_unpermute": {
        **{"permuted_tokens": t(6, 4), "sorted_indices": n([2, 0, 4, 3, 1, 5])},
        "probs": t(3, 2),
    },
    "npu_moe_gating_top_k_softmax": {"x": t(3, 4), "finished": t(3, dtype=BOOL), "k": 2},
    "npu_grouped_matmul": {
        **{"x": [t(6, 2)], "weight": [t(3, 2, 5)], "group_list": n([2, 4, 6], I64)},
        **{"group_type": 0, "split_item": 3},
    },
    "npu_gmm": {"x": t(6, 2), "weight": t(3, 2, 5), "group_list": n([2, 4, 6], I64)},
    "npu_transpose_batchmatmul": {"input": t(2, 3, 4), "weight": t(2, 4, 5)},
    "npu_quant_matmul": {"x1": t(2, 8, dtype=I8), "x2": t(8, 3, dtype=I8), "scale": t(3)},
    "npu_dynamic_quant": {"input": t(4, 8, dtype=F16)},
    "npu_quantize": {"input": t(2, 8), "scales": t(8), "zero_points": None, "dtype": 12},
    "npu_trans_quant_param": {"scale": t(3)},
}
INT8_GMM = {"x": [t(6, 2, dtype=I8)], "weight": [t(3, 2, 5, dtype=I8)]}
NO_SPLIT = {"group_type": -1, "split_item": 0, "group_list": None, "weight": [t(2, 5)]}
CUTS = {"group_type": 2, "x": [t(4, 6)], "weight": [t(6, 5)]}
MULTIPLIED = {"div_mode": False, "scales": t(8), "dtype": 12}
GROUPS = {"smooth_scales": t(2, 8, dtype=F16), "group_index": n([1, 4])}
BIG = n([0]).expand(4096, 4096)

WRONG: list[tuple[str, dict[str, Any], str]] = [
    # norms and activations
    ("npu_swiglu", {"input": t(2, 8, dtype=I8)}, "input is int8; it must be float16, bfloat16"),
    ("npu_silu", {"input": t(2, 8, dtype=I32)}, "input is int32"),
    ("npu_add_rms_norm", {"x1": t(2, 8, dtype=I32)}, "x1 is int32"),
    ("npu_add_rms_norm_dynamic_quant", {"x1": t(2, 8, dtype=I32)}, "x1 is int32"),
    ("npu_add_rms_norm_dynamic_quant", {"x2": t(1, 8, dtype=F16)}, r"x2 is \[1, 8\]"),
    ("npu_add_rms_norm_dynamic_quant", {"gamma": t(4, dtype=F16)}, r"gamma is \[4\]"),
    ("npu_add_rms_norm_dynamic_quant", {"beta": t(8)}, "beta is float32; it must be float16"),
    ("npu_add_rms_norm_dynamic_quant", {"x2": t(2, 8)}, "x2 is float32; it must be float16"),
    ("npu_add_rms_norm_dynamic_quant", {"output_mask": [False, True]}, "True beside smooth_scale1"),
    # SwiGLU with scales
    ("npu_dequant_swiglu_quant", {"x": t(3, 128)}, "x is float32"),
    ("npu_dequant_swiglu_quant", {"x": t(3, 127, dtype=F16)}, r"\[T, 2H\]"),
    ("npu_dequant_swiglu_quant", {"quant_mode": 2}, "quant_mode is 2"),
    ("npu_dequant_swiglu_quant", {"swiglu_mode": 3}, "swiglu_mode is 3"),
    ("npu_dequant_swiglu_quant", {"group_index": n([1, 2])}, "group_index is int32"),
    ("npu_dequant_swiglu_quant", {"group_index": n([[3]], I64)}, r"group_index is \[1, 1\]"),
    (
        "npu_dequant_swiglu_quant",
        {"group_index": n([3], I64), "quant_offset": t(64)},
        "None beside a group_index",
    ),
    ("npu_dequant_swiglu_quant", {"weight_scale": t(128, dtype=F16)}, "weight_scale is float16"),
    ("npu_dequant_swiglu_quant", {"bias": t(64, dtype=I32)}, r"bias is \[64\]"),
    (
        "npu_dequant_swiglu_quant",
        {"activation_scale": t(3, 1, dtype=F16)},
        "activation_scale is fl",
    ),
    ("npu_dequant_swiglu_quant", {"activation_scale": t(2, 1)}, r"activation_scale is \[2, 1\]"),
    ("npu_dequant_swiglu_quant", {"quant_scale": t(64, dtype=I32)}, "quant_scale is int32"),
    ("npu_dequant_swiglu_quant", {"quant_scale": t(63)}, r"quant_scale is \[63\]"),
    # rope
    ("npu_rotary_mul", {"input": t(1, 2, 3, 8, dtype=I32)}, "input is int32"),
    ("npu_interleave_rope", {"x": t(1, 2, 3, 64, dtype=I32)}, "x is int32"),
    ("npu_apply_rotary_pos_emb", {"layout": "BNSD"}, "layout is 'BNSD'"),
    ("npu_apply_rotary_pos_emb", {"rotary_mode": "quarter"}, "rotary_mode is 'quarter'"),
    ("npu_apply_rotary_pos_emb", {"query": t(1, 2, 3, 64, dtype=I32)}, "query is int32"),
    ("npu_apply_rotary_pos_emb", {"key": t(1, 3, 1, 64)}, r"key is \[1, 3, 1, 64\]"),
    ("npu_apply_rotary_pos_emb", {"cos": t(1, 2, 1, 64, dtype=F16)}, "cos is float16"),
    ("npu_apply_rotary_pos_emb", {"sin": t(1, 2, 3, 64)}, r"sin is \[1, 2, 3, 64\]"),
    # caches
    ("npu_scatter_nd_update_", {"updates": t(1, 2, dtype=F16)}, "updates is float16"),
    ("npu_scatter_nd_update_", {"indices": t(1, 1)}, "indices is float32"),
    ("npu_kv_rmsnorm_rope_cache", {"kv": t(2, 1, 1, 192, dtype=I32)}, "kv is int32"),
    ("npu_kv_rmsnorm_rope_cache", {"v": t(2, 1, 1, 64)}, r"v is \[2, 1, 1, 64\]"),
    ("npu_kv_rmsnorm_rope_cache", {"v": t(2, 1, 1, 128, dtype=F16)}, "v is float16"),
    ("npu_scatter_pa_kv_cache", {"cache_mode": "PA"}, "cache_mode is 'PA'"),
    ("npu_scatter_pa_kv_cache", {"slot_mapping": t(3)}, "slot_mapping is float32"),
    ("npu_scatter_pa_kv_cache", {"value": t(3, 2, 32, dtype=F16)}, "value is float16"),
    ("npu_scatter_pa_kv_cache", {"key_cache": t(2, 4, 2, 16, dtype=F16)}, "key_cache is float16"),
    ("npu_scatter_pa_kv_cache", {"value": t(3, 1, 32)}, r"value is \[3, 1, 32\]"),
    ("npu_scatter_pa_kv_cache", {"key": t(2, 3, 16).transpose(0, 1)}, "contiguous"),
    ("npu_scatter_pa_kv_cache", {"key_cache": t(2, 4, 1, 32)}, r"key_cache is \[2, 4, 1, 32\]"),
    ("npu_scatter_pa_kv_cache", {"slot_mapping": n([0, 5])}, r"slot_mapping is \[2\]"),
    # routing
    ("npu_moe_init_routing", {"x": t(3, 2, dtype=I32)}, "x is int32"),
    ("npu_moe_init_routing", {"x": t(4096, 1), "expert_idx": BIG}, "2\\^24"),
    ("npu_moe_init_routing_v2", {"drop_pad_mode": 2}, "drop_pad_mode is 2"),
    ("npu_moe_init_routing_v2", {"row_idx_type": 2}, "row_idx_type is 2"),
    (
        "npu_moe_init_routing_v2",
        {"quant_mode": 0, "scale": t(1, dtype=F16), "offset": t(1)},
        "scale is float16",
    ),
    ("npu_moe_init_routing_v2", {"offset": t(1)}, "None but in quant_mode 0"),
    ("npu_moe_compute_expert_tokens", {"sorted_expert_for_source_row": n([[0]])}, "1-D"),
    ("npu_moe_gating_top_k", {"x": t(3, 16, dtype=I32)}, "x is int32"),
    ("npu_moe_gating_top_k", {"norm_type": 2}, "norm_type is 2"),
    ("npu_moe_gating_top_k", {"x": t(3, 288), "group_count": 96}, "rounded up to 32"),
    ("npu_moe_finalize_routing", {"expanded_permuted_rows": t(6, 2, dtype=I32)}, "rows is int32"),
    ("npu_moe_finalize_routing", {"scales": None, "k": 4}, "k = 4"),
    ("npu_moe_finalize_routing", {"bias": t(4, 3)}, r"bias is \[4, 3\]"),
    ("npu_moe_finalize_routing", {"bias": t(4, 2, dtype=F16)}, "bias is float16"),
    ("npu_moe_finalize_routing", {"export_for_source_row": n([[2, 0]])}, r"row is \[1, 2\]"),
    ("npu_moe_token_permute", {"tokens": t(3, 4, dtype=I32)}, "tokens is int32"),
    ("npu_moe_token_permute", {"indices": t(3, 2)}, "indices is float32"),
    ("npu_moe_token_permute", {"tokens": t(3, 4, 1)}, r"tokens is \[3, 4, 1\]"),
    ("npu_moe_token_permute", {"indices": n([[0, 1]])}, r"indices is \[1, 2\]"),
    ("npu_moe_token_unpermute", {"permuted_tokens": t(6, 4, dtype=I32)}, "tokens is int32"),
    ("npu_moe_token_unpermute", {"sorted_indices": t(6)}, "sorted_indices is float32"),
    ("npu_moe_token_unpermute", {"sorted_indices": n([[0] * 6])}, r"sorted_indices is \[1, 6\]"),
    ("npu_moe_token_unpermute", {"probs": n([[1, 2]] * 3)}, "probs is int32"),
    ("npu_moe_gating_top_k_softmax", {"x": t(3, 4, dtype=I32)}, "x is int32"),
    ("npu_moe_gating_top_k_softmax", {"x": t(4)}, r"x is \[4\]"),
    ("npu_moe_gating_top_k_softmax", {"finished": t(3)}, "finished is float32"),
    ("npu_moe_gating_top_k_softmax", {"finished": t(2, dtype=BOOL)}, r"finished is \[2\]"),
    # grouped products
    ("npu_grouped_matmul", {"group_list_type": 3}, "group_list_type is 3"),
    ("npu_grouped_matmul", {"weight": [t(1025, 2, 5)]}, "1025 experts"),
    ("npu_grouped_matmul", {"weight": [t(2, 5)] * 129}, "128 in a list"),
    ("npu_grouped_matmul", {"x": [t(6, 65536)]}, "65536 wide"),
    ("npu_grouped_matmul", NO_SPLIT | {"weight": [t(3, 2, 5)]}, "one 2-D tensor for each x"),
    ("npu_grouped_matmul", NO_SPLIT | {"x": [t(2)]}, "tensors of one rank, 2 to 6"),
    ("npu_grouped_matmul", {"x": [t(1, 6, 2)]}, "2-D tensors with group_type 0"),
    ("npu_grouped_matmul", CUTS | {"split_item": 0}, "split_item 2 or 3"),
    ("npu_grouped_matmul", CUTS | {"group_list": None}, "it cuts K"),
    ("npu_grouped_matmul", CUTS | {"weight": [t(5, 5)]}, r"\[6, N\]"),
    ("npu_grouped_matmul", CUTS | {"group_list": n([2, 6])}, "group_list is int32"),
    ("npu_grouped_matmul", CUTS | {"group_list": n([[2, 6]], I64)}, "1-D with group_type 2"),
    ("npu_grouped_matmul", {"x": [t(3, 2), t(3, 2)]}, "2, one 2-D tensor for each x"),
    ("npu_grouped_matmul", {"group_list": None}, "given with one x"),
    ("npu_grouped_matmul", {"split_item": 0}, "as long as weight"),
    ("npu_grouped_matmul", {"output_dtype": 99}, "output_dtype is 99"),
    (
        "npu_grouped_matmul",
        {"weight": [t(3, 2, 5, dtype=I8)], "antiquant_scale": [t(3, 5, dtype=F16)]},
        "antiquant_scale is float16",
    ),
    ("npu_grouped_matmul", {"scale": [t(3, 5)]}, "scale is float32"),
    (
        "npu_grouped_matmul",
        INT8_GMM | {"scale": [t(3, 5)], "per_token_scale": [t(6, dtype=F16)], "output_dtype": 5},
        "per_token_scale is float16",
    ),
    ("npu_gmm", {"weight": t(3, 2, 5, dtype=BF16)}, "weight is bfloat16"),
    ("npu_gmm", {"group_type": 1}, "group_type is 1"),
    ("npu_transpose_batchmatmul", {"weight": t(2, 4, 5, dtype=F16)}, "weight is float16"),
    # int8
    ("npu_quant_matmul", {"x1": t(2, 8)}, "x1 is float32"),
    ("npu_quant_matmul", {"x2": t(1, 3, dtype=I32)}, "x2 is int32"),
    ("npu_quant_matmul", {"x1": t(8, dtype=I8)}, "2-D to 6-D"),
    ("npu_quant_matmul", {"scale": t(1, 3)}, "offset is None"),
    ("npu_quant_matmul", {"scale": t(3, dtype=F16)}, "scale is float16"),
    (
        "npu_quant_matmul",
        {"output_dtype": 15, "pertoken_scale": t(2, dtype=F16)},
        "pertoken_scale is float16",
    ),
    ("npu_quant_matmul", {"output_dtype": 15, "pertoken_scale": t(3)}, r"scale is \[3\]"),
    ("npu_quant_matmul", {"offset": t(3, dtype=F16)}, "offset is float16"),
    ("npu_quant_matmul", {"offset": t(2)}, "with a result of int8"),
    ("npu_quant_matmul", {"bias": t(2, dtype=I32)}, r"bias is \[2\]"),
    ("npu_dynamic_quant", {"input": t(4, 8, dtype=I8)}, "input is int8"),
    ("npu_dynamic_quant", {"quant_mode": "perhead"}, "quant_mode is 'perhead'"),
    ("npu_dynamic_quant", {"smooth_scales": t(8)}, "smooth_scales is float32"),
    (
        "npu_dynamic_quant",
        {"smooth_scales": t(8, dtype=F16), "quant_mode": "perchannel"},
        r"smooth_scales is \[8\]",
    ),
    ("npu_dynamic_quant", GROUPS | {"group_index": n([1, 4], I64)}, "group_index is int64"),
    ("npu_dynamic_quant", {"group_index": n([1, 4])}, "given with smooth_scales"),
    ("npu_dynamic_quant", GROUPS | {"smooth_scales": t(3, 8, dtype=F16)}, r"\[2, 8\]"),
    ("npu_quantize", {"input": t(2, 8, dtype=I8)}, "input is int8"),
    ("npu_quantize", {"scales": t(8, dtype=F16)}, "scales is float16"),
    ("npu_quantize", {"zero_points": t(8)}, "zero_points is float32"),
    ("npu_quantize", MULTIPLIED | {"scales": t(8, dtype=F16)}, "scales is float16"),
    ("npu_quantize", MULTIPLIED | {"zero_points": t(8, dtype=F16)}, "zero_points is float16"),
    (
        "npu_quantize",
        MULTIPLIED | {"input": t(2, 9), "scales": t(9), "dtype": 16},
        "divisible by 8 for int4",
    ),
    ("npu_trans_quant_param", {"round_mode": 2}, "round_mode is 2"),
    ("npu_trans_quant_param", {"scale": t(0)}, r"scale is \[0\]"),
    ("npu_trans_quant_param", {"offset": t(2)}, r"offset is \[2\]"),
]
# refused only where a device's rules hold
WRONG_ON_A_DEVICE: list[tuple[str, dict[str, Any], str]] = [
    (
        "npu_add_rms_norm_dynamic_quant",
        {"x1": t(2, 8), "x2": t(2, 8), "gamma": t(8), "smooth_scale1": t(8)},
        "x1 is float32; it must be float16 or bfloat16",
    ),
    (
        "npu_interleave_rope",
        {"x": t(1, 2, 3, 64), "cos": t(1, 1, 3, 64), "sin": t(1, 1, 3, 64)},
        "x is float32; it must be float16 or bfloat16",
    ),
    ("npu_dynamic_quant", {"input": t(4, 8)}, "input is float32; it must be float16 or bfloat16"),
    ("npu_grouped_matmul", {"act_type": 1}, "activations belong to the int8 per-token form"),
]


def call(name: str, changed: dict[str, Any]) -> Any:
    first, *others = (RIGHT[name] | changed).items()
    return getattr(ops, name)(first[1], **dict(others))


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_calls_are_taken(name: str) -> None:
    call(name, {})


def named(row: Any) -> str:
    return f"{row[0]}: {row[2]}"


@pytest.mark.parametrize("row", WRONG, ids=named)
def test_one_wrong_argument(row: tuple[str, dict[str, Any], str]) -> None:
    name, changed, words = row
    with pytest.raises(ContractError, match=f"^{name}: .*{words}"):
        call(name, changed)


@pytest.mark.parametrize("device", [True, False], ids=["on a device", "elsewhere"])
@pytest.mark.parametrize("row", WRONG_ON_A_DEVICE, ids=named)
def test_one_wrong_argument_of_a_device(row: tuple[str, dict[str, Any], str], device: bool) -> None:
    """Off the device tests measure with what no NPU takes."""
    name, changed, words = row
    with device_rules() if device else nullcontext():
        if not device:
            call(name, changed)
            return
        with pytest.raises(ContractError, match=f"^{name}: .*{words}"):
            call(name, changed)


def test_a_meaning_refuses_a_mode_that_it_does_not_have() -> None:
    """Gradients call it past the check."""
    x = t(1, 1, 1, 4)
    with pytest.raises(ContractError, match="rotary_mode is 'pair'"):
        reference.npu_rotary_mul(x, x, x, "pair")

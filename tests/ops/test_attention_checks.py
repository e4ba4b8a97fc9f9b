"""One wrong argument at a time, for every check of the fused attention that no other test makes
refuse, in both forms of inference and in that of training (test_argument_checks.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import ops
from dsv3_port.hostnpu import fusion_attention
from dsv3_port.ops.checks import ContractError, device_rules

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
I8, I32, BOOL = torch.int8, torch.int32, torch.bool


def t(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def qkv(*shape: int, queries: int | None = None, dtype: torch.dtype = F32) -> dict[str, Tensor]:
    """[B, N, S, D]; queries: S of the query."""
    batch, heads, keys, width = shape
    query = t(batch, heads, keys if queries is None else queries, width, dtype=dtype)
    return {"query": query, "key": t(*shape, dtype=dtype), "value": t(*shape, dtype=dtype)}


def stored(queries: int, dtype: torch.dtype = F16) -> dict[str, Tensor]:
    """A query of 16 bits over a cache of int8."""
    cache = {"key": t(2, 2, 5, 64, dtype=I8), "value": t(2, 2, 5, 64, dtype=I8)}
    return {"query": t(2, 2, queries, 64, dtype=dtype), **cache}


HEADS = {"num_heads": 2, "input_layout": "BNSD"}
HEADS2 = {"num_query_heads": 2, "input_layout": "BNSD"}
SCALES = {
    "key_antiquant_scale": t(2, 64, dtype=F16),
    "value_antiquant_scale": t(2, 64, dtype=F16),
}
OFFSET = {"key_antiquant_offset": t(2, 64, dtype=F16)}
PRODUCTS = {"dequant_scale1": t(1), "quant_scale1": t(1), "dequant_scale2": t(1)}
ROPE = {"query_rope": t(2, 2, 1, 64), "key_rope": t(2, 2, 5, 64)}
MLA = {"query": t(2, 2, 1, 128), "key": t(2, 2, 5, 128), "value": t(2, 2, 5, 128), **ROPE}
LATENT = {
    **{"query": t(2, 4, 1, 512), "key": t(2, 1, 5, 512), "value": t(2, 1, 5, 512)},
    **{"query_rope": t(2, 4, 1, 64), "key_rope": t(2, 1, 5, 64)},
    **{"num_heads": 4, "num_key_value_heads": 1},
}
PACKED = {
    **{"query": t(5, 2, 128), "key": t(5, 2, 128), "value": t(5, 2, 128), "input_layout": "TND"},
    **{"actual_seq_lengths": [2, 5], "actual_seq_lengths_kv": [2, 5]},
}
PAGES = {
    **{"query": t(2, 2, 1, 32), "key": t(4, 2, 16, 32), "value": t(4, 2, 16, 32)},
    **{"block_table": t(2, 2, dtype=I32), "block_size": 16, "actual_seq_lengths_kv": [3, 20]},
}
NARROW = t(4, 2, 4, 16, 8)  # an NZ cache whose last dimension is 8
WIDE_ROWS = {"key": t(4, 16, 2 * 32769), "value": t(4, 16, 2 * 32769), "query": t(2, 2, 1, 32769)}
LATENT_PAGES: dict[str, Any] = {
    **{"query": t(2, 4, 1, 512), "key": t(4, 1, 16, 512), "value": t(4, 1, 16, 512)},
    **{"query_rope": t(2, 4, 1, 64), "key_rope": t(4, 1, 16, 32)},
    **{"num_heads": 4, "num_key_value_heads": 1, "block_table": t(2, 2, dtype=I32)},
    **{"block_size": 16, "actual_seq_lengths_kv": [3, 20]},
}


def first(given: dict[str, Any]) -> Any:
    others = {name: value for name, value in (HEADS | given).items() if name != "query"}
    return ops.npu_fused_infer_attention_score(given["query"], **others)


def second(given: dict[str, Any]) -> Any:
    others = {name: value for name, value in (HEADS2 | given).items() if name != "query"}
    return ops.npu_fused_infer_attention_score_v2(given["query"], **others)


FIRST: list[tuple[dict[str, Any], str]] = [
    (qkv(1, 2, 5, 8) | {"sparse_mode": 5}, "sparse_mode is 5"),
    (qkv(1, 2, 5, 8) | {"inner_precise": 4}, "inner_precise is 4"),
    (
        stored(1) | SCALES | {"value": t(2, 2, 5, 64, dtype=F16)},
        "value is float16; it must be int8, the dtype of key",
    ),
    (
        {"query": t(1, 65, 1, 8), "key": t(1, 1, 5, 8), "value": t(1, 1, 5, 8)}
        | {"num_heads": 65, "num_key_value_heads": 1},
        "at most 64 times the 1 key",
    ),
    # rope inputs
    (MLA | {"query_rope": t(2, 2, 1, 64, dtype=F16)}, "query_rope is float16"),
    (LATENT | {"input_layout": "BNSD_BSND"}, "input_layout is BNSD_BSND"),
    (LATENT_PAGES, r"key_rope is \[4, 1, 16, 32\]; it must be of head size 64"),
    # packed
    (PACKED | {"actual_seq_lengths": torch.tensor([2, 5])}, "actual_seq_lengths is int64"),
    (
        PACKED | {"query_rope": t(5, 2, 64), "key_rope": t(5, 2, 64), "value": t(5, 2, 64)},
        r"value is \[5, 2, 64\]; it must be of head size 128",
    ),
    (PACKED | {"pse_shift": t(1, 2, 5, 5)}, "pse_shift is .* None with layout TND"),
    (PACKED | {"key": t(5, 2, 128, dtype=I8)}, "key is int8 .* without scales"),
    # pages
    (PAGES | {"key": t(4, 32)}, r"key is \[4, 32\]"),
    (PAGES | {"key": NARROW, "value": NARROW}, r"\[blocks, KV, D/16, block, 16\]"),
    (PAGES | WIDE_ROWS, "at most 65535 values a position"),
    (PAGES | {"actual_seq_lengths_kv": torch.tensor([3, 20])}, "given with a block_table, a list"),
    (
        PAGES | {"query": t(3, 2, 1, 32), "block_table": t(3, 2, dtype=I32)},
        "3 lengths, or one for all",
    ),
    # caches of int8
    (qkv(2, 2, 5, 64, queries=1, dtype=F16) | SCALES, "key is float16; it must be int8 or int32"),
    (
        stored(1) | SCALES | {"key_antiquant_mode": 4, "value_antiquant_mode": 4},
        "4 or 5 with a block_table only",
    ),
    (
        {"query": t(2, 2, 1, 128, dtype=F16), "key": t(2, 2, 5, 128, dtype=I8)}
        | {"value": t(2, 2, 5, 128, dtype=I8), "query_rope": t(2, 2, 1, 64, dtype=F16)}
        | {"key_rope": t(2, 2, 5, 64, dtype=F16), **SCALES},
        "key_antiquant_scale is .* None with rope inputs",
    ),
    (
        {"query": t(2, 2, 2, 64, dtype=F16), **SCALES}
        | {"key": t(2, 2, 5, 8, dtype=I32), "value": t(2, 2, 5, 8, dtype=I32)},
        "int4 needs one query",
    ),
    (stored(2) | SCALES, "query is float16; it must be bfloat16"),
    (
        stored(17, BF16) | {name: scale.to(BF16) for name, scale in SCALES.items()},
        "at most 16 queries",
    ),
    (stored(1) | SCALES | OFFSET, "value_antiquant_offset is None; .* key's offset"),
    (
        stored(1) | SCALES | OFFSET | {"value_antiquant_offset": t(2, 1, 64, dtype=F16)},
        "value_antiquant_offset is .* as value_antiquant_scale is",
    ),
    (stored(1) | {"key_antiquant_scale": t(2, 64, dtype=F16)}, "value_antiquant_scale is None"),
    (stored(1) | {"antiquant_scale": t(3, 2, 64, dtype=F16)}, r"antiquant_scale is \[3, 2, 64\]"),
    # products of int8
    (qkv(1, 2, 5, 8) | PRODUCTS, "query is float32; it must be int8 with"),
    (
        qkv(1, 2, 5, 8, dtype=I8) | PRODUCTS | {"key": t(1, 2, 5, 8), "value": t(1, 2, 5, 8)},
        "key is float32; it must be int8",
    ),
    (
        {name: x.to(I8) for name, x in MLA.items() if "rope" not in name} | ROPE | PRODUCTS,
        "query is .*; it must be float16 or bfloat16 with rope inputs",
    ),
    (
        qkv(1, 2, 5, 8, dtype=I8) | PRODUCTS | {"dequant_scale1": t(1, dtype=F16)},
        "is float16; it must be float32 or uint64",
    ),
    (
        qkv(1, 2, 5, 8, dtype=I8) | PRODUCTS | {"input_layout": "BNSD_NBSD"},
        "BSH, BNSD, BSND or BNSD_BSND with int8",
    ),
    (
        {"query": t(2, 2, 1, 32, dtype=I8), "key": t(4, 2, 32, 32, dtype=I8)}
        | {"value": t(4, 2, 32, 32, dtype=I8), "block_table": t(2, 2, dtype=I32)}
        | {"block_size": 32, "actual_seq_lengths_kv": [3, 20], **PRODUCTS},
        "block_table is .* None with an int8 query",
    ),
    # results of int8
    (qkv(1, 2, 5, 8) | {"quant_offset2": t(1)}, "quant_scale2 is None; .* quant_offset2"),
    (qkv(1, 2, 5, 8) | {"quant_scale2": t(1, dtype=BF16)}, "quant_scale2 is bfloat16"),
    (MLA | {"quant_scale2": t(1)}, "quant_scale2 is .* None with rope inputs"),
    (
        qkv(1, 2, 5, 8) | {"quant_scale2": t(1), "quant_offset2": t(2)},
        "quant_offset2 is .* as quant_scale2 is",
    ),
]


@pytest.mark.parametrize("row", FIRST, ids=lambda row: row[1])
def test_the_first_form(row: tuple[dict[str, Any], str]) -> None:
    given, words = row
    with pytest.raises(ContractError, match=f"^npu_fused_infer_attention_score: .*{words}"):
        first(given)


# ---- the second form -----------------------------------------------------------------------------

WHOLE = {
    **{"query": t(2, 4, 1, 512, dtype=I8), "key": t(2, 1, 5, 512, dtype=I8)},
    **{"value": t(2, 1, 5, 512, dtype=I8), "query_rope": t(2, 4, 1, 64, dtype=BF16)},
    **{"key_rope": t(2, 1, 5, 64, dtype=BF16), "num_query_heads": 4, "num_key_value_heads": 1},
    **{"dequant_scale_query": t(2, 4, 1), "dequant_scale_key": t(1), "query_quant_mode": 3},
    "dequant_scale_value": t(1),
}
SINK = {
    **{"query": t(5, 2, 128), "key": t(5, 2, 128), "value": t(5, 2, 128), "input_layout": "TND"},
    **{"actual_seq_qlen": [2, 5], "actual_seq_kvlen": [2, 5]},
}
SECOND: list[tuple[dict[str, Any], str]] = [
    (SINK | {"learnable_sink": t(2)}, "learnable_sink is float32"),
    (SINK | {"learnable_sink": t(3, dtype=BF16)}, r"learnable_sink is \[3\]"),
    (qkv(1, 2, 5, 8) | {"dequant_scale_query": t(1)}, "None unless query is int8"),
    (stored(1) | {"dequant_scale_key": t(2, 64, dtype=F16)}, "dequant_scale_value is None"),
    (qkv(1, 2, 5, 8, dtype=I8), "query is int8; it must be float16 or bfloat16 without rope"),
    (WHOLE | {"query_rope": t(2, 4, 1, 64)}, "key_rope is bfloat16; it must be float32"),
    (WHOLE | {"query_rope": t(2, 4, 1, 64, dtype=I8)}, "query_rope is int8"),
    (WHOLE | {"dequant_scale_value": None}, "is given in part"),
    (WHOLE | {"dequant_offset_key": t(1)}, "dequant_offset_key is .* None with an int8 query"),
    (WHOLE | {"query_quant_mode": 0}, "query_quant_mode is 0"),
    (WHOLE | {"key_quant_mode": 1}, "key_quant_mode is 1"),
    (WHOLE | {"value_quant_mode": 1}, "value_quant_mode is 1"),
    (WHOLE | {"dequant_scale_key": t(1, dtype=F16)}, "dequant_scale_key is float16"),
    (WHOLE | {"dequant_scale_query": t(2, 4, 2)}, "8 numbers"),
]


@pytest.mark.parametrize("row", SECOND, ids=lambda row: row[1])
def test_the_second_form(row: tuple[dict[str, Any], str]) -> None:
    given, words = row
    with pytest.raises(ContractError, match=f"^npu_fused_infer_attention_score_v2: .*{words}"):
        second(given)


def test_a_card_has_a_bfloat16_rotary_part_beside_an_int8_query() -> None:
    """Off it the model's other dtypes are computed, float64 among them."""
    for dtype in (torch.float32, torch.float64):
        given = WHOLE | {n: WHOLE[n].to(dtype) for n in ("query_rope", "key_rope")}
        assert second(given)[0].dtype == dtype
        with (
            device_rules(),
            pytest.raises(ContractError, match=r"query_rope is float\d\d; it must be bf"),
        ):
            second(given)


def test_the_right_calls_are_taken() -> None:
    """Each of the bases that the rows change."""
    bases = (qkv(1, 2, 5, 8), MLA, LATENT, PACKED, PAGES, stored(1) | SCALES)
    whole = qkv(1, 2, 5, 8, dtype=I8) | PRODUCTS
    for given in (*bases, whole, LATENT_PAGES | {"key_rope": t(4, 1, 16, 64)}):
        first(given)
    for given in (WHOLE, SINK | {"learnable_sink": t(2, dtype=BF16)}):
        second(given)


# ---- training ------------------------------------------------------------------------------------

TRAINING: list[tuple[dict[str, Any], str]] = [
    ({"input_layout": "NSD"}, "input_layout is 'NSD'"),
    ({"sparse_mode": 2}, "atten_mask is None"),
    ({"value": t(1, 2, 5, 8, dtype=F16)}, "key or value is float32"),
    ({"query": t(2, 5, 8)}, "BNSD: 4 dims"),
    ({"head_num": 3}, "head_num is 3"),
    (
        {"input_layout": "TND"} | {n: t(5, 2, 8) for n in ("query", "key", "value")},
        "actual_seq_qlen and actual_seq_kvlen is None",
    ),
]


@pytest.mark.parametrize("row", TRAINING, ids=lambda row: row[1])
def test_the_form_of_training(row: tuple[dict[str, Any], str]) -> None:
    changed, words = row
    given = qkv(1, 2, 5, 8) | {"head_num": 2, "input_layout": "BNSD"} | changed
    with pytest.raises(ContractError, match=f"^npu_fusion_attention: .*{words}"):
        fusion_attention.forward(**given)


def test_the_right_call_of_training_is_taken() -> None:
    fusion_attention.forward(*qkv(1, 2, 5, 8).values(), 2, "BNSD")

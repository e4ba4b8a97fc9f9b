"""Rules of the operators' documents and host code that the vendor's tests ask for, or miss: each
against the rule written out, with values that a wrong rule does not give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import ops
from dsv3_port.ops.checks import ContractError

INT_MAX = 2147483647


def f(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def test_one_exception_class_for_everybody() -> None:
    """torch_npu raises RuntimeError, Python's own checks ValueError and TypeError."""
    for kind in (RuntimeError, ValueError, TypeError, ContractError):
        with pytest.raises(kind, match="rotary_mode"):
            ops.npu_rotary_mul(f(1, 1, 1, 4), f(1, 1, 1, 4), f(1, 1, 1, 4), rotary_mode="other")


# ---- rotary_mul ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rotary_tables_are_cast_to_the_inputs_dtype_first(dtype: torch.dtype) -> None:
    x, angles = f(2, 3, 4, 64, dtype=dtype), f(2, 1, 4, 64)
    cos, sin = angles.cos(), angles.sin()
    got = ops.npu_rotary_mul(x, cos, sin)
    assert torch.equal(got, ops.npu_rotary_mul(x, cos.to(dtype), sin.to(dtype)))
    first, second = x.float().chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    in_float32 = (x.float() * cos + turned * sin).to(dtype)
    assert not torch.equal(got, in_float32)  # what keeping the tables in float32 would give


# ---- fused attention -----------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, **keywords: Any) -> Tensor:
    given = {"num_heads": q.shape[1], "scale": 0.3, "input_layout": "BNSD", **keywords}
    return ops.npu_fused_infer_attention_score(q, k, v, **given)[0]


def dense(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    score = (q.double() @ k.double().mT * 0.3).masked_fill(hidden, -torch.inf)
    return (score.softmax(-1) @ v.double()).float()


Q1, QS, K, V = f(3, 4, 1, 16), f(3, 4, 5, 16), f(3, 4, 6, 16), f(3, 4, 6, 16, seed=1)


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_a_mask_of_batch_and_keys_for_one_query(batch: int) -> None:
    """[B, KV_S], not [Q_S, KV_S]: each sequence has its own row."""
    q, k, v = (t.repeat(2, 1, 1, 1)[:batch] for t in (Q1, K, V))
    mask = torch.arange(6) > torch.arange(batch)[:, None] % 5
    got = attend(q, k, v, atten_mask=mask)
    assert got.shape == q.shape
    torch.testing.assert_close(got, dense(q, k, v, mask[:, None, None]))
    torch.testing.assert_close(got, attend(q, k, v, atten_mask=mask[:, None, None]))


@pytest.mark.parametrize("shape", [(6,), (3, 6), (5, 5), (2, 1, 5, 6), (3, 4, 5, 6), (2, 5, 6)])
def test_masks_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ContractError, match="atten_mask"):
        attend(QS, K, V, atten_mask=torch.zeros(shape, dtype=torch.bool))


def test_two_dim_masks_need_a_layout_that_has_them() -> None:
    mask = torch.zeros(5, 6, dtype=torch.bool)
    attend(QS, K, V, atten_mask=mask, input_layout="BNSD_BSND")
    with pytest.raises(ContractError, match="atten_mask"):
        attend(QS, K, V, atten_mask=mask, input_layout="BNSD_NBSD")


DISTANCE = torch.arange(6) - torch.arange(5)[:, None]
FULL = torch.zeros(5, 6, dtype=torch.bool)
COMPRESSED = torch.ones(2048, 2048, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("window", [(2, 1), (0, 0), (INT_MAX, 0), (65535, 65535), (3, -1)])
def test_a_band_counts_only_with_a_full_mask_in_mode_0(window: tuple[int, int]) -> None:
    before, after = window
    tokens = {"pre_tokens": before, "next_tokens": after}
    hidden = (DISTANCE > after) | (DISTANCE < -before)
    seen = ~hidden.all(-1)
    got = attend(QS, K, V, atten_mask=FULL, **tokens)
    torch.testing.assert_close(got[:, :, seen], dense(QS, K, V, hidden)[:, :, seen])
    assert torch.equal(attend(QS, K, V, **tokens), attend(QS, K, V))
    for mode, mask in ((1, FULL), (2, COMPRESSED), (3, COMPRESSED)):
        wanted = attend(QS, K, V, atten_mask=mask, sparse_mode=mode)
        assert torch.equal(attend(QS, K, V, atten_mask=mask, sparse_mode=mode, **tokens), wanted)
    one = FULL[:1].expand(3, 6).contiguous()
    assert torch.equal(attend(Q1, K, V, atten_mask=one, **tokens), attend(Q1, K, V))


def test_mode_4_is_a_band_from_the_bottom_right() -> None:
    got = attend(QS, K, V, atten_mask=COMPRESSED, sparse_mode=4, pre_tokens=2, next_tokens=0)
    hidden = (DISTANCE > 1) | (DISTANCE < 1 - 2)
    torch.testing.assert_close(got, dense(QS, K, V, hidden))


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
def test_sparse_mode_is_void_for_one_query_and_needs_a_mask_otherwise(mode: int) -> None:
    assert torch.equal(attend(Q1, K, V, sparse_mode=mode), attend(Q1, K, V))
    with pytest.raises(ContractError, match=f"atten_mask is None.*sparse_mode {mode}"):
        attend(QS, K, V, sparse_mode=mode)
    rope = {"query_rope": f(1, 4, 1, 64), "key_rope": f(1, 4, 6, 64)}
    with pytest.raises(ContractError, match="atten_mask is None"):
        attend(f(1, 4, 1, 128), f(1, 4, 6, 128), f(1, 4, 6, 128), sparse_mode=mode, **rope)


def test_of_a_longer_list_of_lengths_the_first_ones_count() -> None:
    wanted = attend(QS, K, V, actual_seq_lengths_kv=[2, 6, 4])
    assert torch.equal(attend(QS, K, V, actual_seq_lengths_kv=[2, 6, 4, 99, 1]), wanted)
    assert torch.equal(
        attend(QS, K, V, actual_seq_lengths_kv=[4]), attend(QS, K, V, actual_seq_lengths_kv=[4] * 3)
    )
    for wrong in ([], [1, 2], [2, 7, 4]):
        with pytest.raises(ContractError, match="actual_seq_lengths_kv"):
            attend(QS, K, V, actual_seq_lengths_kv=wrong)


def test_a_reserved_scale_changes_nothing_and_one_query_has_two_precisions() -> None:
    assert torch.equal(attend(QS, K, V, key_rope_antiquant_scale=f(4)), attend(QS, K, V))
    with pytest.raises(ContractError, match="inner_precise"):
        attend(Q1, K, V, inner_precise=2)

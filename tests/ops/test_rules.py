"""Rules of the operators' documents and host code that the vendor's tests ask for, or miss: each
against the rule written out, with values that a wrong rule does not give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import ops
from dsv3_port.ops.checks import ContractError, device_rules

INT_MAX = 2147483647


def f(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def test_one_exception_class_for_everybody() -> None:
    """torch_npu raises RuntimeError, Python's own checks ValueError and TypeError."""
    for kind in (RuntimeError, ValueError, TypeError, ContractError):
        with pytest.raises(kind, match="rotary_mode of npu_rotary_mul should be half or"):
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


# ---- grouped matmul ------------------------------------------------------------------------------


def gmm(
    x: list[Tensor], weight: list[Tensor], ends: list[int] | None = None, **given: Any
) -> list[Tensor]:
    groups = None if ends is None else torch.tensor(ends)
    return ops.npu_grouped_matmul(x, weight, group_list=groups, **given)


X, W = f(6, 4), f(3, 4, 5)
ENDS = [1, 4, 6]
PARTS = [X[0:1] @ W[0], X[1:4] @ W[1], X[4:6] @ W[2]]


def close(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_forms_along_the_rows() -> None:
    """group_type 0: one or n x, one 3-D or n 2-D weights; one result, or one a group."""
    several, rows = list(W), list(X.split([1, 3, 2]))
    for weight in ([W], several):
        close(gmm([X], weight, ENDS, split_item=3, group_type=0), [torch.cat(PARTS)])
    close(gmm(rows, several, split_item=2, group_type=0), [torch.cat(PARTS)])
    for split in (0, 1, None):
        close(gmm([X], several, ENDS, split_item=split, group_type=0, group_list_type=None), PARTS)
    bias = list(f(3, 5))
    wanted = [p + b for p, b in zip(PARTS, bias, strict=True)]
    close(gmm([X], several, ENDS, split_item=0, group_type=0, bias=bias), wanted)
    close(
        gmm([X], [W], ENDS, split_item=3, group_type=0, bias=[torch.stack(bias)]),
        [torch.cat(wanted)],
    )


def test_forms_without_a_split() -> None:
    x, w = [f(2, 3, 4), f(5, 3, 6)], [f(4, 5), f(6, 7)]
    close(gmm(x, w, split_item=0, group_type=-1), [x[0] @ w[0], x[1] @ w[1]])
    for wrong in ({"split_item": 3}, {"ends": [1, 2]}):
        with pytest.raises(ContractError):
            gmm(x, w, **{"split_item": 0, "group_type": -1, **wrong})


def test_several_dims_at_the_vendors_shape_round_once() -> None:
    """test_npu_grouped_matmul_0_multi_dim with a golden in float64; its own, float16 in numpy, takes
    minutes. Fewer rows than there (7 x 1024), each of which is a sum of its own."""
    x = [(f(7, 64, k) * 0.1).half() for k in (96, 32)]
    weight = [(f(*shape) * 0.1).half() for shape in ((96, 5120), (32, 8192))]
    bias = [(f(n) * 0.1).half() for n in (5120, 8192)]
    got = gmm(x, weight, bias=bias, split_item=0, group_type=-1)
    for y, a, w, b in zip(got, x, weight, bias, strict=True):
        exact = a.double() @ w.double() + b.double()
        half_a_step = 2.0 ** (torch.frexp(exact)[1] - 12).clamp(min=-25) + 1e-7  # float32's sum
        assert y.dtype == torch.float16 and y.shape == exact.shape
        assert ((y - exact).abs() <= half_a_step).all()


def test_the_form_that_cuts_k() -> None:
    """x is the transposed view of what is stored; y (groups, M, N)."""
    stored, weight = f(6, 3), f(6, 5)
    got = gmm([stored.t()], [weight], [2, 2, 6], split_item=3, group_type=2)
    wanted = torch.stack([stored[a:b].t() @ weight[a:b] for a, b in ((0, 2), (2, 2), (2, 6))])
    close(got, [wanted])


def test_the_group_type_is_asked_for_in_torch_npus_words() -> None:
    with pytest.raises(RuntimeError, match="Requires manual passing group_type"):
        gmm([X], [W], ENDS, split_item=3)
    with pytest.raises(RuntimeError, match="The group type must be -1, 0 or 2"):
        gmm([X], [W], ENDS, split_item=3, group_type=1)
    with device_rules(), pytest.raises(ContractError, match="group_list_type"):
        gmm([X], [W], [1, 3, 2], split_item=3, group_type=0, group_list_type=2)


def word(scale: Tensor) -> Tensor:
    """npu_trans_quant_param's form of a float32 scale: the low 13 bits are gone."""
    return (scale.view(torch.int32).long() & 0xFFFFE000) | (1 << 46)


def test_int8_results_and_their_scales() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-9, 9, (6, 4), dtype=torch.int8, generator=generator)
    w = torch.randint(-9, 9, (3, 4, 5), dtype=torch.int8, generator=generator)
    scale = torch.rand(3, 5, generator=generator) + 0.1
    bias = torch.randint(-50, 50, (3, 5), dtype=torch.int32, generator=generator)
    group = torch.tensor([0, 1, 1, 1, 2, 2])
    exact = torch.stack([x[i].long() @ w[g].long() for i, g in enumerate(group)])
    settings = {"split_item": 3, "group_type": 0}
    cut = (scale.view(torch.int32) & ~0x1FFF).view(torch.float32)
    got = gmm([x], [w], ENDS, scale=[word(scale)], bias=[bias], **settings)[0]
    wanted = ((exact + bias[group]) * cut[group]).round().clamp(-128, 127).to(torch.int8)
    assert got.dtype == torch.int8 and torch.equal(got, wanted)
    half = gmm([x], [w], ENDS, scale=[scale], output_dtype=5, **settings)[0]
    assert torch.equal(half, (exact * scale[group]).half())
    tokens = torch.rand(6, generator=generator)
    got = gmm(
        [x],
        [w],
        ENDS,
        scale=[scale.bfloat16()],
        per_token_scale=[tokens],
        output_dtype=torch.bfloat16,
        **settings,
    )
    wanted = exact * scale.bfloat16().float()[group] * tokens[:, None]
    assert torch.equal(got[0], wanted.bfloat16())
    late = gmm(
        [x],
        [w],
        ENDS,
        scale=[scale],
        bias=[f(3, 5)],
        per_token_scale=[tokens],
        output_dtype=5,
        act_type=1,
        **settings,
    )[0]
    assert torch.equal(
        late, (exact * scale[group] * tokens[:, None] + f(3, 5)[group]).relu().half()
    )
    for wrong in (
        {"scale": [scale]},
        {"scale": [scale], "output_dtype": 15},
        {"scale": [word(scale)], "output_dtype": 5},
    ):
        with pytest.raises(ContractError, match="output_dtype"):
            gmm([x], [w], ENDS, **wrong, **settings)
    with pytest.raises(ContractError, match="per_token_scale"):
        gmm([x], [w], ENDS, scale=[word(scale)], per_token_scale=[tokens], **settings)


def test_weights_of_int8_alone() -> None:
    """(w + antiquant_offset) * antiquant_scale, in the dtype of x."""
    x, w = f(6, 4).half(), torch.randint(-9, 9, (3, 4, 5), dtype=torch.int8)
    scale, offset = f(3, 5).half(), f(3, 5, seed=1).half()
    got = gmm(
        [x],
        [w],
        ENDS,
        antiquant_scale=[scale],
        antiquant_offset=[offset],
        split_item=3,
        group_type=0,
    )[0]
    full = (w.half() + offset[:, None]) * scale[:, None]
    torch.testing.assert_close(got, gmm([x], [full], ENDS, split_item=3, group_type=0)[0])
    with pytest.raises(ContractError, match="bias is float16"):
        gmm(
            [f(6, 4).bfloat16()],
            [W.bfloat16()],
            ENDS,
            bias=[f(3, 5).half()],
            split_item=3,
            group_type=0,
        )


def test_weights_of_int8_alone_round_once() -> None:
    """At the vendor's shape, whose own golden rounds the product and again the sum: in float64, what is
    ours is off by half a step of float16, which the golden is not."""
    x, w = f(64, 1024).half() * 0.05, torch.randint(-9, 9, (1024, 128), dtype=torch.int8)
    scale, offset, bias = (f(128, seed=i).half() * 0.05 for i in (1, 2, 3))
    got = gmm(
        [x],
        [w],
        None,
        bias=[bias],
        antiquant_scale=[scale],
        antiquant_offset=[offset],
        split_item=0,
        group_type=-1,
    )[0]
    product = x.double() @ ((w.half() + offset) * scale).double()
    exact = product + bias.double()
    half_a_step = 2.0 ** (torch.frexp(exact)[1] - 12).clamp(min=-25) + 4e-6  # float32's sum
    assert got.dtype == torch.float16 and ((got - exact).abs() <= half_a_step).all()
    assert not ((product.half() + bias - exact).abs() <= half_a_step).all()


def test_float64_is_for_measuring_off_the_device() -> None:
    ops.npu_rms_norm(f(2, 4).double(), f(4).double())
    with device_rules(), pytest.raises(ContractError, match="float64"):
        ops.npu_rms_norm(f(2, 4).double(), f(4).double())


# ---- routing, second form ------------------------------------------------------------------------

EXPERTS = torch.tensor([[1, 0], [3, 1], [0, 2]], dtype=torch.int32)
ORDER = torch.tensor([1, 4, 0, 3, 5, 2])  # of the pairs, by expert


def route(x: Tensor, experts: Tensor = EXPERTS, **given: Any) -> tuple[Tensor, ...]:
    settings = {
        "expert_num": 4,
        "expert_tokens_num_flag": True,
        "expert_tokens_num_type": 1,
        **given,
    }
    return ops.npu_moe_init_routing_v2(x, experts, **settings)


def test_int8_rows_are_routed_as_they_are() -> None:
    x = torch.tensor([[1, -2], [3, 4], [-5, 6]], dtype=torch.int8)
    rows, index, counts, _ = route(x)
    assert rows.dtype == torch.int8 and torch.equal(rows, x[ORDER // 2])
    assert counts.tolist() == [2, 2, 1, 1] and index.tolist() == [2, 0, 5, 3, 1, 4]
    with pytest.raises(ContractError, match="quant_mode"):
        route(x, quant_mode=1)


@pytest.mark.parametrize("mode", [-1, 0, 1])
def test_no_token_returns_before_any_scale_is_looked_at(mode: int) -> None:
    x, experts = f(0, 8).bfloat16(), EXPERTS[:0]
    rows, index, counts, scale = route(x, experts, quant_mode=mode, scale=f(0))
    assert rows.shape == (0, 8) and rows.dtype == (torch.bfloat16 if mode == -1 else torch.int8)
    assert index.shape == scale.shape == (0,) and scale.dtype == torch.float32
    assert counts.tolist() == [0, 0, 0, 0]


def test_static_quantisation_is_float16_arithmetic() -> None:
    x, scale, offset = f(3, 16) * 9, torch.tensor([7.3]), torch.tensor([-1.7])
    rows, *_ = route(x, quant_mode=0, scale=scale, offset=offset)
    wanted = (x.half() * scale.half() + offset.half()).round().clamp(-128, 127).to(torch.int8)
    assert torch.equal(rows, wanted[ORDER // 2])
    wide = (x * scale + offset).round().clamp(-128, 127).to(torch.int8)
    assert not torch.equal(wanted, wide)
    padded, *_ = route(
        x, quant_mode=0, scale=scale, offset=offset, drop_pad_mode=1, expert_capacity=2
    )
    assert padded.shape == (4, 2, 16) and padded.dtype == torch.int8
    assert torch.equal(padded[2, 0], wanted[2]) and not padded[2, 1].any()  # 0, not the offset
    for missing in ({"scale": scale}, {"offset": offset}, {"scale": f(2), "offset": offset}):
        with pytest.raises(ContractError, match="in quant_mode 0|numbers|scale|offset"):
            route(x, quant_mode=0, **missing)


# ---- norm, rope and cache ------------------------------------------------------------------------


def nz(cache: Tensor) -> Tensor:
    """What a paged NZ cache holds, as [blocks, block, channels]: address ((c // 16) * block + o) * 16 +
    c % 16 inside a block (int8: 32)."""
    blocks, block, _, width = cache.shape
    part = 32 if cache.dtype == torch.int8 else 16
    found = torch.empty(blocks, block, width, dtype=cache.dtype)
    for o in range(block):
        for c in range(width):
            found[:, o, c] = cache.flatten(1)[:, ((c // part) * block + o) * part + c % part]
    return found


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("form", ["latent", "v"])
def test_cache_modes(form: str, quantised: bool) -> None:
    """Every mode writes the same rows, to the slots that it names."""
    batch, length, block = 2, 3, 2
    width, normed = (576, 512) if form == "latent" else (192, 192)
    kv, gamma = f(batch, 1, length, width).half(), f(normed).half()
    cos, sin = f(batch, 1, length, 64).half(), f(batch, 1, length, 64, seed=1).half()
    v = None if form == "latent" else f(batch, 1, length, 128).half()
    sizes = (64, 512) if form == "latent" else (192, 128)
    scales = [f(n).abs() + 5 for n in sizes] if quantised else [None, None]
    dtype = torch.int8 if quantised else torch.float16

    def caches() -> list[Tensor]:
        return [torch.zeros(6, block, 1, n, dtype=dtype) for n in sizes]

    def call(mode: str, index: list[int], held: list[Tensor]) -> tuple[Tensor, ...]:
        scale = {"k_rope_scale": scales[0], "c_kv_scale": scales[1]}
        return ops.npu_kv_rmsnorm_rope_cache(
            kv,
            gamma,
            cos,
            sin,
            torch.tensor(index),
            *held,
            v=v,
            cache_mode=mode,
            is_output_kv=True,
            **scale,
        )

    whole = kv.float()
    part = whole if form == "v" else whole[..., :512]
    y = part * torch.rsqrt(part.square().mean(-1, keepdim=True) + 1e-5) * gamma.float()
    rotary = y[..., :64] if form == "v" else whole[..., 512:]
    halves = torch.cat((rotary[..., ::2], rotary[..., 1::2]), -1)
    turned = (
        halves * cos.float() + torch.cat((-halves[..., 32:], halves[..., :32]), -1) * sin.float()
    )
    wanted = [turned, y] if form == "latent" else [torch.cat((turned, y[..., 64:]), -1), v.float()]
    stored = [
        w.to(dtype) if s is None else (w * s).round().clamp(-128, 127).to(dtype)
        for w, s in zip(wanted, scales, strict=True)
    ]
    slots = [7, -1, 0, 3, 4, 10]
    for mode in ("PA", "PA_BNSD", "PA_NZ"):
        held = caches()
        found = call(mode, slots, held)
        for cache, rows in zip(held, stored, strict=True):
            flat = (nz(cache) if mode == "PA_NZ" else cache).reshape(12, -1)
            for slot, row in zip(slots, rows.flatten(0, 2), strict=True):
                assert slot < 0 or torch.equal(flat[slot], row)
            assert not flat[[1, 2, 5, 6, 8, 9, 11]].any()
        for got, value in zip(found[2:], wanted, strict=True):
            torch.testing.assert_close(got, value.half())
    pages = [8, 2, -1, 0]  # two pages a sequence of 3 rows
    places = [8, 9, 2, -1, -1, 0]
    for mode in ("PA_BLK_BNSD", "PA_BLK_NZ"):
        held = caches()
        call(mode, pages, held)
        for cache, rows in zip(held, stored, strict=True):
            flat = (nz(cache) if "NZ" in mode else cache).reshape(12, -1)
            for slot, row in zip(places, rows.flatten(0, 2), strict=True):
                assert slot < 0 or torch.equal(flat[slot], row)
            assert not flat[[1, 3, 4, 5, 6, 7, 10, 11]].any()
        with pytest.raises(ContractError, match="index"):
            call(mode, slots, caches())


# ---- matmul with permutations --------------------------------------------------------------------


def test_transpose_batchmatmul_with_a_scale() -> None:
    x, weight, scale = f(4, 3, 16), f(3, 16, 32), f(96).abs() * 9
    words = word(scale)
    cut = (scale.view(torch.int32) & ~0x1FFF).view(torch.float32)
    got = ops.npu_transpose_batchmatmul(x, weight, scale=words, perm_x1=[1, 0, 2])
    y = (x.transpose(0, 1) @ weight).transpose(0, 1).reshape(4, 1, 96) * cut
    assert got.dtype == torch.int8 and got.shape == (4, 1, 96)
    assert torch.equal(got, y.trunc().clamp(-128, 127).to(torch.int8))
    with pytest.raises(ContractError, match="batch_split_factor"):
        ops.npu_transpose_batchmatmul(
            x, weight, scale=words, perm_x1=[1, 0, 2], batch_split_factor=2
        )
    for wrong in (scale, words[:5]):
        with pytest.raises(ContractError, match="scale"):
            ops.npu_transpose_batchmatmul(x, weight, scale=wrong, perm_x1=[1, 0, 2])


def test_transpose_batchmatmul_refuses_in_torch_npus_words() -> None:
    x, weight = f(4, 3, 16), f(3, 16, 32)
    for name in ("perm_x1", "perm_x2", "perm_y"):
        with pytest.raises(RuntimeError, match=f"{name} should be"):
            ops.npu_transpose_batchmatmul(x, weight, **{"perm_x1": [1, 0, 2], name: [1, 1, 2]})
    with pytest.raises(
        RuntimeError, match="input's type supported for float16, float32 and bfloat16"
    ):
        ops.npu_transpose_batchmatmul(x.long(), weight)
    with pytest.raises(
        RuntimeError, match="weight's type supported for float16, float32 and bfloat16"
    ):
        ops.npu_transpose_batchmatmul(x, weight.long())


def test_the_transposed_weight_needs_cann_8_5() -> None:
    x, weight = f(3, 4, 16), f(3, 32, 16)
    with device_rules((8, 3)), pytest.raises(ContractError, match="perm_x2 should be"):
        ops.npu_transpose_batchmatmul(x, weight, perm_x2=[0, 2, 1])
    with device_rules((8, 5)):
        got = ops.npu_transpose_batchmatmul(x, weight, perm_x2=[0, 2, 1])
    torch.testing.assert_close(got, (x @ weight.mT).transpose(0, 1))

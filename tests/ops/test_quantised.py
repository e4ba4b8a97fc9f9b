"""int8 operators, paged writes, the routing and gating of other models: against the formula in float64
or exact integers, and against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsv3_port import ops
from dsv3_port.ops.numbers import unpack_int4, word_to_offset, word_to_scale
from dsv3_port.ops.wide import exact_product

BF16, F16, I8, I32 = torch.bfloat16, torch.float16, torch.int8, torch.int32


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def small(*shape: int, seed: int = 0, most: int = 127) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).to(I8)


X = torch.tensor([[0.5, -1, 0.25, 2], [3, -4, 1, 0]])
W = torch.tensor([[1, -2, 0.5, 0.25], [0.1, 0.2, -0.3, 0.4]])


def test_a_product_of_int8_worked_out_by_hand() -> None:
    q, scale = ops.npu_dynamic_quant(X)
    assert q.tolist() == [[32, -64, 16, 127], [95, -127, 32, 0]]  # 63.5 goes to the even 64
    torch.testing.assert_close(scale, torch.tensor([2 / 127, 4 / 127]))
    weight, of_weight = ops.npu_dynamic_quant(W)
    assert weight.tolist() == [[64, -127, 32, 16], [32, 64, -95, 127]]
    total = ops.npu_quant_matmul(q, weight.T, of_weight, output_dtype=3)
    assert total.tolist() == [[12720, 11537], [23233, -8128]]
    out = ops.npu_quant_matmul(q, weight.T, of_weight, pertoken_scale=scale, output_dtype=15)
    wanted = torch.tensor([[3.154566, 0.572236], [11.523591, -0.806299]])
    torch.testing.assert_close(out, wanted.to(BF16))


def test_a_swiglu_between_products_worked_out_by_hand() -> None:
    x = torch.tensor([[100, -50, 20, 40]], dtype=I32)
    scales: dict[str, Any] = {
        "weight_scale": torch.tensor([[1, 1, 2, 0.5]]),
        "activation_scale": torch.tensor([[0.01]]),
        "quant_mode": 1,
    }
    q, scale = ops.npu_dequant_swiglu_quant(x, **scales, activate_left=True)
    assert q.tolist() == [[127, -16]]
    torch.testing.assert_close(scale, torch.tensor([0.00230255]), rtol=1e-5, atol=0)
    q, scale = ops.npu_dequant_swiglu_quant(x, **scales)  # the default: silu of the right half
    torch.testing.assert_close(scale * 127, torch.tensor([0.239475]), rtol=1e-5, atol=0)
    assert q.tolist() == [[127, -29]]


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("mode", ["pertoken", "perchannel", "pertensor"])
def test_dynamic_quant(dtype: torch.dtype, mode: str) -> None:
    x = normal(2, 5, 16, dtype=dtype)
    q, scale = ops.npu_dynamic_quant(x, quant_mode=mode)
    dims = {"pertoken": (-1,), "perchannel": (-2,), "pertensor": (0, 1, 2)}[mode]
    wanted = x.double().abs().amax(dims, keepdim=True) / 127
    torch.testing.assert_close(scale.double().reshape(wanted.shape), wanted, rtol=1e-6, atol=0)
    assert q.dtype == I8 and scale.dtype == torch.float32
    assert ((q.double() - x.double() / wanted).abs() <= 0.5 + 1e-4).all()


def test_dynamic_quant_smooths_each_group_by_its_own_scales() -> None:
    x, smooth = normal(6, 8, dtype=F16), normal(3, 8, dtype=F16, seed=1)
    ends = torch.tensor([2, 2, 6], dtype=I32)  # the second group is empty
    q, scale = ops.npu_dynamic_quant(x, smooth_scales=smooth, group_index=ends)
    for rows, group in ((slice(0, 2), 0), (slice(2, 6), 2)):
        one = ops.npu_dynamic_quant(x[rows], smooth_scales=smooth[group])
        assert torch.equal(q[rows], one[0]) and torch.equal(scale[rows], one[1])
        product = x[rows].double() * smooth[group].double()
        torch.testing.assert_close(one[1].double(), product.abs().amax(-1) / 127, rtol=1e-6, atol=0)


def test_int4_and_a_row_of_zeros() -> None:
    x = normal(3, 16, dtype=BF16)
    x[1] = 0
    q, scale = ops.npu_dynamic_quant(x, dst_type=16)
    assert q.dtype == I32 and q.shape == (3, 2) and scale[1] == 0
    values = unpack_int4(q)
    assert int(values.min()) >= -7 and int(values.max()) <= 7 and not values[1].any()
    torch.testing.assert_close(values * scale[:, None], x.float(), rtol=0, atol=float(scale.max()))


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [(12, -128, 127), (13, 0, 255), (14, -(2**31), 0)]
)
def test_quantize_by_division(dtype: int, low: int, high: int) -> None:
    x, scale = normal(4, 6), torch.tensor([0.01, 0.02, 0.5, 0.001])
    zero = torch.tensor([1, -3, 7, 0], dtype=I32)
    got = ops.npu_quantize(x, scale, zero, dtype, 0)
    wanted = torch.round(x / scale[:, None]).double() + zero.double()[:, None]
    assert torch.equal(got.double(), wanted.clamp(low, high if high else 2**31 - 1))
    assert got.dtype == {12: I8, 13: torch.uint8, 14: I32}[dtype]


@pytest.mark.parametrize(("axis", "size"), [(1, 16), (-1, 16), (-2, 4), (0, 16)])
def test_quantize_by_multiplication(axis: int, size: int) -> None:
    """Any axis but -2 is the last one."""
    x = normal(4, 16, dtype=F16)
    scale, zero = normal(size, dtype=F16, seed=1) * 30, normal(size, dtype=F16, seed=2).round()
    got = ops.npu_quantize(x, scale, zero, 12, axis, False)
    shape = (4, 1) if axis == -2 else (1, 16)
    wanted = (x.float() * scale.float().view(shape) + zero.float().view(shape)).round()
    assert torch.equal(got.float(), wanted.clamp(-128, 127))
    packed = ops.npu_quantize(x, scale, None, torch.quint4x2, axis, False)
    wanted = (x.float() * scale.float().view(shape)).round().clamp(-8, 7)
    assert torch.equal(unpack_int4(packed).float(), wanted)


def test_the_word_of_a_scale() -> None:
    scale = torch.tensor([0.00123, -2.5, 1.0])
    word = ops.npu_trans_quant_param(scale)
    assert word.dtype == torch.int64 and bool(((word >> 46) & 1).all())
    bits = [int(n) & 0xFFFFFFFF for n in word]
    assert bits[1:] == [0xC0200000, 0x3F800000]
    back = word_to_scale(word)
    assert ((back - scale).abs() <= scale.abs() * 2**-10).all() and abs(float(back[0])) < 0.00123
    near = word_to_scale(ops.npu_trans_quant_param(scale, None, 1))
    assert (near - scale).abs().max() <= (back - scale).abs().max()
    offsets = torch.tensor([3.4, -300.0, 255.5])
    word = ops.npu_trans_quant_param(scale, offsets)
    assert word_to_offset(word).tolist() == [3, -256, 255]
    assert torch.equal(word_to_scale(word), back)


def test_a_word_that_is_rounded_is_rounded_to_even() -> None:
    """round_mode 1: the 13 bits that go are a half exactly, above an even and above an odd bit."""
    bits = torch.tensor([0x3F801000, 0x3F803000, 0x3F802FFF, 0x3F801001], dtype=I32)
    word = ops.npu_trans_quant_param(bits.view(torch.float32), None, 1)
    assert [int(n) & 0xFFFFFFFF for n in word] == [0x3F800000, 0x3F804000, 0x3F802000, 0x3F802000]


@pytest.mark.parametrize("output", [None, 5, 15, 3])
@pytest.mark.parametrize("bias", [None, "int32", "float"])
def test_quant_matmul(output: int | None, bias: str | None) -> None:
    x1, x2 = small(2, 3, 40), small(40, 8, seed=1)
    scale = normal(8, seed=2).abs() / 4000
    given: dict[str, Any] = {"output_dtype": output}
    total = x1.long() @ x2.long()
    if bias == "int32":
        given["bias"] = torch.arange(8, dtype=I32) * 1000
        total = total + given["bias"]
    y = total.double() * scale.double()
    if output == 15:
        given["pertoken_scale"] = normal(3, seed=3).abs()
        y = y * given["pertoken_scale"].double()[:, None]
    if bias == "float":
        given["bias"] = normal(8, seed=4)
        if output != 15:
            with pytest.raises(RuntimeError, match="bias is float32; it must be int32"):
                ops.npu_quant_matmul(x1, x2, scale, **given)
            return
        y = y + given["bias"].double()
    got = ops.npu_quant_matmul(x1, x2, scale, **given)
    dtype = {None: I8, 5: F16, 15: BF16, 3: I32}[output]
    assert got.dtype == dtype
    if output == 3:
        assert torch.equal(got.long(), total)
    elif output is None:
        assert ((got.double() - y.clamp(-128, 127)).abs() <= 0.5 + 1e-4).all()
    else:
        torch.testing.assert_close(got, y.to(dtype), rtol=2**-8, atol=1e-4)


def test_sums_beyond_float32_are_exact() -> None:
    """127 * 127 * 7168 needs 27 bits."""
    x1, x2 = torch.full((1, 7168), 127, dtype=I8), torch.full((7168, 1), 127, dtype=I8)
    x1[0, 0] = 126
    got = ops.npu_quant_matmul(x1, x2, torch.ones(1), output_dtype=3)
    assert int(got) == 127 * 127 * 7168 - 127


@pytest.mark.parametrize("width", [1, 1023, 1024, 1025, 2048])
def test_sums_are_exact_on_both_sides_of_what_float32_holds(width: int) -> None:
    """All of one sign, the largest there are: float32 loses a 1 from 2^24 = 1024 * 128 * 128 on."""
    x, w = torch.full((2, width), -128, dtype=I8), torch.full((width, 3), -128, dtype=I8)
    x[1], w[0, 1:] = 127, 127
    x[0, 0], w[-1, 2] = -127, -127
    want = x.long() @ w.long()
    assert torch.equal(exact_product(x, w), want.double())
    ends = torch.tensor([2])
    (got,) = ops.npu_grouped_matmul(
        [x], [w[None]], group_list=ends, split_item=3, group_type=0, output_dtype=I32
    )
    assert torch.equal(got.long(), want)


def test_int4_products_and_offsets_in_words() -> None:
    x1, x2 = small(3, 16, most=7), small(16, 8, seed=1, most=7)
    scale = torch.full((8,), 0.125)
    packed = [pack(x1), pack(x2)]
    got = ops.npu_quant_matmul(*packed, scale, output_dtype=5)
    assert torch.equal(got.double(), (x1.long() @ x2.long()).double() / 8)
    transposed = pack(x2.T.contiguous()).T
    assert torch.equal(ops.npu_quant_matmul(packed[0], transposed, scale, output_dtype=5), got)
    word = ops.npu_trans_quant_param(scale, torch.full((8,), 5.0))
    eight = ops.npu_quant_matmul(x1, x2, word)
    wanted = ((x1.long() @ x2.long()).float() / 8 + 5).round().clamp(-128, 127)
    assert torch.equal(eight.float(), wanted)


def pack(x: Tensor) -> Tensor:
    words = [
        [
            sum((int(v) & 15) << (4 * i) for i, v in enumerate(row[j : j + 8]))
            for j in range(0, len(row), 8)
        ]
        for row in x.tolist()
    ]
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


def test_add_rms_norm_dynamic_quant() -> None:
    x1, x2 = (normal(3, 32, dtype=BF16, seed=s) for s in (0, 1))
    gamma, s1, s2, beta = (normal(32, dtype=BF16, seed=s) for s in (2, 3, 4, 5))
    given: dict[str, Any] = {"smooth_scale1": s1, "smooth_scale2": s2, "beta": beta}
    got = ops.npu_add_rms_norm_dynamic_quant(x1, x2, gamma, **given)
    x = x1.double() + x2.double()
    y = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gamma.double() + beta.double()
    for q, scale, smooth in ((got[0], got[3], s1), (got[1], got[4], s2)):
        wanted = (y * smooth.double()).abs().amax(-1) / 127
        torch.testing.assert_close(scale.double(), wanted, rtol=1e-5, atol=0)
        distance = q.double() - y * smooth.double() / wanted[:, None]
        assert (distance.abs() <= 0.5 + 1e-3).all()
    assert torch.equal(got[2], x.to(BF16))
    one = ops.npu_add_rms_norm_dynamic_quant(x1, x2, gamma, smooth_scale1=s1)
    assert one[1].numel() == one[4].numel() == 0 and one[0].shape == (3, 32)
    masked = ops.npu_add_rms_norm_dynamic_quant(x1, x2, gamma, output_mask=[False, True])
    assert masked[0].numel() == 0 and masked[1].shape == (3, 32)


def test_groups_of_swiglu_rows_have_their_own_scales() -> None:
    x = small(7, 128).int() * 50
    counts = torch.tensor([2, 0, 3])
    scales = normal(3, 128, seed=1).abs() / 1000
    smooth, tokens = normal(3, 64, seed=2), normal(7, 1, seed=3).abs()
    q, scale = ops.npu_dequant_swiglu_quant(
        x,
        weight_scale=scales,
        activation_scale=tokens,
        quant_scale=smooth,
        group_index=counts,
        activate_left=True,
        quant_mode=1,
    )
    assert scale[5:].isnan().all()
    for row, group in enumerate((0, 0, 2, 2, 2)):
        y = x[row].double() * scales[group].double() * tokens[row].double()
        y = torch.nn.functional.silu(y[:64]) * y[64:] * smooth[group].double()
        torch.testing.assert_close(scale[row].double(), y.abs().max() / 127, rtol=1e-5, atol=0)
        assert ((q[row] - y / (y.abs().max() / 127)).abs() <= 0.5 + 1e-3).all()


def test_codes_of_a_swiglu_are_a_product_with_127_over_the_largest() -> None:
    """silu of 50 and more is the number itself, so y is known exactly, and every other code is a tie:
    y * (127 / max), y / (max / 127) and y * (1 / max * 127) go different ways. The bias comes first."""
    f32, rows = np.float32, 400
    gate = np.arange(50, 50 + rows)[:, None].repeat(64, 1)
    up = np.random.default_rng(0).integers(-254, 255, (rows, 64))
    up[:, 7] = 254
    bias = torch.arange(128, dtype=I32)
    x = torch.from_numpy(np.concatenate((gate, up), 1)).int() - bias
    given: dict[str, Any] = {"weight_scale": torch.ones(128), "bias": bias, "activate_left": True}
    codes, scale = ops.npu_dequant_swiglu_quant(x, **given, quant_mode=1)
    y = (gate * up).astype(f32)
    most = np.abs(y).max(1, keepdims=True)
    assert np.array_equal(scale.numpy()[:, None], most / f32(127))
    assert np.array_equal(codes.numpy(), np.rint(y * (f32(127) / most)))
    for other in (y / (most / f32(127)), y * (f32(1) / most * f32(127))):
        assert (np.rint(other) != codes.numpy()).any()


@pytest.mark.parametrize("mode", [1, 2])
def test_clamped_swiglu_and_static_scales(mode: int) -> None:
    x = normal(3, 8, dtype=F16) * 6
    divide, add = normal(1, 4, seed=1).abs() / 10 + 0.05, normal(1, 4, seed=2).round()
    q, _ = ops.npu_dequant_swiglu_quant(
        x,
        quant_scale=divide,
        quant_offset=add,
        swiglu_mode=mode,
        activate_left=True,
        clamp_limit=5.0,
        glu_alpha=1.5,
        glu_bias=0.5,
    )
    gate, up = (x[:, ::2], x[:, 1::2]) if mode == 1 else (x[:, :4], x[:, 4:])
    gate, up = gate.double().clamp(max=5), up.double().clamp(-5, 5)
    y = gate * torch.sigmoid(1.5 * gate) * (up + 0.5) / divide.double() + add.double()
    assert ((q.double() - y.clamp(-128, 127)).abs() <= 0.5 + 1e-3).all()


@pytest.mark.parametrize("layout", ["BSND", "TND"])
def test_rotation_of_query_and_key_in_place(layout: str) -> None:
    lead = (2, 3) if layout == "BSND" else (6,)
    q, k = normal(*lead, 4, 64, dtype=BF16), normal(*lead, 1, 64, dtype=BF16, seed=1)
    angle = normal(*lead, 1, 64, seed=2)
    cos, sin = angle.cos().to(BF16), angle.sin().to(BF16)
    before = q.clone(), k.clone()
    out = ops.npu_apply_rotary_pos_emb(q, k, cos, sin, layout)
    for x, y, place in zip(before, out, (q, k), strict=True):
        turned = torch.cat((-x[..., 32:], x[..., :32]), -1).double()
        wanted = (x.double() * cos.double() + turned * sin.double()).to(BF16)
        assert torch.equal(place, y)
        torch.testing.assert_close(y, wanted, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("mode", ["PA_NZ", "Norm"])
def test_paged_writes(mode: str) -> None:
    key, value = normal(4, 2, 32), normal(4, 2, 48, seed=1)
    slots = torch.tensor([5, -1, 16, 30], dtype=I32)  # -1 is not the last slot
    blocks, block, c = 2, 16, 16

    def cache(width: int) -> Tensor:
        shape = (blocks, 2 * width // c, block, c) if mode == "PA_NZ" else (blocks, block, 2, width)
        return torch.full(shape, 7.0)

    caches = cache(32), cache(48)
    new = ops.npu_scatter_pa_kv_cache_functional(key, value, *caches, slots, cache_mode=mode)
    assert bool((caches[0] == 7).all())
    ops.npu_scatter_pa_kv_cache(key, value, *caches, slots, cache_mode=mode)
    for rows, got, other in zip((key, value), caches, new, strict=True):
        assert torch.equal(got, other)
        flat = got.transpose(1, 2).flatten(2) if mode == "PA_NZ" else got.flatten(2)
        wanted = torch.full((32, rows[0].numel()), 7.0)
        for t, slot in ((0, 5), (2, 16), (3, 30)):
            wanted[slot] = rows[t].flatten()
        assert torch.equal(flat.flatten(0, 1), wanted)
    with pytest.raises(RuntimeError, match=r"in 0\.\.31"):
        ops.npu_scatter_pa_kv_cache(key, value, *caches, slots + 2, cache_mode=mode)


def test_rows_sorted_by_expert_and_back() -> None:
    tokens, chosen = (
        normal(5, 8, dtype=BF16),
        torch.tensor([[2, 0], [1, 2], [0, 1], [2, 1], [0, 2]]),
    )
    rows, where = ops.npu_moe_token_permute(tokens, chosen)
    pairs = sorted((int(e), t, j) for t, row in enumerate(chosen) for j, e in enumerate(row))
    assert torch.equal(rows, tokens[[t for _, t, _ in pairs]])
    places = {(t, j): at for at, (_, t, j) in enumerate(pairs)}
    assert where.tolist() == [places[t, j] for t in range(5) for j in range(2)]
    probs = normal(5, 2, dtype=BF16, seed=1).abs()
    back = ops.npu_moe_token_unpermute(rows, where, probs)
    wanted = tokens.double() * probs.double().sum(-1, keepdim=True)
    torch.testing.assert_close(back, wanted.to(BF16), rtol=2**-7, atol=1e-6)
    few, where = ops.npu_moe_token_permute(tokens, chosen, num_out_tokens=3)  # expert 0's
    assert torch.equal(few, rows[:3])
    kept = ops.npu_moe_token_unpermute(few, where, torch.ones(5, 2, dtype=BF16))
    assert torch.equal(kept, tokens * (chosen == 0).any(-1, keepdim=True))


def test_gating_by_softmax() -> None:
    x = normal(4, 6)
    x[1, 2] = x[1, 4] = 5.0  # equal: the first expert comes first
    finished = torch.tensor([False, False, True, False])
    values, chosen, row_idx = ops.npu_moe_gating_top_k_softmax(x, finished, 2)
    wanted, at = x.double().softmax(-1).topk(2)
    torch.testing.assert_close(values.double(), wanted, rtol=1e-6, atol=0)
    assert chosen.tolist()[1] == [2, 4] and chosen.tolist()[2] == [6, 6]
    assert torch.equal(chosen[0].long(), at[0]) and chosen.dtype == row_idx.dtype == I32
    assert row_idx.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_silu() -> None:
    x = normal(3, 4, dtype=F16)
    wanted = (x.double() * torch.sigmoid(x.double())).to(F16)
    torch.testing.assert_close(ops.npu_silu(x), wanted)
    assert ops.npu_silu_(x) is x
    torch.testing.assert_close(x, wanted)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.npu_dynamic_quant(normal(8)), "2 dimensions"),
        (lambda: ops.npu_dynamic_quant(normal(2, 9), dst_type=16), "divisible by 8"),
        (lambda: ops.npu_dynamic_quant(normal(2, 8), dst_type=3), "quint4x2"),
        (lambda: ops.npu_dynamic_quant(normal(2, 8), smooth_scales=normal(4)), "smooth_scales"),
        (
            lambda: ops.npu_dynamic_quant(
                normal(4, 8),
                smooth_scales=normal(2, 8),
                group_index=torch.tensor([1, 3], dtype=I32),
            ),
            "the last one 4",
        ),
        (lambda: ops.npu_quantize(normal(2, 8), normal(3), None, 12), r"scales is \[3\]"),
        (lambda: ops.npu_quantize(normal(2, 8), normal(8), None, 16), "dtype is 16"),
        (lambda: ops.npu_quantize(normal(2, 8), normal(8), None, 12, 5), "axis is 5"),
        (lambda: ops.npu_trans_quant_param(small(3)), "scale is int8"),
        (lambda: ops.npu_quant_matmul(small(2, 8), small(9, 3), normal(3)), "x2"),
        (lambda: ops.npu_quant_matmul(small(2, 8), small(8, 3), normal(2)), "scale"),
        (
            lambda: ops.npu_quant_matmul(
                small(2, 8), small(8, 3), normal(3), pertoken_scale=normal(2)
            ),
            "pertoken_scale is .*None with a result",
        ),
        (lambda: ops.npu_dequant_swiglu_quant(small(2, 8).int()), "weight_scale is None"),
        (
            lambda: ops.npu_dequant_swiglu_quant(
                normal(2, 8, dtype=F16), group_index=torch.tensor([2])
            ),
            "divisible by 64",
        ),
        (
            lambda: ops.npu_apply_rotary_pos_emb(*(normal(1, 2, 3, 32) for _ in range(4))),
            "D of 64 or 128",
        ),
        (
            lambda: ops.npu_apply_rotary_pos_emb(
                *(normal(1, 2, 1, 64) for _ in range(4)), rotary_mode="pair"
            ),
            "The layout should be half/quarter/interleave, but got pair",
        ),
        (lambda: ops.npu_moe_gating_top_k_softmax(normal(2, 4), None, 5), "k is 5"),
        (
            lambda: ops.npu_moe_token_unpermute(normal(4, 8), torch.arange(4), normal(3, 1)),
            "probs",
        ),
        (
            lambda: ops.npu_add_rms_norm_dynamic_quant(
                normal(2, 8), normal(2, 8), normal(8), output_mask=[False, False]
            ),
            "output_mask",
        ),
    ],
)
def test_refusals(call: Any, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        call()

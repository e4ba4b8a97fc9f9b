"""Where 16-bit operators round, against numpy emulations made step by step; and float64 against the
definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dsv3_port import ops
from tests.ops.meanings import reference

HALF = (torch.bfloat16, torch.float16)


def values(x: Tensor) -> np.ndarray:
    return x.double().numpy()


def rounded(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """x (float32 values) to 16 bits and back; ties to even, done on the bits for bfloat16."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    if dtype == torch.float16:
        return x.astype(np.float16).astype(np.float32)
    if dtype == torch.float32:
        return x
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def f32(x: Tensor) -> np.ndarray:
    return x.float().numpy()


def same(got: Tensor, wanted: np.ndarray, share: float = 0.0) -> None:
    """Bit for bit but for a `share` of elements, where float32's own last bit (order of a sum, exp)
    tips a rounding."""
    wrong = (f32(got) != wanted).mean()
    assert wrong <= share, f"{wrong:.4%} of the elements differ"


def draws(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape).to(dtype)


def rstd_of(x: np.ndarray) -> np.ndarray:
    mean = (x.astype(np.float64) ** 2).mean(-1, keepdims=True)
    return (1 / np.sqrt(mean + 1e-6)).astype(np.float32)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("wide_gamma", [False, True])
def test_rms_norm_rounds_once(dtype: torch.dtype, wide_gamma: bool) -> None:
    x, gamma = draws(dtype, 8, 512), draws(torch.float32 if wide_gamma else dtype, 512)
    y, rstd = ops.npu_rms_norm(x, gamma)
    assert y.dtype == dtype and rstd.dtype == torch.float32 and rstd.shape == (8, 1)
    same(y, rounded(f32(x) * rstd_of(f32(x)) * f32(gamma), dtype), share=2e-3)


@pytest.mark.parametrize("dtype", HALF)
def test_add_rms_norm_rounds_sum_value_and_product(dtype: torch.dtype) -> None:
    x1, x2, gamma = draws(dtype, 8, 512), draws(dtype, 8, 512), draws(dtype, 512)
    y, rstd, x = ops.npu_add_rms_norm(x1, x2, gamma)
    total = rounded(f32(x1) + f32(x2), dtype)
    same(x, total)
    np.testing.assert_allclose(rstd.numpy(), rstd_of(total), rtol=3e-7)
    value = rounded(total * rstd.numpy(), dtype)  # the operator's own rstd: what is left is exact
    same(y, rounded(value * f32(gamma), dtype))


def test_the_two_norms_differ_by_one_bfloat16_step_in_a_quarter_of_the_elements() -> None:
    x1, x2, gamma = (draws(torch.bfloat16, 7168) for _ in range(3))
    y, _, x = ops.npu_add_rms_norm(x1, x2, gamma)
    once = ops.npu_rms_norm(x, gamma)[0]
    assert 0.15 < (y != once).float().mean() < 0.35
    assert ((y.float() - once.float()).abs() <= once.float().abs() * 2**-7).all()


@pytest.mark.parametrize("dtype", HALF)
def test_add_rms_norm_cast_casts_what_is_rounded(dtype: torch.dtype) -> None:
    """float16 as npu_add_rms_norm, bfloat16 in float32 from the unrounded sum on."""
    x1, x2, gamma = draws(dtype, 4, 256), draws(dtype, 4, 256), draws(dtype, 256)
    y1, y2, rstd, x = ops.npu_add_rms_norm_cast(x1, x2, gamma)
    total = f32(x1) + f32(x2)
    same(x, rounded(total, dtype))
    assert y1.dtype == torch.float32 and y2.dtype == dtype and torch.equal(y1, y2.float())
    if dtype == torch.float16:
        for got, wanted in zip((y2, rstd, x), ops.npu_add_rms_norm(x1, x2, gamma), strict=True):
            assert torch.equal(got, wanted)
    else:
        np.testing.assert_allclose(rstd.numpy(), rstd_of(total), rtol=3e-7)
        same(y2, rounded(total * rstd.numpy() * f32(gamma), dtype))
        assert not torch.equal(y2, ops.npu_add_rms_norm(x1, x2, gamma)[0])


def test_add_rms_norm_keeps_inf_and_nan_and_reduces_all_dims_of_gamma() -> None:
    x1, x2, gamma = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8), torch.randn(4, 8)
    y, rstd, _ = ops.npu_add_rms_norm(x1, x2, gamma)
    assert rstd.shape == (2, 3, 1, 1)
    x1[0, 0, 0, 0], x1[0, 1, 0, 0] = torch.inf, torch.nan
    changed, _, x = ops.npu_add_rms_norm(x1, x2, gamma)
    assert x[0, 0, 0, 0].isinf() and changed[0, 1].isnan().all()
    torch.testing.assert_close(changed[1], y[1])


@pytest.mark.parametrize("dtype", HALF)
def test_swiglu_rounds_once(dtype: torch.dtype) -> None:
    x = draws(dtype, 16, 256)
    gate, up = x.double().chunk(2, -1)
    exact = gate / (1 + torch.exp(-gate)) * up
    same(ops.npu_swiglu(x), rounded(values(exact), dtype), share=2e-3)
    torch.testing.assert_close(
        ops.npu_swiglu(x.transpose(0, 1).contiguous(), 0), ops.npu_swiglu(x).t()
    )


@pytest.mark.parametrize("dtype", HALF)
def test_rope_rounds_once_and_agrees_with_its_definition(dtype: torch.dtype) -> None:
    x, angle = draws(dtype, 2, 3, 5, 64), torch.randn(2, 1, 5, 64)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    z = values(x).reshape(2, 3, 5, 32, 2).swapaxes(-1, -2).reshape(2, 3, 5, 64)
    turned = np.concatenate((-z[..., 32:], z[..., :32]), -1)
    c, s = f32(cos), f32(sin)
    z, turned = z.astype(np.float32), turned.astype(np.float32)
    same(ops.npu_interleave_rope(x, cos, sin), rounded(z * c + turned * s, dtype))
    halves = torch.from_numpy(z).to(dtype)
    same(ops.npu_rotary_mul(halves, cos, sin), rounded(z * c + turned * s, dtype))


def test_rotation_matrix_equals_half_mode() -> None:
    x, cos, sin = torch.randn(1, 2, 3, 8), torch.rand(1, 1, 3, 8), torch.rand(1, 1, 3, 8)
    matrix = torch.zeros(8, 8)
    matrix[4:, :4], matrix[:4, 4:] = -torch.eye(4), torch.eye(4)
    torch.testing.assert_close(
        ops.npu_rotary_mul(x, cos, sin, "half", matrix), ops.npu_rotary_mul(x, cos, sin)
    )


@pytest.mark.parametrize(
    ("dtype", "wide_scales"),
    [
        (torch.bfloat16, False),
        (torch.bfloat16, True),
        (torch.float16, False),
        (torch.float32, False),
    ],
)
@pytest.mark.parametrize("mode", [0, 2])
def test_finalize_routing_adds_in_order(dtype: torch.dtype, wide_scales: bool, mode: int) -> None:
    n, k, h, e = 5, 4, 64, 3
    rows, skip1, skip2, bias = (draws(dtype, *s) for s in ((n * k, h), (n, h), (n, h), (e, h)))
    scales = draws(torch.float32 if wide_scales else dtype, n, k)
    index, experts = torch.randperm(n * k).int(), torch.randint(0, e, (n, k)).int()
    got = ops.npu_moe_finalize_routing(
        rows, skip1, skip2, bias, scales, index, experts, drop_pad_mode=mode
    )
    step = torch.float32 if dtype == torch.bfloat16 else dtype  # fp16 really accumulates in fp16
    place = index.view(n, k).numpy() if mode == 2 else index.view(k, n).t().numpy()
    wanted = rounded(f32(skip1) + f32(skip2), step)
    for j in range(k):
        term = rounded(f32(rows)[place[:, j]] + f32(bias)[experts[:, j].numpy()], step)
        term = rounded(f32(scales)[:, j, None] * term, step)
        wanted = rounded(wanted + term, step)
    same(got, rounded(wanted, dtype))


def test_finalize_routing_minus_one() -> None:
    """Dropped choices: bfloat16 leaves the bias out as well, float32 adds it."""
    for dtype, kept in ((torch.bfloat16, 0.0), (torch.float32, 2.0)):
        rows, bias = torch.ones(2, 2, 3, dtype=dtype), torch.full((2, 3), 2.0, dtype=dtype)
        for mode in (1, 3):
            out = ops.npu_moe_finalize_routing(
                rows,
                None,
                None,
                bias,
                torch.ones(1, 2, dtype=dtype),
                torch.tensor([-1, 3], dtype=torch.int32),
                torch.tensor([[0, 1]], dtype=torch.int32),
                drop_pad_mode=mode,
            )
            torch.testing.assert_close(out, torch.full((1, 3), 3.0 + kept, dtype=dtype))


def test_finalize_routing_without_scales() -> None:
    rows = torch.randn(6, 4)
    out = ops.npu_moe_finalize_routing(
        rows, None, None, None, None, torch.arange(6, dtype=torch.int32), None, k=2
    )
    torch.testing.assert_close(out, rows[:3] + rows[3:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gating_works_in_float32(dtype: torch.dtype) -> None:
    x, bias = draws(dtype, 16, 32), draws(dtype, 32)
    y, experts, _ = ops.npu_moe_gating_top_k(
        x, 4, bias=bias, norm_type=1, routed_scaling_factor=2.5
    )
    wide_y, wide_experts, _ = ops.npu_moe_gating_top_k(
        x.float(), 4, bias=bias.float(), norm_type=1, routed_scaling_factor=2.5
    )
    assert torch.equal(experts, wide_experts)
    same(y, rounded(wide_y.numpy(), dtype))


def test_float64_stays_float64() -> None:
    """Not a device dtype: the definitions themselves, for measuring."""
    x, gamma = torch.randn(4, 64, dtype=torch.float64), torch.randn(64, dtype=torch.float64)
    wanted = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gamma
    torch.testing.assert_close(ops.npu_rms_norm(x, gamma)[0], wanted, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(
        ops.npu_add_rms_norm(x, x * 0, gamma)[0], wanted, rtol=1e-14, atol=1e-14
    )
    assert reference.npu_swiglu(x).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_kv_rmsnorm_rope_cache_norm_mode(dtype: torch.dtype) -> None:
    kv, gamma = draws(dtype, 2, 1, 3, 576), draws(dtype, 512)
    cos, sin = draws(dtype, 2, 1, 3, 64), draws(dtype, 2, 1, 3, 64)
    k_cache, ckv_cache = (
        torch.zeros(2, 1, 9, 64, dtype=dtype),
        torch.zeros(2, 1, 9, 512, dtype=dtype),
    )
    index = torch.tensor([[4, 0, 7], [1, 2, 3]])
    *_, k_embed, y = ops.npu_kv_rmsnorm_rope_cache(
        kv, gamma, cos, sin, index, k_cache, ckv_cache, epsilon=1e-6
    )
    assert k_embed.isnan().all() and y.isnan().all()  # not output in this mode
    latent, rope = (
        ops.npu_rms_norm(kv[..., :512], gamma)[0],
        reference.npu_interleave_rope(kv[..., 512:], cos, sin),
    )
    for b in range(2):
        assert torch.equal(ckv_cache[b, 0, index[b]], latent[b, 0])
        assert torch.equal(k_cache[b, 0, index[b]], rope[b, 0])
        untouched = [i for i in range(9) if i not in index[b].tolist()]
        assert not k_cache[b, 0, untouched].any() and not ckv_cache[b, 0, untouched].any()


def test_kv_rmsnorm_rope_cache_int8() -> None:
    kv, gamma, table = (
        draws(torch.float16, 1, 1, 2, 576),
        torch.ones(512).half(),
        torch.ones(1, 1, 2, 64).half(),
    )
    k_cache, ckv_cache = (
        torch.zeros(1, 4, 1, 64, dtype=torch.int8),
        torch.zeros(1, 4, 1, 512, dtype=torch.int8),
    )
    ops.npu_kv_rmsnorm_rope_cache(
        kv,
        gamma,
        table,
        table,
        torch.tensor([0, 1]),
        k_cache,
        ckv_cache,
        k_rope_scale=torch.full((64,), 30.0),
        c_kv_scale=torch.full((512,), 50.0),
        cache_mode="PA_BNSD",
    )
    # from float32, as the vendor's golden has it: not from the values rounded to 16 bits
    latent, rotary = kv.float().split((512, 64), -1)
    y = latent * torch.rsqrt(latent.square().mean(-1, keepdim=True) + 1e-5)
    halves = torch.cat((rotary[..., ::2], rotary[..., 1::2]), -1)
    k_embed = halves + torch.cat((-halves[..., 32:], halves[..., :32]), -1)
    for cache, value, scale in ((ckv_cache, y, 50), (k_cache, k_embed, 30)):
        wanted = (value[0, 0] * scale).round().clamp(-128, 127).to(torch.int8)
        assert torch.equal(cache[0, :2, 0], wanted)

"""What the paged cache's operators do beyond Part I's: the declared form of the cache's update, and
writes whose shapes depend on no value."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv3_port import ops
from tests.ops.meanings import reference

SLOTS = {
    "some": [5, -1, 0, 14, -1, 7],
    "the first is none": [-1, 3, 2, 9, 8, 1],
    "none": [-1] * 6,
    "all": [5, 4, 3, 2, 1, 0],
}


def given(seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(shape, generator=generator)
        for shape in ((2, 1, 3, 576), (512,), (2, 1, 3, 64), (2, 1, 3, 64))
    )


def caches() -> list[Tensor]:
    return [torch.randn(3, 16, 1, n, generator=torch.Generator().manual_seed(n)) for n in (64, 512)]


@pytest.mark.parametrize("mode", ["PA", "PA_NZ"])
@pytest.mark.parametrize("slots", SLOTS)
def test_the_second_form_is_the_first(mode: str, slots: str) -> None:
    index, first, second, kept = torch.tensor(SLOTS[slots]), caches(), caches(), caches()
    options = {"cache_mode": mode, "is_output_kv": True, "epsilon": 1e-6}
    want = ops.npu_kv_rmsnorm_rope_cache(*given(), index, *first, **options)
    got = ops.npu_kv_rmsnorm_rope_cache_v2(*given(), index, *second, **options)
    copies = ops.npu_kv_rmsnorm_rope_cache_v2_functional(*given(), index, *kept, **options)
    for a, b, c in zip((*want[2:], *first), (*got, *second), copies, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert all(torch.equal(a, b) for a, b in zip(kept, caches(), strict=True))


@pytest.mark.parametrize("mode", ["PA", "PA_NZ"])
@pytest.mark.parametrize("name", ["npu_kv_rmsnorm_rope_cache", "npu_kv_rmsnorm_rope_cache_v2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_written_rows_are_the_definition_in_float64(
    mode: str, name: str, dtype: torch.dtype
) -> None:
    """Norm and rotation from the formula, each row at its slot, into caches that the formula has not
    touched: the vendor's golden writes into the caches that its operator is then given. One rounding
    to the dtype; every row without a slot stays as it was."""
    kv, gamma, cos, sin = (x.to(dtype) for x in given(3))
    index, held = torch.tensor(SLOTS["some"]), [c.to(dtype) for c in caches()]
    kept = [c.clone() for c in held]
    getattr(ops, name)(kv, gamma, cos, sin, index, *held, cache_mode=mode, epsilon=1e-5)
    eps = torch.finfo(dtype).eps
    relative, absolute = (eps / 2, 1e-5) if dtype == torch.bfloat16 else (8 * eps, 8 * eps)
    for cache, before, new in zip(held, kept, rows_in_float64(kv, gamma, cos, sin), strict=True):
        for row, slot in enumerate(index.tolist()):
            wanted = new.flatten(0, 2)[row]
            if slot >= 0:
                got = at_slot(cache, slot, mode).double()
                assert ((got - wanted).abs() <= relative * wanted.abs() + absolute).all()
        for slot in set(range(3 * 16)) - set(index.tolist()):
            assert torch.equal(at_slot(cache, slot, mode), at_slot(before, slot, mode))


@pytest.mark.parametrize("mode", ["PA", "PA_NZ"])
@pytest.mark.parametrize("name", ["npu_kv_rmsnorm_rope_cache", "npu_kv_rmsnorm_rope_cache_v2"])
def test_int8_rows_are_the_definition_in_float64(mode: str, name: str) -> None:
    """With a scale for each channel, of which the vendor has no test: the rows in float64 times the scale,
    rounded once and clipped; what is handed out beside the caches is not quantised."""
    kv, gamma, cos, sin = (x.bfloat16() for x in given(3))
    index, generator = torch.tensor(SLOTS["some"]), torch.Generator().manual_seed(5)
    scales = [torch.rand(n, generator=generator) * 60 + 20 for n in (64, 512)]
    held = [(c * 40).round().clamp(-128, 127).to(torch.int8) for c in caches()]
    kept = [c.clone() for c in held]
    found = getattr(ops, name)(
        *(kv, gamma, cos, sin, index, *held),
        k_rope_scale=scales[0],
        c_kv_scale=scales[1],
        cache_mode=mode,
        is_output_kv=True,
        epsilon=1e-5,
    )
    new = rows_in_float64(kv, gamma, cos, sin)
    clipped = 0
    for cache, before, rows, scale, out in zip(held, kept, new, scales, found[-2:], strict=True):
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.double(), rows, rtol=2**-8, atol=1e-5)
        for row, slot in enumerate(index.tolist()):
            wanted = rows.flatten(0, 2)[row] * scale.double()
            clipped += int((wanted.abs() > 128).sum())
            if slot >= 0:
                off = at_slot(cache, slot, mode).double() - wanted.clamp(-128, 127)
                assert float(off.abs().max()) <= 0.5 + 1e-3
        for slot in set(range(3 * 16)) - set(index.tolist()):
            assert torch.equal(at_slot(cache, slot, mode), at_slot(before, slot, mode))
    assert clipped


def rows_in_float64(
    kv: Tensor, gamma: Tensor, cos: Tensor, sin: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """The rotated 64 channels and the normalised latent, from the formula."""
    latent, rope = kv.double().split((512, 64), -1)
    latent = latent / (latent.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gamma.double()
    a, b = rope[..., 0::2], rope[..., 1::2]
    rope = torch.cat((a, b), -1) * cos.double() + torch.cat((-b, a), -1) * sin.double()
    return rope, latent


def at_slot(cache: Tensor, slot: int, mode: str) -> Tensor:
    """The row of a slot in a cache [blocks, 16, 1, width], which PA_NZ fills as [blocks, 1,
    width / 16, 16, 16], and int8 as [blocks, 1, width / 32, 16, 32]."""
    if mode == "PA":
        return cache.flatten(0, 2)[slot]
    part = 32 if cache.dtype == torch.int8 else 16
    return cache.view(3, 1, -1, 16, part)[slot // 16, 0, :, slot % 16].flatten()


@pytest.mark.parametrize("mode", ["PA", "PA_NZ"])
@pytest.mark.parametrize("slots", SLOTS)
def test_a_traced_write_is_the_same_and_has_one_shape(mode: str, slots: str) -> None:
    """fullgraph: a mask as index would be refused; catches padding that overwrites slot 0."""
    index, eager, traced = torch.tensor(SLOTS[slots]), caches(), caches()
    tensors, meaning = given(), reference.npu_kv_rmsnorm_rope_cache_v2

    def write(*held: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = meaning(*tensors, index, *held, cache_mode=mode)
        return result

    write(*eager)
    torch._dynamo.reset()
    torch.compile(write, backend="eager", fullgraph=True)(*traced)
    for a, b in zip(eager, traced, strict=True):
        assert torch.equal(a, b)


def test_dtypes_of_the_caches_have_no_meaning_here() -> None:
    with pytest.raises(NotImplementedError, match="k_cache_dtype has no reference"):
        ops.npu_kv_rmsnorm_rope_cache_v2(
            *given(), torch.arange(6), *caches(), cache_mode="PA", k_cache_dtype=1
        )

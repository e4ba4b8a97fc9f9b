"""Operators and cases that the device has and PyTorch's CPU has not: against the CPU's own operator where
one says the same another way, else against the formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


def f(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


# ---- synchronised batch normalisation ------------------------------------------------------------

X, WEIGHT, BIAS = f(6, 3, 4), f(3), f(3, seed=1)
GRAD = f(6, 3, 4, seed=2)
ROWS = (slice(0, 2), slice(2, 6))  # two ranks, of different size
EPS, MOMENTUM = 1e-5, 0.3


def together() -> tuple[Tensor, Tensor, list[Tensor]]:
    """(mean, invstd, running mean and variance) of both ranks' rows, on the device."""
    own = [torch.batch_norm_stats(X[rows].npu(), EPS) for rows in ROWS]
    running = [torch.zeros(3).npu(), torch.ones(3).npu()]
    counts = torch.tensor([8.0, 16.0]).npu()
    mean, invstd = (torch.stack(t) for t in zip(*own, strict=True))
    found = torch.batch_norm_gather_stats_with_counts(
        X.npu(), mean, invstd, *running, MOMENTUM, EPS, counts
    )
    return (*found, running)


def test_two_ranks_normalise_as_one_batch() -> None:
    running = [torch.zeros(3), torch.ones(3)]
    wanted = F.batch_norm(X, *running, WEIGHT, BIAS, True, MOMENTUM, EPS)
    mean, invstd, moved = together()
    for got, want in zip(moved, running, strict=True):
        torch.testing.assert_close(got.cpu(), want)
    for rows in ROWS:
        given = (X[rows].npu(), WEIGHT.npu(), BIAS.npu(), mean, invstd, EPS)
        torch.testing.assert_close(torch.batch_norm_elemt(*given).cpu(), wanted[rows])
        out = torch.empty(0).npu()
        torch.batch_norm_elemt(*given, out=out)
        torch.testing.assert_close(out.cpu(), wanted[rows])


def test_two_ranks_have_the_gradients_of_one_batch() -> None:
    x, weight, bias = (t.clone().requires_grad_() for t in (X, WEIGHT, BIAS))
    F.batch_norm(x, None, None, weight, bias, True, MOMENTUM, EPS).backward(GRAD)
    mean, invstd, _ = together()
    parts = [
        torch.batch_norm_backward_reduce(
            GRAD[rows].npu(), X[rows].npu(), mean, invstd, WEIGHT.npu(), True, True, True
        )
        for rows in ROWS
    ]
    sums = [sum(t) for t in zip(*parts, strict=True)]
    torch.testing.assert_close(sums[2].cpu(), weight.grad)
    torch.testing.assert_close(sums[3].cpu(), bias.grad)
    counts = torch.tensor([8, 16], dtype=torch.int32).npu()
    for rows in ROWS:
        got = torch.batch_norm_backward_elemt(
            *(GRAD[rows].npu(), X[rows].npu(), mean, invstd, WEIGHT.npu()),
            *(sums[0], sums[1], counts),
        )
        torch.testing.assert_close(got.cpu(), x.grad[rows])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_statistics_of_sixteen_bits_are_float32(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    mean, invstd = torch.batch_norm_stats(x.npu(), EPS)
    assert mean.dtype == invstd.dtype == torch.float32
    wide = torch.batch_norm_stats(x.float().npu(), EPS)
    assert torch.equal(mean, wide[0]) and torch.equal(invstd, wide[1])
    y = torch.batch_norm_elemt(x.npu(), None, None, mean, invstd, EPS)
    wanted = torch.batch_norm_elemt(x.float().npu(), None, None, mean, invstd, EPS)
    assert y.dtype == dtype and torch.equal(y, wanted.to(dtype))


# ---- other cases ---------------------------------------------------------------------------------


def test_renorm_counts_what_is_not_0() -> None:
    x = torch.tensor([[1.0, 0.0, 3.0], [0.0, 0.0, 2.0]])
    wanted = torch.tensor([[0.5, 0, 1.5], [0, 0, 2.0]])
    torch.testing.assert_close(torch.renorm(x.npu(), 0, 0, 1.0).cpu(), wanted)
    assert torch.equal(torch.renorm(x.npu(), 2, 1, 1.0).cpu(), torch.renorm(x, 2, 1, 1.0))
    out, place = torch.empty(0).npu(), x.npu()
    torch.renorm(x.npu(), 0, 0, 1.0, out=out)
    place.renorm_(0, 0, 1.0)
    assert torch.equal(out, place)
    torch.testing.assert_close(out.cpu(), wanted)


def test_adaptive_pooling_of_more_dimensions() -> None:
    x, y = f(2, 2, 3, 4, 6).npu().requires_grad_(), f(2, 2, 3, 4, 6).requires_grad_()
    for size in (1, (2, 3)):
        found = F.adaptive_avg_pool2d(x, size)
        wanted = F.adaptive_avg_pool2d(y.flatten(0, 1), size).unflatten(0, (2, 2))
        torch.testing.assert_close(found.cpu(), wanted)
        (got,) = torch.autograd.grad(found.sum(), x)
        (want,) = torch.autograd.grad(wanted.sum(), y)
        torch.testing.assert_close(got.cpu(), want)


def test_sizes_of_adaptive_pooling_are_refused_in_torch_npus_words() -> None:
    x = f(1, 3, 4, 4).npu()
    with pytest.raises(RuntimeError, match="elements of output_size must be greater than or"):
        F.adaptive_avg_pool2d(x, -1)
    with pytest.raises(RuntimeError, match="output size must be 2"):
        F.adaptive_avg_pool2d(x, (2, 2, 2))


def test_a_dimension_out_of_range_is_both_exceptions() -> None:
    """torch_npu raises RuntimeError, PyTorch IndexError."""
    for kind in (RuntimeError, IndexError):
        with pytest.raises(kind, match="Dimension out of range"):
            torch.sum(torch.ones(1, 1).npu(), dim=-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_bce_with_logits_is_rounded_once(dtype: torch.dtype, reduction: str) -> None:
    x, target, weight = (t.to(dtype) for t in (f(8, 6) * 3, f(8, 6).abs(), f(6).abs()))
    found = []
    for device, kind in (("npu", dtype), ("cpu", torch.float32)):
        logits = x.to(device, kind).requires_grad_()
        others = [t.to(device, kind) for t in (target, weight)]
        loss = F.binary_cross_entropy_with_logits(
            logits, others[0], pos_weight=others[1], reduction=reduction
        )
        (grad,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
        found.append((loss.cpu().to(dtype), grad.cpu().to(dtype)))
    for got, wanted in zip(*found, strict=True):
        assert got.dtype == dtype and torch.equal(got, wanted)


@pytest.mark.parametrize("value", [0.3, [0.3, 0.7], torch.tensor([0.3, 0.7]).half()], ids=str)
@pytest.mark.parametrize("name", ["addcdiv", "addcmul"])
def test_foreach_steps_of_float16(name: str, value: object) -> None:
    """Each step is rounded, the number too, in place as well: the vendor's goldens are numpy's float16."""
    a, b, c = ([f(3, 4, seed=s).half(), f(2, 5, seed=s + 9).half()] for s in (0, 1, 2))
    numbers = [0.3, 0.3 if isinstance(value, float) else 0.7]
    wanted = [
        x + (y / z if name == "addcdiv" else y * z) * torch.tensor(v).half()
        for x, y, z, v in zip(a, b, c, numbers, strict=True)
    ]
    npu = [[t.npu() for t in ts] for ts in (a, b, c)]
    found = getattr(torch, f"_foreach_{name}")(*npu, value)
    getattr(torch, f"_foreach_{name}_")(*npu, value)
    for got, place, want in zip(found, npu[0], wanted, strict=True):
        assert torch.equal(got.cpu(), want) and torch.equal(place.cpu(), want)


def test_inverse_of_sixteen_bits() -> None:
    x = (torch.eye(3) * 2 + f(3, 3) / 8).half()
    assert torch.equal(torch.inverse(x.npu()).cpu(), torch.inverse(x.float()).half())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_npu_dtype_cast(dtype: torch.dtype) -> None:
    """Its dtype arrives as a number."""
    x = (f(2, 3) * 5).npu().requires_grad_(dtype.is_floating_point)
    y = torch.ops.npu.npu_dtype_cast(x, dtype)
    assert y.dtype == dtype and torch.equal(y, x.to(dtype))
    if dtype.is_floating_point:
        y.backward(torch.ones_like(y))
        assert x.grad is not None and x.grad.dtype == torch.float32 and bool((x.grad == 1).all())
    with pytest.raises(NotImplementedError, match="dtype 290"):
        torch.ops.npu.npu_dtype_cast(x, 290)

"""Training on device npu: every backward operator that torch_npu calls gives the CPU's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_npu
from torch import Tensor

from tests.ops.meanings import reference

Case = Callable[..., Tensor]
SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3, 4)),
    ((2, 5, 3), (3, 4)),
    ((2, 5, 3), (3,)),
    ((3,), (2, 3, 4)),
    ((5, 3), (2, 3, 4)),
    ((2, 5, 3), (2, 3, 4)),
    ((2, 1, 5, 3), (4, 3, 2)),
]


def f(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def both(fn: Case, *inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Results and gradients of fn on npu, each beside the CPU's."""
    found: list[list[Tensor]] = []
    for device in ("npu", "cpu"):
        leaves = [
            x.to(device).detach().requires_grad_(x.is_floating_point() or x.is_complex())
            for x in inputs
        ]
        y = fn(*leaves)
        wanted = [x for x in leaves if x.requires_grad]
        (y.abs() if y.is_complex() else y).float().square().sum().backward()
        found.append([y.detach().cpu(), *(x.grad.cpu() for x in wanted if x.grad is not None)])
    assert len(found[0]) == len(found[1]) > 1
    return list(zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_matmul(shapes: Any, dtype: torch.dtype) -> None:
    for got, wanted in both(torch.matmul, f(*shapes[0], dtype=dtype), f(*shapes[1], dtype=dtype)):
        assert got.dtype == wanted.dtype and torch.equal(got, wanted)


def test_composite_operators_keep_their_gradient() -> None:
    """Of those that have a CPU kernel besides: one of ours would lose the gradient, with a warning."""
    for fn in (torch.true_divide, lambda x, y: torch.cov(x) + torch.corrcoef(y)):
        found = both(fn, f(3, 4), f(3, 4, seed=1))
        assert len(found) == 3
        for got, wanted in found:
            torch.testing.assert_close(got, wanted)


def test_matmul_twice() -> None:
    x, y = f(2, 3), f(3, 4)
    found = []
    for device in ("npu", "cpu"):
        a, b = (t.to(device).requires_grad_() for t in (x, y))
        (first,) = torch.autograd.grad((a @ b).square().sum(), a, create_graph=True)
        found.append([g.cpu() for g in torch.autograd.grad(first.square().sum(), (a, b))])
    assert all(torch.allclose(*pair, rtol=1e-5) for pair in zip(*found, strict=True))


INDEX = torch.tensor([[0, 2, 1], [1, 1, 0]])
CASES: dict[str, tuple[Case, tuple[Tensor, ...]]] = {
    "gather": (lambda x: x.gather(1, INDEX.to(x.device)), (f(2, 3),)),
    "take_along_dim": (lambda x: x.take_along_dim(INDEX.to(x.device), 1), (f(2, 3),)),
    "softmax in float32": (lambda x: x.softmax(-1, dtype=torch.float32), (f(2, 3).half(),)),
    "log_softmax in float32": (
        lambda x: F.log_softmax(x, -1, dtype=torch.float32),
        (f(2, 3).bfloat16(),),
    ),
    "cast": (lambda x: x.to(torch.float16) * 2, (f(2, 3),)),
    "l1_loss": (lambda x, y: F.l1_loss(x, y), (f(2, 3), f(2, 3, seed=1))),
    "l1_loss sum": (lambda x, y: F.l1_loss(x, y, reduction="sum"), (f(2, 3), f(2, 3, seed=1))),
    "kl_div": (
        lambda x, y: F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="batchmean"),
        (f(2, 3), f(2, 3, seed=1)),
    ),
    "kl_div of logs": (
        lambda x, y: F.kl_div(x.log_softmax(-1), y.log_softmax(-1), log_target=True),
        (f(2, 3), f(2, 3, seed=1)),
    ),
    "bce with logits": (
        lambda x: F.binary_cross_entropy_with_logits(
            x, torch.ones_like(x) * 0.25, pos_weight=torch.tensor(2.0, device=x.device)
        ),
        (f(2, 3),),
    ),
    "repeat_interleave": (lambda x: x.repeat_interleave(3, 1), (f(2, 3),)),
    "repeat_interleave counts": (
        lambda x: x.repeat_interleave(torch.tensor([1, 0, 2], device=x.device), 1),
        (f(2, 3),),
    ),
    "renorm": (lambda x: x.renorm(2, 0, 0.5), (f(2, 3),)),
    "max": (lambda x: x.max(1).values, (f(2, 3),)),
    "min": (lambda x: x.min(0, keepdim=True).values, (f(2, 3),)),
    "rfft": (lambda x: torch.view_as_real(torch.fft.rfft(x)), (f(2, 6),)),
    "irfft": (lambda x: torch.fft.irfft(torch.view_as_complex(x)), (f(2, 4, 2),)),
    "stft": (
        lambda x: torch.view_as_real(
            torch.stft(x, 4, window=torch.ones(4, device=x.device), return_complex=True)
        ),
        (f(2, 16),),
    ),
    "quantile": (lambda x: x.quantile(0.3, 1), (f(2, 5),)),
    "cross_entropy": (
        lambda x: F.cross_entropy(x, torch.tensor([0, 2], device=x.device)),
        (f(2, 3),),
    ),
    "attention by hand": (
        lambda q, k: (q @ k.mT).softmax(-1) @ k,
        (f(2, 2, 3, 4), f(2, 2, 5, 4)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_cpus(name: str) -> None:
    fn, inputs = CASES[name]
    for got, wanted in both(fn, *inputs):
        assert got.dtype == wanted.dtype and torch.allclose(got, wanted, rtol=1e-6, atol=1e-7)


def test_int32_targets() -> None:
    x, target = f(4, 3), torch.tensor([0, 2, 1, 0])
    found = []
    for kind in (torch.int32, torch.int64):
        y = x.npu().requires_grad_()
        loss = F.cross_entropy(y, target.to(kind).npu())
        loss.backward()
        assert y.grad is not None
        found.append((loss.item(), y.grad.cpu()))
    assert found[0][0] == found[1][0] == F.cross_entropy(x, target).item()
    assert torch.equal(found[0][1], found[1][1])


def test_histogram_of_integers() -> None:
    x = torch.tensor([0, 1, 1, 3], dtype=torch.int32)
    got = torch.histc(x.npu(), bins=4, min=0, max=3)
    assert got.dtype == torch.int32 and got.tolist() == [1, 2, 0, 1]


# ---- operators of the port -----------------------------------------------------------------------


def against_float64(fn: Case, plain: Case, inputs: tuple[Tensor, ...], tolerance: float) -> None:
    """Gradients on npu against those of the same formula in float64."""
    npu = [x.npu().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    for leaves, call in ((npu, fn), (exact, plain)):
        call(*leaves).double().square().sum().backward()
    for a, b in zip(npu, exact, strict=True):
        assert a.grad is not None and b.grad is not None and a.grad.dtype == a.dtype
        scale = float(b.grad.abs().max())
        assert float((a.grad.cpu().double() - b.grad).abs().max()) <= tolerance * scale


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_operators_of_the_port(dtype: torch.dtype, tolerance: float) -> None:
    x, gamma = f(2, 3, 8, dtype=dtype), f(8, dtype=dtype)
    against_float64(
        lambda a, b: torch_npu.npu_rms_norm(a, b, 1e-6)[0],
        lambda a, b: reference.npu_rms_norm(a, b, 1e-6)[0],
        (x, gamma),
        tolerance,
    )
    against_float64(torch_npu.npu_swiglu, reference.npu_swiglu, (x,), tolerance)
    heads, table = f(2, 3, 4, 8, dtype=dtype), f(2, 1, 4, 8, dtype=dtype)
    for mode in ("half", "interleave"):
        shape = (1, 1, 4, 8) if mode == "interleave" else (2, 1, 4, 8)
        cos, sin = (f(*shape, dtype=dtype, seed=n) for n in (1, 2))
        against_float64(
            lambda a, b, c: torch_npu.npu_rotary_mul(a, b, c, mode),  # noqa: B023
            lambda a, b, c: reference.npu_rotary_mul(a, b, c, mode),  # noqa: B023
            (heads, cos, sin),
            tolerance,
        )
    assert table.shape[1] == 1
    against_float64(torch_npu.npu_silu, reference.npu_silu, (x,), tolerance)
    chosen = torch.tensor([[2, 0], [1, 2], [0, 1], [2, 1], [0, 2]])
    tokens, probs = f(5, 8, dtype=dtype), f(5, 2, dtype=dtype, seed=1)

    def routed(npu: Any, device: str) -> Any:
        def there_and_back(t: Tensor, p: Tensor) -> Tensor:
            rows, where = npu.npu_moe_token_permute(t, chosen.to(device))
            return npu.npu_moe_token_unpermute(rows * rows, where, p)

        return there_and_back

    given = (tokens, probs)
    against_float64(routed(torch_npu, "npu"), routed(reference, "cpu"), given, tolerance)


# ---- scaled_dot_product_attention and npu_fusion_attention ---------------------------------------

Q, K, V = f(2, 4, 5, 8), f(2, 2, 6, 8), f(2, 2, 6, 8, seed=1)
MASK = f(2, 1, 5, 6) > 0
MASK[0, 0, 2] = False  # a row that sees nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"attn_mask": MASK}, {"attn_mask": MASK[0, 0]}, {"scale": 0.7}],
    ids=["plain", "causal", "mask", "one mask", "scale"],
)
def test_scaled_dot_product_attention(options: dict[str, Any], dtype: torch.dtype) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        given = {n: o.to(q.device) if isinstance(o, Tensor) else o for n, o in options.items()}
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **given)

    limit = 1e-5 if dtype == torch.float32 else 3e-2
    for got, wanted in both(attend, *(t.to(dtype) for t in (Q, K, V))):
        assert got.dtype == wanted.dtype and torch.allclose(got, wanted, rtol=limit, atol=limit)


def test_layouts_of_fusion_attention_agree() -> None:
    q, k, v = (t.npu() for t in (Q, K, V))
    wanted = torch_npu.npu_fusion_attention(q, k, v, 4, "BNSD", scale=0.3)
    assert wanted[1].shape == wanted[2].shape == (2, 4, 5, 8) and wanted[1].dtype == torch.float32
    assert torch.equal(
        wanted[0].cpu(), F.scaled_dot_product_attention(Q, K, V, scale=0.3, enable_gqa=True)
    ) or torch.allclose(
        wanted[0].cpu(),
        F.scaled_dot_product_attention(Q, K, V, scale=0.3, enable_gqa=True),
        atol=1e-6,
    )
    bsnd = [t.transpose(1, 2).contiguous() for t in (q, k, v)]
    for layout, args, back in (
        ("BSND", bsnd, lambda t: t.transpose(1, 2)),
        ("BSH", [t.flatten(2) for t in bsnd], lambda t: t.unflatten(-1, (4, 8)).transpose(1, 2)),
        (
            "SBH",
            [t.flatten(2).transpose(0, 1).contiguous() for t in bsnd],
            lambda t: t.transpose(0, 1).unflatten(-1, (4, 8)).transpose(1, 2),
        ),
    ):
        got = torch_npu.npu_fusion_attention(*args, 4, layout, scale=0.3)[0]
        assert got.shape == args[0].shape and torch.equal(back(got), wanted[0])
    packed = [t.flatten(0, 1) for t in bsnd]
    got = torch_npu.npu_fusion_attention(
        *packed, 4, "TND", scale=0.3, actual_seq_qlen=[5, 10], actual_seq_kvlen=[6, 12]
    )
    assert got[1].shape == (10, 4, 8)
    assert torch.allclose(got[0].view(2, 5, 4, 8).transpose(1, 2), wanted[0], atol=1e-6)


@pytest.mark.parametrize("mode", [2, 3, 4])
def test_sparse_modes(mode: int) -> None:
    """2 causal from the top left, 3 from the bottom right, 4 a band: against the mask written out."""
    distance = torch.arange(6) - torch.arange(5)[:, None]
    hidden = {2: distance > 0, 3: distance > 1, 4: (distance > 1 + 1) | (distance < 1 - 2)}[mode]
    compressed = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
    q, k, v = (t.npu() for t in (Q, K, V))
    settings = {"scale": 0.3, "pre_tockens": 2, "next_tockens": 1}
    got = torch_npu.npu_fusion_attention(
        q, k, v, 4, "BNSD", atten_mask=compressed.npu(), sparse_mode=mode, **settings
    )[0]
    wanted = torch_npu.npu_fusion_attention(
        q, k, v, 4, "BNSD", atten_mask=hidden.npu(), sparse_mode=1, scale=0.3
    )[0]
    assert torch.equal(got, wanted)
    with pytest.raises(RuntimeError, match="atten_mask is None; it must be given"):
        torch_npu.npu_fusion_attention(q, k, v, 4, "BNSD", sparse_mode=mode)


def test_dropout_of_fusion_attention() -> None:
    q = f(1, 2, 16, 8).npu().requires_grad_()
    runs = []
    for seed in (1, 1, 2):
        torch.npu.manual_seed(seed)
        q.grad = None
        y = F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
        y.square().sum().backward()
        assert q.grad is not None
        runs.append((y.detach().cpu(), q.grad.cpu()))
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[2][0])
    step, x = 1e-3, q.detach()
    torch.npu.manual_seed(1)
    moved = F.scaled_dot_product_attention(x + step, x + step, x + step, dropout_p=0.5)
    change = float(moved.square().sum() - runs[0][0].npu().square().sum())
    assert abs(change / step / float(runs[0][1].sum()) - 1) < 0.02  # the same mask in backward

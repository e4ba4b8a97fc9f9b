"""aten operators on device npu give what they give on the CPU, to the last bit: the kernels are the
same."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten

from dsv3_port.hostnpu import fallback

Case = Callable[[Tensor, Tensor, Tensor], Any]  # x, y [4, 6] and an index [3] of rows
CASES: dict[str, Case] = {
    "add": lambda x, y, i: x + y,
    "add_ scaled": lambda x, y, i: x.add_(y, alpha=2),
    "out=": lambda x, y, i: torch.mul(x, y, out=x.new_empty(0)),
    "out= resized": lambda x, y, i: torch.add(x, y, out=x.new_empty(4, 6)),
    "matmul": lambda x, y, i: x @ y.t(),
    "linear": lambda x, y, i: F.linear(x, y, y[:, 0]),
    "bmm": lambda x, y, i: torch.bmm(x.view(2, 2, 6), y.view(2, 6, 2)),
    "softmax": lambda x, y, i: x.softmax(-1),
    "silu": lambda x, y, i: F.silu(x),
    "topk": lambda x, y, i: x.topk(3, -1),
    "sort": lambda x, y, i: x.sort(dim=-1, stable=True),
    "gather": lambda x, y, i: x.gather(1, i[None].expand(4, 3)),
    "index": lambda x, y, i: x[i],
    "index_put": lambda x, y, i: x.index_put_((i,), y[:3]),
    "index_copy": lambda x, y, i: x.index_copy(0, i, y[:3]),
    "index_add": lambda x, y, i: x.index_add(0, i, y[:3]),
    "scatter": lambda x, y, i: x.scatter(1, i[None].expand(4, 3), y[:, :3]),
    "slice assignment": lambda x, y, i: x[:, 1:3].copy_(y[:, :2]) + x[:, 1:3],
    "masked_fill": lambda x, y, i: x.masked_fill(y > 0, -torch.inf),
    "where": lambda x, y, i: torch.where(x > y, x, y),
    "transposed view": lambda x, y, i: x.t().contiguous() + y.t(),
    "cat": lambda x, y, i: torch.cat((x, y), 1),
    "stack": lambda x, y, i: torch.stack((x, y)),
    "chunk": lambda x, y, i: x.chunk(2, -1),
    "cumsum": lambda x, y, i: x.cumsum(1),
    "mean": lambda x, y, i: x.mean(-1, keepdim=True),
    "to half and back": lambda x, y, i: x.to(torch.float16).to(torch.bfloat16).float(),
    "one_hot": lambda x, y, i: F.one_hot(i, 4),
    "pad": lambda x, y, i: F.pad(x, (1, 2)),
    "embedding": lambda x, y, i: F.embedding(i, x),
    "layer_norm": lambda x, y, i: F.layer_norm(x, (6,)),
    "cross_entropy": lambda x, y, i: F.cross_entropy(x[:3], i),
    "arange": lambda x, y, i: torch.arange(5, device=x.device, dtype=torch.int32),
    "full": lambda x, y, i: torch.full((2, 3), 7.0, device=x.device),
    "triu": lambda x, y, i: x.triu(1),
    "nonzero": lambda x, y, i: (x > 0).nonzero(),
    "bool any": lambda x, y, i: (x > 10).any(),
    "repeat_interleave": lambda x, y, i: x.repeat_interleave(2, 0),
    "argmax": lambda x, y, i: x.argmax(-1),
    "bincount": lambda x, y, i: torch.bincount(i, minlength=4),
    "complex": lambda x, y, i: torch.view_as_real(torch.view_as_complex(x.view(4, 3, 2)) * 1j),
    "float8": lambda x, y, i: x.to(torch.float8_e4m3fn).float(),
    "foreach": lambda x, y, i: torch._foreach_add([x, y], 1.0),
    "empty": lambda x, y, i: x[:0] @ y[:, :0].new_empty(6, 0),
    "zeros_like": lambda x, y, i: torch.zeros_like(x) + torch.ones_like(y),
    "expand": lambda x, y, i: (x[:, :1].expand(4, 6) * y).sum(),
}


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(4, 6, generator=generator).to(dtype),
        torch.randn(4, 6, generator=generator).to(dtype),
        torch.tensor([2, 0, 3]),
    ]


def assert_same(on_npu: Any, on_cpu: Any) -> None:
    got, tree = tree_flatten(on_npu)
    wanted, other = tree_flatten(on_cpu)
    assert str(tree) == str(other)
    for a, b in zip(got, wanted, strict=True):
        assert a.device.type == "npu" and a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("name", CASES)
def test_equal_to_cpu(name: str) -> None:
    on_cpu = CASES[name](*inputs())
    args = [t.npu() for t in inputs()]
    assert_same(CASES[name](*args), on_cpu)


@pytest.mark.parametrize("name", CASES)
def test_inputs_change_as_on_cpu(name: str) -> None:
    cpu, npu = inputs(), [t.npu() for t in inputs()]
    CASES[name](*cpu)
    CASES[name](*npu)
    for a, b in zip(npu, cpu, strict=True):
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["matmul", "linear", "bmm", "softmax", "silu", "mean", "layer_norm", "index"]
)
def test_sixteen_bits(name: str, dtype: torch.dtype) -> None:
    assert_same(CASES[name](*[t.npu() for t in inputs(dtype)]), CASES[name](*inputs(dtype)))


def test_training_step() -> None:
    torch.manual_seed(0)
    cpu = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)
    )
    npu = copy.deepcopy(cpu).npu()
    for model in (cpu, npu):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs()[0].to(next(model.parameters()).device)).square().mean().backward()
            optimizer.step()
    for a, b in zip(npu.parameters(), cpu.parameters(), strict=True):
        assert torch.equal(a.cpu(), b)


def test_random_numbers_are_reproducible() -> None:
    draws = []
    for _ in range(2):
        torch.npu.manual_seed(3)
        generator = torch.Generator(device="npu").manual_seed(5)
        draws.append(
            (
                torch.rand(4, device="npu", generator=generator).cpu(),
                torch.multinomial(torch.ones(8, device="npu"), 3, generator=generator).cpu(),
            )
        )
    assert torch.equal(draws[0][0], draws[1][0]) and torch.equal(draws[0][1], draws[1][1])


def test_saved_and_copied(tmp_path: Any) -> None:
    x = inputs()[0].npu()
    buffer = io.BytesIO()
    torch.save(x, buffer)
    buffer.seek(0)
    for y in (
        copy.deepcopy(x),
        pickle.loads(pickle.dumps(x)),
        torch.load(buffer, weights_only=True),
    ):
        assert (
            y.device.type == "npu"
            and y.data_ptr() != x.data_ptr()
            and torch.equal(x.cpu(), y.cpu())
        )


def test_threads() -> None:
    results: list[bool] = []

    def work(seed: int) -> None:
        x = torch.full((64, 64), float(seed))
        on_npu = x.npu()
        results.extend(torch.equal((on_npu @ on_npu).cpu(), x @ x) for _ in range(20))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80 and all(results)


def test_what_has_no_kernel_says_its_name() -> None:
    with pytest.raises(
        (RuntimeError, NotImplementedError), match="npu::npu_lstm: the host stand-in"
    ):
        torch.nn.LSTM(4, 4).npu()(torch.randn(3, 2, 4).npu())


# ---- what the CPU's operators refuse and the device does ------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.int().bitwise_or_(2),
        lambda x: x.int().__ior__(2),
        lambda x: (x > 0).__ior__(True),
        lambda x: x.int() | 2,
        lambda x: 3 & x.int(),
        lambda x: torch.copysign(x, -1.0),
        lambda x: torch.copysign(x.int(), -1.0),
        lambda x: torch.special.xlogy(2.0, x.abs() + 1),
        lambda x: x.int().bitwise_left_shift(1),
        lambda x: torch.maximum(x, torch.tensor(0.5)),
    ],
)
def test_a_number_in_the_place_of_a_tensor(call: Callable[[Tensor], Tensor]) -> None:
    """With PyTorch's type promotion: a number of Python, not a tensor of its dtype."""
    x = inputs()[0] * 3
    assert_same(call(x.npu()), call(x))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, out: torch.add(x, x, out=out[0]),
        lambda x, out: torch.mm(x, x.t(), out=out[0]),
        lambda x, out: torch.topk(x, 2, out=(out[0], out[1])),
        lambda x, out: torch.cat((x, x), out=out[0]),
        lambda x, out: torch.sort(x, out=(out[0], out[1])),
    ],
)
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_out_of_another_size_is_resized(call: Callable[..., Any]) -> None:
    x = inputs()[0]
    results = []
    for device in ("npu", "cpu"):
        out = (torch.ones(7, device=device), torch.ones(7, dtype=torch.int64, device=device))
        found = call(x.to(device), out)
        first = found if isinstance(found, Tensor) else found[0]
        assert first is out[0]
        results.append([t.cpu() for t in out])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape and torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_out_is_resized_in_a_capture_too() -> None:
    x, out, graph = torch.ones(2, 3).npu(), torch.zeros(7).npu(), torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        torch.add(x, x, out=out)
    x.fill_(4)
    graph.replay()
    assert out.shape == (2, 3) and out.sum().item() == 48


HALF_ONLY: dict[str, Callable[[Tensor], Any]] = {
    "cdist": lambda x: torch.cdist(x, x.flip(0)),
    "avg_pool3d": lambda x: F.avg_pool3d(x.view(1, 1, 2, 2, 6), 2),
    "add_relu": lambda x: torch._VF._add_relu(x, x.flip(0)),
    "upsample antialias": lambda x: F.interpolate(
        x.view(1, 1, 4, 6), (2, 3), mode="bilinear", antialias=True
    ),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HALF_ONLY)
def test_sixteen_bits_where_the_cpu_has_none(name: str, dtype: torch.dtype) -> None:
    """In float32, cast once."""
    x = inputs()[0].to(dtype)
    wanted = HALF_ONLY[name](x.float()).to(dtype)
    got = HALF_ONLY[name](x.npu())
    assert got.dtype == dtype and torch.equal(got.cpu(), wanted)


ROUNDED: dict[str, Callable[[Tensor], Any]] = {
    "foreach addcdiv": lambda x: torch._foreach_addcdiv([x], [x.flip(0)], [x.flip(1)], [0.3])[0],
    "foreach addcmul": lambda x: torch._foreach_addcmul([x], [x.flip(0)], [x.flip(1)], [0.3])[0],
    "foreach add": lambda x: torch._foreach_add([x], [x.flip(0)], alpha=0.3)[0],
    "nll_loss": lambda x: F.nll_loss(x * 60, torch.arange(4, device=x.device) % 3, reduction="sum"),
    "grid_sampler": lambda x: torch.grid_sampler(
        x.view(1, 1, 4, 6), (x.view(1, 3, 4, 2) / 8).clamp(-1, 1), 0, 0, True
    ),
    "upsample": lambda x: F.interpolate(
        x.view(1, 1, 2, 2, 6), (5, 3, 7), mode="trilinear", align_corners=True
    ),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ROUNDED)
def test_sixteen_bits_are_rounded_once(name: str, dtype: torch.dtype) -> None:
    """Where the CPU's own 16-bit kernel rounds in between; foreach operators round so in float16."""
    x = inputs()[0].to(dtype)
    in_steps = name.startswith("foreach") and dtype == torch.float16
    wanted = ROUNDED[name](x if in_steps else x.float()).to(dtype)
    if in_steps and "addc" in name:
        a, b = x.flip(0), x.flip(1)
        wanted = x + (a / b if "div" in name else a * b) * torch.tensor(0.3, dtype=dtype)
    got = ROUNDED[name](x.npu())
    assert got.dtype == dtype and torch.equal(got.cpu(), wanted)


def test_foreach_in_place_is_rounded_once() -> None:
    a, b, c = (t.bfloat16() for t in (inputs()[0], inputs()[0].flip(0), inputs()[0].flip(1)))
    npu = [a.npu(), b.npu()]
    torch._foreach_addcmul_(npu, [b.npu(), c.npu()], [c.npu(), a.npu()], 0.3)
    wide = [a.float(), b.float()]
    torch._foreach_addcmul_(wide, [b.float(), c.float()], [c.float(), a.float()], 0.3)
    assert all(torch.equal(got.cpu(), want.bfloat16()) for got, want in zip(npu, wide, strict=True))


@pytest.mark.parametrize("name", ["_softmax_backward_data", "_log_softmax_backward_data"])
def test_softmax_gradient_of_half_to_float(name: str) -> None:
    grad, output = inputs()[0], inputs()[0].softmax(-1)
    run = getattr(torch, name)
    got = run(grad.npu(), output.npu(), -1, torch.float16)
    assert torch.equal(got.cpu(), run(grad, output, -1, torch.float32).half())


def test_what_the_cpu_has_not_is_refused_by_name() -> None:
    x = inputs()[0].npu()

    def absent(*_: Any) -> None:
        raise NotImplementedError(
            "Could not run 'aten::relu' with arguments from the 'CPU' backend"
        )

    with pytest.raises(NotImplementedError, match="relu: the host stand-in has no kernel"):
        fallback.run(absent, torch.ops.aten.relu.default, [], [x], {})
    with pytest.raises(NotImplementedError, match="quantize_per_tensor: the host stand-in has no"):
        torch.quantize_per_tensor(x, 0.1, 10, torch.qint8)


def test_in_place_and_out_in_float32_too() -> None:
    x = (inputs()[0] * 2).half().view(1, 1, 2, 2, 6)
    out = torch.empty(0, dtype=torch.float16, device="npu")
    torch.ops.aten.avg_pool3d.out(x.npu(), [2], out=out)
    assert torch.equal(out.cpu(), F.avg_pool3d(x.float(), 2).half())

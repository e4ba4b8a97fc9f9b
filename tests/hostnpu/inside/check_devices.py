"""What a card refuses is refused here: tensors on two devices. And what a card keeps apart is apart:
random sequences, conjugated views, what the chip says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_npu
from torch import Tensor
from torch.utils._pytree import tree_leaves

Two = Callable[[Tensor, Tensor], Any]  # x on npu:0, y elsewhere; both [4, 4]
MIXED: dict[str, Two] = {
    "add": lambda x, y: x + y,
    "add from the left": lambda x, y: y + x,
    "add_": lambda x, y: x.add_(y),
    "written elsewhere": lambda x, y: y.add_(x),
    "out=": lambda x, y: torch.add(x, x, out=y),
    "matmul": lambda x, y: x @ y,
    "addmm": lambda x, y: torch.addmm(y[0], x, x),
    "linear": lambda x, y: F.linear(x, y),
    "bias of linear": lambda x, y: F.linear(x, x, y[0]),
    "cat": lambda x, y: torch.cat((x, y)),
    "stack": lambda x, y: torch.stack((x, y)),
    "where": lambda x, y: torch.where(x > 0, x, y),
    "condition": lambda x, y: torch.where(y > 0, x, x),
    "masked_fill": lambda x, y: x.masked_fill(y > 0, 0.0),
    "embedding": lambda x, y: F.embedding(y.long() % 4, x),
    "gather": lambda x, y: x.gather(1, y.long() % 4),
    "index_select": lambda x, y: x.index_select(0, y[0].long() % 4),
    "index_put values": lambda x, y: x.index_put_((torch.tensor([0, 1]),), y[:2]),
    "searchsorted": lambda x, y: torch.searchsorted(x.sort()[0], y),
    "acosh out": lambda x, y: torch.acosh(x, out=y),
    "addmv": lambda x, y: torch.addmv(x[0], y, x[0]),
    "bincount": lambda x, y: torch.bincount(x[0].long() % 4, weights=y[0]),
    "lerp": lambda x, y: torch.lerp(x, x, y),
    "foreach": lambda x, y: torch._foreach_add([x, x], [x, y]),
    "layer_norm": lambda x, y: F.layer_norm(x, (4,), y[0]),
    "conv": lambda x, y: F.conv1d(x[None], y[:, :, None]),
    "dot": lambda x, y: x[0] @ y[0],
    "copysign": lambda x, y: torch.copysign(x, y),
    "rms_norm gamma": lambda x, y: torch_npu.npu_rms_norm(x, y[0]),
    "swiglu's neighbour": lambda x, y: torch_npu.npu_add_rms_norm(x, y, x[0]),
    "grouped_matmul": lambda x, y: torch_npu.npu_grouped_matmul(
        [x], [y[None]], group_list=torch.tensor([4]).npu(), split_item=3, group_type=0
    ),
    "group_list": lambda x, y: torch_npu.npu_grouped_matmul(
        [x],
        [x[None]],
        group_list=torch.tensor([4]).to(y.device),
        split_item=3,
        group_type=0,
    ),
    "0-dim in matmul": lambda x, y: torch.addmm(y[0, 0], x, x),
}
RIGHT: dict[str, Two] = {
    "a number": lambda x, y: x + y[0, 0],
    "a number from the left": lambda x, y: y[0, 0] * x,
    "compared with a number": lambda x, y: x > y[0, 0],
    "where with numbers": lambda x, y: torch.where(x > 0, x, y[0, 0]),
    "clamp": lambda x, y: x.clamp(min=y[0, 0]),
    "filled with a number": lambda x, y: x.masked_fill(x > 0, y[0, 0]),
    "fill_": lambda x, y: x.fill_(y[0, 0]),
    "pow": lambda x, y: x.abs() ** y[0, 0],
    "index": lambda x, y: x[y[0].long() % 4],
    "mask as index": lambda x, y: x[y > 0],
    "index_put with a number": lambda x, y: x.index_put_((y[0].long() % 4,), y[0, 0]),
    "slice assignment copies": lambda x, y: x[:2].copy_(y[:2]),
    "foreach copy": lambda x, y: torch._foreach_copy_([x], [y]) or x,
    "foreach by a number": lambda x, y: torch._foreach_mul([x, x], y[0, 0]),
    "packed": lambda x, y: (
        torch.nn.utils.rnn.pack_padded_sequence(
            x[:, :, None], torch.tensor([4, 3, 2, 1]), batch_first=True
        ).data
    ),
}


def pair(device: str) -> tuple[Tensor, Tensor]:
    values = torch.arange(32.0).view(2, 4, 4) - 14.5
    return values[0].npu(), values[1].to(device)


@pytest.mark.parametrize("device", ["cpu", "npu:1"])
@pytest.mark.parametrize("name", MIXED)
def test_two_devices_are_refused(name: str, device: str) -> None:
    with pytest.raises(
        RuntimeError, match="Expected all tensors to be on the same device|same device"
    ):
        MIXED[name](*pair(device))


@pytest.mark.parametrize("name", RIGHT)
def test_what_may_lie_on_the_cpu(name: str) -> None:
    x, y = pair("cpu")
    wanted = RIGHT[name](x.cpu(), y)
    got = RIGHT[name](x, y)
    for a, b in zip(*(tree_leaves(v) for v in (got, wanted)), strict=True):
        assert a.device.type == "npu" and torch.equal(a.cpu(), b)


def test_a_number_on_another_card_is_no_number() -> None:
    x, y = pair("npu:1")
    with pytest.raises(RuntimeError, match="npu:0 and npu:1"):
        x + y[0, 0]
    with pytest.raises(RuntimeError, match="'lengths' argument should be a CPU tensor, but got"):
        torch.nn.utils.rnn.pack_padded_sequence(
            x[:, :, None], torch.tensor([4, 3, 2, 1]).npu(), batch_first=True
        )


def test_the_same_in_a_capture() -> None:
    x, y = pair("npu:1")
    with pytest.raises(RuntimeError, match="same device"):
        with torch.npu.graph(torch.npu.NPUGraph()):
            x @ y
    assert (x + 1).device == x.device


# ---- random numbers ------------------------------------------------------------------------------

DRAWS: dict[str, Callable[[torch.device], Tensor]] = {
    "rand": lambda d: torch.rand(6, device=d),
    "randn": lambda d: torch.randn(6, device=d),
    "randint": lambda d: torch.randint(0, 99, (6,), device=d),
    "randperm": lambda d: torch.randperm(16, device=d),
    "bernoulli": lambda d: torch.full((24,), 0.5, device=d).bernoulli(),
    "dropout": lambda d: F.dropout(torch.ones(24, device=d)),
    "multinomial": lambda d: torch.ones(16, device=d).multinomial(6),
    "exponential": lambda d: torch.empty(6, device=d).exponential_(),
    "poisson": lambda d: torch.poisson(torch.full((24,), 9.0, device=d)),
    "rrelu": lambda d: F.rrelu(-torch.ones(24, device=d), training=True),
    "normal": lambda d: torch.normal(torch.zeros(6, device=d), 1.0),
}
NPU = torch.device("npu:0")


@pytest.mark.parametrize("name", DRAWS)
def test_a_sequence_begins_where_its_state_says(name: str) -> None:
    draw = DRAWS[name]
    torch.npu.manual_seed(3)
    first, state = draw(NPU).cpu(), torch.npu.get_rng_state()
    second = draw(NPU).cpu()
    assert not torch.equal(first, second)
    torch.npu.set_rng_state(state)
    assert torch.equal(draw(NPU).cpu(), second)
    torch.npu.manual_seed(3)
    assert torch.equal(draw(NPU).cpu(), first)
    torch.npu.manual_seed(4)
    assert not torch.equal(draw(NPU).cpu(), first)


@pytest.mark.parametrize("name", DRAWS)
def test_the_cpu_sequence_is_its_own(name: str) -> None:
    torch.manual_seed(1)
    alone = torch.rand(3)
    torch.manual_seed(1)
    DRAWS[name](NPU)
    assert torch.equal(torch.rand(3), alone)


def test_cards_are_independent() -> None:
    torch.manual_seed(1)
    torch.rand(3, device="npu:0")
    state = torch.npu.get_rng_state("npu:1")
    torch.rand(3, device="npu:0")
    assert torch.equal(torch.npu.get_rng_state("npu:1"), state)
    both = [torch.rand(3, device=f"npu:{n}").cpu() for n in (0, 1)]
    assert not torch.equal(*both)


def test_a_generator_of_ones_own() -> None:
    generator = torch.Generator(device="npu").manual_seed(5)
    first = torch.rand(4, device="npu", generator=generator).cpu()
    second = torch.rand(4, device="npu", generator=generator).cpu()
    generator.manual_seed(5)  # the second time too
    assert torch.equal(torch.rand(4, device="npu", generator=generator).cpu(), first)
    assert not torch.equal(first, second)
    with pytest.raises(RuntimeError, match="Expected a 'npu' device type for generator"):
        torch.rand(4, device="npu", generator=torch.Generator())


def test_a_replay_draws_anew() -> None:
    graph, x = torch.npu.NPUGraph(), torch.zeros(8).npu()
    with torch.npu.graph(graph):
        x.uniform_()
    draws = []
    for _ in range(2):
        graph.replay()
        draws.append(x.cpu())
    assert not torch.equal(*draws) and 0 < float(draws[0].sum()) < 8


# ---- views and properties ------------------------------------------------------------------------


def test_conjugated_and_negated_views() -> None:
    c = torch.tensor([1 + 2j, 3 - 1j])
    d = c.npu()
    cases: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.conj() * 1,
        lambda t: t.conj().imag + 0,
        lambda t: t.conj().clone(),
        lambda t: torch.outer(t, t.conj()) @ t.conj(),
        lambda t: torch.fft.ifft(t),
        lambda t: torch.fft.ihfft(t.real),
    ]
    for case in cases:
        assert torch.equal(case(d).cpu(), case(c))


def test_properties_are_the_chips() -> None:
    found = torch.npu.get_device_properties(0)
    assert (found.cube_core_num, found.vector_core_num) == (20, 40)
    assert found.name == "Ascend910B4" and found.total_memory == 32 << 30
    assert found.L2_cache_size == 96 << 20
    unused, total = torch.npu.mem_get_info()
    assert 0 < unused <= total == 32 << 30


def test_cores_of_a_stream_are_remembered() -> None:
    """torchair captures a graph anew when they have changed."""
    stream, other = torch.npu.Stream(), torch.npu.current_stream()
    whole = {"cube_core_num": 20, "vector_core_num": 40}
    assert torch.npu.get_stream_limit(stream) == torch.npu.get_device_limit(0) == whole
    torch.npu.set_stream_limit(stream, 2, 3)
    assert torch.npu.get_stream_limit(stream) == {"cube_core_num": 2, "vector_core_num": 3}
    assert torch.npu.get_stream_limit(other) == whole
    with pytest.raises(RuntimeError):
        torch.npu.set_stream_limit(stream, 21, 3)
    torch.npu.set_stream_limit(stream, vector_num=7)
    assert torch.npu.get_stream_limit(stream) == {"cube_core_num": 2, "vector_core_num": 7}
    torch.npu.reset_stream_limit(stream)
    assert torch.npu.get_stream_limit(stream) == whole

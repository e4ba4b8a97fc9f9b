"""FRACTAL_NZ on device npu: torch_npu's own casts and tags over bytes that lie by the definition, who
reads them, and a W8A8 model whose matrices lie so, eager and as graphs, equal to the last bit."""

from __future__ import annotations

import copy
import io
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_npu
from torch import Tensor

from dsv3_port import PortPlan, generate, load_tokenizer, ops
from dsv3_port.engine.graph import compile_steps
from dsv3_port.engine.torchair import compile_for_npu
from dsv3_port.errors import PortError
from dsv3_port.hostnpu import formats, graphs, kernels
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.model.paged_cache import Paging
from dsv3_port.model.weight_format import as_published, matrices
from tests.hostnpu.inside import check_int8, short
from tests.hostnpu.inside.check_int8 import FULL, MODES, run
from tests.hostnpu.inside.short import TINY
from tests.model.int8_calls import held_to_the_definition
from tests.nz_definition import stored

NZ = FULL.replace(weight_format="nz")
SHAPES = [(16, 32), (17, 33), (3, 20), (64, 96), (2, 5, 40), (3, 48, 70)]


@pytest.fixture(autouse=True)
def internal_formats() -> Iterator[None]:
    torch._dynamo.reset()
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


def codes(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, shape, generator=generator).to(torch.int8)


def cast(x: Tensor) -> Tensor:
    made = ops.npu_format_cast(x.npu(), 29)
    assert ops.storage_format(made) == 29
    return made


def memory(x: Tensor) -> bytes:
    """What lies at a tensor's address, of its whole storage."""
    storage = x.untyped_storage()
    return bytes(
        kernels.at_address(
            storage.data_ptr(), storage.nbytes(), torch.uint8, (storage.nbytes(),), (1,)
        ).numpy()
    )


# ---- bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes_are_those_of_the_definition(shape, dtype) -> None:
    """torch_npu says how much memory it takes, the host NPU what lies there."""
    x = codes(*shape).to(dtype)
    made = cast(x)
    bits = x if dtype == torch.int8 else x.view(torch.int16)
    want = stored(bits.numpy(), 32 if dtype == torch.int8 else 16)
    assert torch_npu.get_storage_size(made) == want.size
    assert memory(made)[: want.nbytes] == want.tobytes()
    assert made.shape == x.shape and made.is_contiguous()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_read_back_is_in_plain_order(shape) -> None:
    x = codes(*shape)
    made = cast(x)
    plain = ops.npu_format_cast(made, 2)
    assert ops.storage_format(plain) in (0, 2) and memory(plain)[: x.nbytes] == x.numpy().tobytes()
    assert torch.equal(made.cpu(), x) and torch.equal(made.mT.cpu(), x.mT)
    assert torch.equal(made[1].cpu(), x[1]) and torch.equal(made[..., 2:5].cpu(), x[..., 2:5])
    assert torch.equal(copy.deepcopy(made).cpu(), x) and torch.equal(made.clone().cpu(), x)
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    again = torch.load(file, map_location="cpu")
    assert torch.equal(again, x)


def test_without_leave_a_cast_changes_nothing() -> None:
    torch.npu.config.allow_internal_format = False
    x = codes(16, 48)
    assert ops.storage_format(ops.npu_format_cast(x.npu(), 29)) in (0, 2)


# ---- operators -------------------------------------------------------------------------------------


def quant_matmul(
    x2: Callable[[Tensor], Tensor], x1: Callable[[Tensor], Tensor] = Tensor.npu
) -> Tensor:
    scale, tokens = (
        torch.rand(n, generator=torch.Generator().manual_seed(n)).npu() for n in (70, 5)
    )
    return ops.npu_quant_matmul(
        x1(codes(5, 48)), x2(codes(48, 70, seed=1)), scale, pertoken_scale=tokens, output_dtype=15
    )


def grouped(weight: Callable[[Tensor], Tensor], kind: str = "tensor") -> Tensor:
    scale = torch.rand(3, 70, generator=torch.Generator().manual_seed(2)).bfloat16().npu()
    tokens = torch.rand(6, generator=torch.Generator().manual_seed(3)).npu()
    ends = torch.tensor([2, 2, 6])
    return ops.npu_grouped_matmul(
        [codes(6, 48).npu()],
        [weight(codes(3, 48, 70, seed=1))],
        scale=[scale],
        per_token_scale=[tokens],
        group_list=ends.npu(),
        split_item=3,
        group_type=0,
        output_dtype=15,
    )[0]


def test_operators_that_document_it_read_it() -> None:
    assert torch.equal(quant_matmul(cast).cpu(), quant_matmul(Tensor.npu).cpu())
    assert torch.equal(grouped(cast).cpu(), grouped(Tensor.npu).cpu())
    x, w = torch.randn(4, 20, dtype=torch.bfloat16), torch.randn(20, 30, dtype=torch.bfloat16)
    assert torch.equal((x.npu() @ cast(w)).cpu(), (x.npu() @ w.npu()).cpu())
    assert bool((cast(w) == w.npu()).all())


def test_the_layout_is_really_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: a kernel that takes the bytes as they lie gives other numbers."""
    want = quant_matmul(Tensor.npu).cpu()
    monkeypatch.setattr(
        formats,
        "from_nz",
        lambda x, shape: x.flatten()[: torch.Size(shape).numel()].view(shape).clone(),
    )
    assert not torch.equal(quant_matmul(cast).cpu(), want)


REFUSED: dict[str, Callable[[], Any]] = {
    "npu_quant_matmul .*: x1 is FRACTAL_NZ": lambda: quant_matmul(Tensor.npu, cast),
    "npu_dynamic_quant .*: input is FRACTAL_NZ": lambda: ops.npu_dynamic_quant(
        cast(torch.randn(4, 64).bfloat16())
    ),
    "npu_rms_norm .*: input is FRACTAL_NZ": lambda: ops.npu_rms_norm(
        cast(torch.randn(4, 64).half()), torch.ones(64).half().npu()
    ),
    "npu_swiglu .*: input is FRACTAL_NZ": lambda: ops.npu_swiglu(cast(torch.randn(4, 64).half())),
    "add .*: self is FRACTAL_NZ": lambda: cast(torch.randn(4, 64).half()) + 1,
    "sort .*: self is FRACTAL_NZ": lambda: cast(torch.randn(4, 64).half()).sort(),
    "copy_ do not write into internal format: self is": lambda: cast(codes(4, 64)).copy_(
        codes(4, 64).npu()
    ),
    "zero_ do not write into internal format: self is": lambda: cast(codes(4, 64)).zero_(),
}


@pytest.mark.parametrize("said", REFUSED)
def test_others_refuse_it_by_name(said) -> None:
    with pytest.raises((NotImplementedError, RuntimeError), match=f"Current operator {said}"):
        REFUSED[said]()


# ---- the cast and graphs ---------------------------------------------------------------------------


def test_a_cast_in_a_captured_graph_is_refused_by_name() -> None:
    x, graph = codes(16, 48).npu(), torch.npu.NPUGraph()
    with pytest.raises(RuntimeError, match="aclop.*Identity|Identity.*aclop"):
        with torch.npu.graph(graph):
            torch_npu.npu_format_cast(x, 29)


@pytest.mark.parametrize("backend", ["ge", "npugraph_ex", "reduce-overhead"])
def test_a_cast_in_a_compiled_graph_is_refused_by_name(backend) -> None:
    compiled = compile_for_npu(lambda x: torch_npu.npu_format_cast(x, 29) + 0, backend, {}, False)
    with pytest.raises(
        torch._dynamo.exc.Unsupported, match="unsupported operator: npu.npu_format_cast"
    ):
        compiled(codes(16, 48).npu())


# ---- the model -------------------------------------------------------------------------------------


def load(mode: str = "eager", plan: PortPlan = NZ, dtype: str = "bfloat16") -> DeepseekV3:
    model = short.load(plan, dtype=dtype)
    model.paging = Paging(16)
    return compile_steps(model, mode)


def nd(plan: PortPlan = NZ, dtype: str = "bfloat16") -> list[Tensor]:
    """Logits with matrices in plain order, eager: those that check_int8.py looks at, too."""
    return check_int8.ran("eager", dtype, plan.replace(weight_format="nd")).logits


def assert_those_of_nd(got: list[Tensor], plan: PortPlan = NZ, dtype: str = "bfloat16") -> None:
    for a, b in zip(got, nd(plan, dtype), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        *((m, "bfloat16") for m in ("eager", *MODES)),
        ("eager", "float16"),
        ("npugraph_ex", "float16"),
    ],
)
def test_logits_are_those_of_nd_bit_for_bit(mode, dtype) -> None:
    """float16 through GE is check_int8.py's: the layout of an int8 matrix and the dtype of what is
    computed with it do not meet."""
    assert_those_of_nd(check_int8.ran(mode, dtype, NZ).logits, dtype=dtype)


@pytest.mark.parametrize("mode", ["eager", "captured"])
def test_over_the_paged_cache(mode) -> None:
    """Attention reads none of these matrices, so neither cache knows how they lie; each graph mode has
    the paged cache in check_int8.py and the matrices above."""
    plan = NZ.plus("paged_cache")
    assert_those_of_nd(run(load(mode, plan)), plan)


APART, PLAIN_ROUTING = NZ.minus("merged_mlp"), NZ.replace(npu_routing_kernel=False)


@pytest.mark.parametrize(
    ("mode", "plan"),
    [(m, APART) for m in ("eager", "captured", "ge")]
    + [(m, PLAIN_ROUTING) for m in ("eager", "captured")],
)
def test_other_forms(mode, plan) -> None:
    """Matrices that are not merged, also through GE; who sorts tokens reads no matrix."""
    assert_those_of_nd(run(load(mode, plan)), plan)


def test_every_layer_is_its_definition() -> None:
    model = load()
    with held_to_the_definition() as seen:
        run(model)
    assert seen["Linear"] and seen["MLP"] and seen["experts"]


@pytest.mark.parametrize(
    "plan", [NZ, PortPlan.production().replace(quant="w8a8", weight_format="nz")]
)
def test_which_weights_lie_so_and_that_they_read_back(plan) -> None:
    """Every int8 matrix, nothing else; W_UK and W_UV not. Back on the host they are those of ND."""
    model = load(plan=plan)
    turned = {path for *_, path in matrices(model)}
    assert turned and not [n for n in turned if "kv_b_proj" in n]
    for name, parameter in model.named_parameters():
        assert (ops.storage_format(parameter) == 29) == (name in turned), name
    published = as_published(model)
    for name, want in load(plan=plan.replace(weight_format="nd")).named_parameters():
        assert torch.equal(published[name].cpu(), want.cpu()), name


def test_the_ge_graph_takes_the_matrices_as_they_lie() -> None:
    """Data nodes of format 29, no cast and no Transpose of a matrix in between."""
    found, plain = (check_int8.ran("ge", plan=plan).graphs for plan in (NZ, FULL))
    assert len(found) == len(plain) == 2
    for graph, other in zip(found, plain, strict=True):
        count, before = (Counter(op.type for op in g.op) for g in (graph, other))
        kinds = Counter(
            op.output_desc[0].attr["format_for_int"].i
            for op in graph.op
            if op.type in ("Data", "RefData")
        )
        assert kinds[29] == 2 * 4 + 2 * 2 + 2  # linear layers, MLPs, two stacks of experts
        assert not count["TransData"] and count["Transpose"] < before["Transpose"]
        assert count["QuantBatchMatmulV3"] == before["QuantBatchMatmulV3"] == 2 * 4 + 2 * 2


@pytest.mark.parametrize("mode", ["eager", "captured"])
def test_text_with_drafts(mode) -> None:
    """The MTP layer's matrices too. Its GE graphs are check_prolog.py's and check_mtp.py's."""
    tokenizer, plan = load_tokenizer(TINY), PortPlan.production().replace(quant="w8a8")
    want = generate(load(plan=plan), tokenizer, ["Once upon a time"], 12, pad_to=16)[0]
    model = load(mode, plan.replace(weight_format="nz"))
    found = generate(model, tokenizer, ["Once upon a time"], 12, pad_to=16)[0]
    assert found.token_ids == want.token_ids and found.accepted == want.accepted


def test_a_cast_that_did_not_happen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv3_port.ops.memory.npu_format_cast", lambda x, kind: x)
    with pytest.raises(PortError, match="torch_npu left it in format 2, not FRACTAL_NZ"):
        load()


def test_the_fx_graph_behind_the_ge_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(graphs.ENGINE_VARIABLE, "fx")
    assert_those_of_nd(run(load("ge")))

"""Which form runs where, and the forms of a GPU: on CPU tensors by their values, on meta tensors by
what they never ask for. A GPU itself: the end of this file."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from dsv3_port import ops
from dsv3_port.count.syncs import host_syncs
from dsv3_port.engine.capture import _Meetings
from dsv3_port.engine.generate import generate
from dsv3_port.errors import PortError
from dsv3_port.model.decoder import DeepseekV3, build
from dsv3_port.model.gate import Gate
from dsv3_port.ops import cache as cache_ops
from dsv3_port.ops import cpu, cuda, moe_dispatch, plain, products, split_attention
from dsv3_port.ops import grouped_matmul as gmm_ops
from dsv3_port.ops import moe_combine as combine_ops
from dsv3_port.plan import PortPlan
from dsv3_port.steps import STEPS
from tests.random_models import CONFIG, random_model

TABLES = (products.LINEAR, products.HEAD_MATMUL, products.SHARED_SCORES, products.ATTENTION)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def grouped(rows: int, dtype: torch.dtype, inner: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """x [rows, K] sorted by expert, weight [6, K, N] stored [6, N, K], and the experts' ends."""
    torch.manual_seed(rows)
    weight = (torch.randn(6, 16, inner) / inner**0.5).to(dtype).transpose(1, 2)
    chosen = torch.randint(6, (rows,)).sort().values
    chosen[chosen == 1] = 0  # one expert has none
    return torch.randn(rows, inner).to(dtype), weight, torch.bincount(chosen, minlength=6).cumsum(0)


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setattr(cuda, "capability", lambda index: 9)
    cuda._tell.cache_clear()


# ---- one place -----------------------------------------------------------------------------------


def test_no_form_of_a_cpu_is_in_the_table_for_another_device() -> None:
    for table in (*TABLES, products.GROUPED_MATMUL):
        for device, form in table.items():
            assert (form.__module__ == cpu.__name__) == (device == "cpu"), (device, form)
    for name in ("cuda", "npu", "meta"):
        assert name not in products.LINEAR


@pytest.mark.parametrize("name", ["linear", "head_matmul", "shared_scores", "attention"])
def test_the_model_reaches_products_by_the_table_alone(name: str) -> None:
    assert getattr(ops, name) is getattr(products, name)
    assert not hasattr(cpu, "attention")


def test_which_device_it_is_is_asked_where_forms_are_chosen() -> None:
    """Not in the model, nor in the forms."""
    from pathlib import Path

    root = Path(ops.__file__).parents[1]
    for file in (
        *(root / "model").glob("*.py"),
        root / "ops" / "cpu.py",
        root / "ops" / "plain.py",
    ):
        text = file.read_text(encoding="utf-8")
        assert "device.type" not in text and "is_cuda" not in text, file


# ---- cuda's grouped matmul, by values ------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 3, 40, 400])
@pytest.mark.parametrize("limit", [0, cuda.GATHER_BYTES])
def test_the_form_of_a_gpu_is_a_product_for_each_expert(
    rows: int, dtype: torch.dtype, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 by grouped_mm; float32 gathered, and looped where a gather would be too large."""
    monkeypatch.setattr(cuda, "GATHER_BYTES", limit)
    x, weight, ends = grouped(rows, dtype)
    wanted = cpu.grouped_matmul(x, weight, ends)
    for stacked in (weight, list(weight)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = cuda.grouped_matmul(x, stacked, ends)
        torch.testing.assert_close(got, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("rows", "dtype"), [(40, torch.bfloat16), (40, torch.float32)])
def test_the_host_is_not_asked(rows: int, dtype: torch.dtype) -> None:
    x, weight, ends = grouped(rows, dtype)
    assert host_syncs(lambda: cuda.grouped_matmul(x, weight, ends), as_npu=False) == {}


def test_the_fallback_is_told_once_and_seen_by_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "GATHER_BYTES", 0)
    x, weight, ends = grouped(40, torch.float32)
    with pytest.warns(UserWarning, match="bfloat16 only.*host reads the experts' boundaries"):
        syncs = host_syncs(lambda: cuda.grouped_matmul(x, weight, ends), as_npu=False)
    assert syncs == {"tolist": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cuda.grouped_matmul(x, weight, ends)
    short = cuda.grouped_matmul(x, weight, (ends - 1).clamp(min=0))
    assert short[-1].isnan().all() and not short[: int(ends[-1]) - 1].isnan().any()


@pytest.mark.parametrize(
    ("rows", "dtype", "node"),
    [
        (cuda.GATHER_ROWS, torch.float32, "getitem"),
        (cuda.GATHER_ROWS + 1, torch.bfloat16, "grouped_mm"),
        (cuda.GATHER_ROWS + 1, torch.float32, "bmm"),
    ],
)
def test_compiled_it_is_one_graph(rows: int, dtype: torch.dtype, node: str) -> None:
    seen: list[str] = []

    def backend(graph: Any, _: Any) -> Any:
        seen.extend(str(n.target) for n in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    x, weight, ends = grouped(rows, dtype)
    got = torch.compile(cuda.grouped_matmul, backend=backend, fullgraph=True)(x, weight, ends)
    assert any(node in name for name in seen), seen
    wanted = cpu.grouped_matmul(x, weight, ends)
    torch.testing.assert_close(got, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_limits_of_grouped_mm_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, _ = grouped(8, torch.bfloat16)
    assert cuda.why_not(x, weight) == ""
    assert "bfloat16 only" in cuda.why_not(x.float(), weight.float())
    odd = [grouped(8, torch.bfloat16, inner)[:2] for inner in (30, 33)]
    apart = torch.zeros(8, 64, dtype=torch.bfloat16)[:, 1:33]  # begins 2 bytes behind
    turned = torch.zeros(32, 8, dtype=torch.bfloat16).t()
    for bad in (*odd, (apart, weight), (turned, weight), (x, weight[..., :15])):
        assert "multiples of 16 bytes" in cuda.why_not(*bad)
    monkeypatch.setattr(cuda, "capability", lambda index: 8)
    assert "compute capability 9 or 10" in cuda.why_not(x, weight)
    monkeypatch.setattr(plain, "grouped_mm", None)
    assert "has no grouped_mm" in cuda.why_not(x, weight)


# ---- whole steps ---------------------------------------------------------------------------------


@contextlib.contextmanager
def forms_of_cuda(device: str) -> Iterator[None]:
    """Tensors of `device` are treated as a GPU's: its forms, and no check that looks at values."""
    with contextlib.ExitStack() as stack:
        for table in TABLES:
            stack.enter_context(mock.patch.dict(table, clear=True))
        stack.enter_context(mock.patch.dict(products.GROUPED_MATMUL, {device: cuda.grouped_matmul}))
        split = {device: split_attention.decode_attention_op}
        stack.enter_context(mock.patch.dict(products.DECODE_ATTENTION, split))
        for module in (cache_ops, gmm_ops, moe_dispatch, combine_ops):
            stack.enter_context(mock.patch.object(module, "readable", lambda *_: False))
        yield


def in_dtype(model: DeepseekV3, dtype: torch.dtype) -> DeepseekV3:
    """The gate stays in float32."""
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, Gate):
            module.float()
    return model


IDS = torch.randint(3, CONFIG.vocab_size, (2, 8), generator=torch.Generator().manual_seed(1))


def steps_of(model: DeepseekV3, ids: Tensor = IDS) -> list[Tensor]:
    """A prompt and two decode steps, without the checks of a call."""
    cache = model.new_cache(2, 16)
    found = []
    for n, part in enumerate(ids.split([6, 1, 1], dim=1)):
        found.append(model.forward_step(part, cache.pad, cache, n == 0))
        cache.advance(part.shape[1])
    return found


NO_SYNC = {
    "full": PortPlan.full(),
    "split": PortPlan.full().replace(decode_attention="split"),
    "torch routing": PortPlan.full().replace(npu_routing_kernel=False),
    **{f"upto {s.id}": PortPlan.upto(s.id) for s in STEPS[1:] if s.field != "graph"},
}
NO_SYNC = {name: p for name, p in NO_SYNC.items() if p.experts == "grouped"}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("plan", NO_SYNC.values(), ids=NO_SYNC)
def test_no_step_that_claims_none_waits_for_the_host(plan: PortPlan, dtype: torch.dtype) -> None:
    """Counted on values, and once more on meta tensors, which have none to read: norm, attention,
    gate, routing, experts, cache and LM head."""
    with forms_of_cuda("cpu"), torch.no_grad():
        model = in_dtype(random_model(plan), dtype)
        assert host_syncs(lambda: steps_of(model), as_npu=False) == {}
    ids = IDS.to("meta")
    with forms_of_cuda("meta"):
        without_values = build(CONFIG, plan, device="meta", dtype=dtype)
    with forms_of_cuda("meta"), torch.no_grad(), _Meetings():
        assert [y.device.type for y in steps_of(without_values, ids)] == ["meta"] * 3


def test_the_counter_and_the_capture_see_the_loop() -> None:
    """Of upstream's experts, and of a grouped matmul that falls back."""
    upstream = random_model(PortPlan.upstream())
    with forms_of_cuda("cpu"), torch.no_grad():
        assert host_syncs(lambda: steps_of(upstream), as_npu=False) == {"tolist": 3 * 2}
    full, ids = build(CONFIG, PortPlan.full(), device="meta"), IDS.to("meta")
    with forms_of_cuda("meta"), torch.no_grad(), mock.patch.object(cuda, "GATHER_BYTES", 0):
        with pytest.raises((PortError, RuntimeError), match="meta|npu_grouped_matmul"):
            with pytest.warns(UserWarning, match="bfloat16 only"), _Meetings():
                steps_of(full, ids)


@pytest.mark.parametrize(
    "plan", [NO_SYNC["full"], NO_SYNC["split"], PortPlan.upto("gmm_routing")], ids=str
)
def test_the_forms_of_a_gpu_compute_what_a_cpus_do(plan: PortPlan) -> None:
    model = random_model(plan)
    with torch.no_grad():
        wanted = steps_of(model)
        with forms_of_cuda("cpu"):
            got = steps_of(model)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class Words:
    """A tokenizer of numbers."""

    pad_token_id, eos_token_id = 0, None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(w) for w in text.split()]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def test_generation_reads_one_small_tensor_a_token_and_one_a_prompt() -> None:
    """The text needs the token; that the logits are finite comes with it."""
    model = random_model(PortPlan.full())
    model.config = model.config.replace(eos_token_id=())

    def reads(new: int, prompts: int = 1) -> Counter[str]:
        texts = ["5 6 7"] * prompts
        with forms_of_cuda("cpu"):
            return Counter(host_syncs(lambda: generate(model, Words(), texts, new), as_npu=False))

    assert reads(8) - reads(4) == Counter({"tolist": 4})
    assert reads(4, prompts=3) - reads(4) == Counter({"tolist": 2, "__bool__": 2})


# ---- on a GPU ------------------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_no_wait_on_a_gpu(dtype: torch.dtype) -> None:
    model = in_dtype(random_model(PortPlan.full()), dtype).to("cuda")
    ids = IDS.cuda()
    with torch.no_grad():
        steps_of(model, ids)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            steps_of(model, ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")

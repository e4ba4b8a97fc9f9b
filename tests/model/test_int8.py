"""A W8A8 model: every int8 layer is its definition, bit for bit, in every plan, on one rank and two; and
how near the whole is to the float model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import PortError, PortPlan, generate, load_model, load_tokenizer
from dsv3_port.engine.graph import compile_steps
from dsv3_port.engine.launch import run_ranks
from dsv3_port.model import int8
from dsv3_port.model.decoder import DeepseekV3, build
from dsv3_port.model.paged_cache import Paging
from dsv3_port.ops.providers import by_reference
from dsv3_port.parallel import TensorParallel
from dsv3_port.weights.int8_formats import FORMATS
from dsv3_port.weights.sharding import shard_checkpoint
from tests import int8_definition as definition
from tests.model.int8_calls import held_to_the_definition, wrong_forms

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
FULL = PortPlan.full().replace(quant="w8a8")
PLANS = {
    "full": FULL,
    "paged": FULL.plus("paged_cache"),
    "production": PortPlan.production().replace(quant="w8a8"),
    "upstream": PortPlan.upstream().replace(quant="w8a8"),
    "loop of merged": FULL.minus("gmm_routing"),
    "grouped, not merged": FULL.minus("merged_mlp"),
    "routing in torch": FULL.replace(npu_routing_kernel=False),
}
IDS = torch.randint(3, 900, (2, 13), generator=torch.Generator().manual_seed(4))
TEXTS = torch.randint(3, 900, (8, 24), generator=torch.Generator().manual_seed(4))


def run(model: DeepseekV3, ids: Tensor = IDS, prompt: int = 9) -> Tensor:
    """The last position's logits behind a prompt and cached steps, one after the other."""
    model.paging = Paging(16)
    cache = model.new_cache(2, 24)
    parts = [model(ids[:, :prompt].contiguous(), cache=cache)[:, -1:]]
    parts += [
        model(ids[:, at : at + 1].contiguous(), cache=cache) for at in range(prompt, ids.shape[1])
    ]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", PLANS)
def test_every_layer_is_its_definition_bit_for_bit(name, dtype) -> None:
    model = load_model(TINY, PLANS[name], "cpu", dtype)
    with held_to_the_definition() as seen:
        assert run(model).isfinite().all()
    layers, calls = model.config.num_hidden_layers, 1 + IDS.shape[1] - 9
    assert seen["Linear"] >= 4 * layers * calls  # q_a, q_b, kv_a, o
    if name in ("full", "paged", "production", "routing in torch"):
        assert seen["experts"] == (layers - 1) * calls and seen["MLP"] == layers * calls


@pytest.mark.parametrize("name", wrong_forms())
def test_the_mutations(name) -> None:
    model = load_model(TINY, FULL, "cpu", "bfloat16")
    with held_to_the_definition(), wrong_forms()[name]():
        with pytest.raises((AssertionError, ValueError)):
            run(model)


def test_float32_sums_of_int8_are_not_exact_and_these_are() -> None:
    """127 * 127 * 7168 is above 2^24."""
    codes = torch.full((1, 7168), 127, dtype=torch.int8)
    codes[0, ::2] = 126
    weight = torch.full((2, 7168), 127, dtype=torch.int8)
    weight[1, 1::3] = -125
    exact = (codes.long() @ weight.long().T)[0]
    assert int8.sums(codes, weight.t(), torch.ones(2, 1))[0].tolist() == exact.tolist()
    assert bool((exact.abs() > 1 << 24).any())
    assert exact.float().long().tolist() != exact.tolist() or int(exact[0]) % 8 == 0


def test_a_row_of_zeros_stays_zero() -> None:
    weight, scale = torch.ones(64, 64, dtype=torch.int8), torch.ones(64, 1)
    x = torch.zeros(3, 64)
    assert not int8.linear(x, weight, scale).any()
    codes, token_scale = int8.quantised(x)
    inner = int8.swiglu(int8.sums(codes, weight, scale), token_scale, scale)
    assert not inner[0].any() and not inner[1].any()


@pytest.mark.parametrize("width", [32, 64, 80])
def test_widths_that_the_operator_does_not_take_change_nothing(width) -> None:
    """Rows of groups are filled with zeros to a multiple of 64."""
    generator = torch.Generator().manual_seed(width)
    total = torch.randint(-9999, 9999, (6, 2 * width), generator=generator, dtype=torch.int32)
    scale = torch.rand(3, 2 * width, 1, generator=generator) / 1000
    token_scale = torch.rand(6, generator=generator)
    counts = torch.tensor([2, 0, 4])
    codes, scales = int8.swiglu(total, token_scale, scale, counts)
    assert codes.is_contiguous() and codes.shape == (6, width)
    for rows, expert in ((slice(0, 2), 0), (slice(2, 6), 2)):
        want = definition.swiglu(
            total[rows].long().numpy(), scale[expert].flatten().numpy(), token_scale[rows].numpy()
        )
        assert codes[rows].tolist() == want[0].tolist()
        assert scales[rows].tolist() == want[1].tolist()


def test_near_the_float_model() -> None:
    """Rounding to 8 bits, and no more: the logits' error, not their equality."""
    want = run(load_model(TINY, PortPlan.full(), "cpu", "float32"))
    for name, plan in PLANS.items():
        found = run(load_model(TINY, plan, "cpu", "float32"))
        if name == "upstream":
            found = found[:, -want.shape[1] :]
        off = float((found - want).square().mean().sqrt() / want.square().mean().sqrt())
        assert 1e-4 < off < 0.06, f"{name}: {off}"


def test_the_cache_does_not_matter() -> None:
    fixed, paged = (run(load_model(TINY, PLANS[n], "cpu", "float32")) for n in ("full", "paged"))
    assert float((fixed - paged).abs().max() / fixed.abs().max()) < 0.05


@pytest.mark.parametrize("shape", [(3, 64), (2, 5, 64)])
def test_a_column_cut_changes_no_bit_and_a_row_cut_is_of_its_own_scales(shape) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator).bfloat16()
    codes = torch.randint(-127, 128, (32, 64), generator=generator).to(torch.int8)
    scale = torch.rand(32, 1, generator=generator) / 100
    whole = int8.linear(x, codes.t(), scale)
    halves = [int8.linear(x, codes[r].t(), scale[r]) for r in (slice(0, 16), slice(16, 32))]
    assert torch.equal(torch.cat(halves, -1), whole)
    shards = [(x[..., c].contiguous(), codes[:, c]) for c in (slice(0, 32), slice(32, 64))]
    parts = [int8.linear(mine, weight.contiguous().t(), scale) for mine, weight in shards]
    want = [definition.linear(mine.flatten(0, -2), weight, scale) for mine, weight in shards]
    assert all(torch.equal(p.flatten(0, -2), w) for p, w in zip(parts, want, strict=True))
    assert not torch.equal(parts[0] + parts[1], whole)


def on_a_rank(parallel: TensorParallel, path: str, plan: PortPlan) -> tuple[Tensor, Tensor, Any]:
    """Logits of a prompt and cached steps, and of every position of 8 texts."""
    model = load_model(path, plan, "cpu", "float32", parallel)
    with held_to_the_definition() as seen:
        return run(model), model(TEXTS), Counter(seen)


@pytest.mark.parametrize("form", FORMATS)
def test_two_ranks_from_both_formats(form, tmp_path) -> None:
    """Each rank's layers are the definition's with its own rows of inputs; both agree on the logits,
    which are as near to the float model's as those of one rank, and not the same."""
    shard_checkpoint(TINY, tmp_path, 2, plan=FULL, quant_format=form, dtype="fp32")
    plan = FULL.minus("last_token_head")
    (one, texts, seen), (other, *_) = run_ranks(on_a_rank, 2, str(tmp_path), plan)
    assert torch.equal(one, other) and seen["experts"] and seen["MLP"]
    if form == FORMATS[0]:
        straight, *_ = run_ranks(on_a_rank, 2, str(TINY), plan)[0]
        assert torch.equal(one, straight)
    want, alone = (
        load_model(TINY, p, "cpu", "float32")(TEXTS) for p in (plan.replace(quant="none"), plan)
    )
    off, of_one = (  # medians: where the experts change, a token is off by tens of per cent
        float(((x - want).square().mean(-1) / want.square().mean(-1)).sqrt().median())
        for x in (texts, alone)
    )
    assert off < 0.02 and of_one < 0.02, (off, of_one)
    assert not torch.equal(texts, alone)


@pytest.mark.parametrize("name", ["full", "production"])
def test_text(name) -> None:
    """The embedded model says the same in int8 as in float."""
    tokenizer, prompts = load_tokenizer(TINY), ["Once upon a time", "7 plus 5 is"]
    plain = PortPlan.full() if name == "full" else PortPlan.production()
    texts = []
    for plan in (plain, PLANS[name]):
        model = load_model(TINY, plan, "cpu", "float32")
        texts.append([g.text for g in generate(model, tokenizer, prompts, 16)])
    assert texts[0] == texts[1]


def test_what_w8a8_cannot_be() -> None:
    config = load_model(TINY, FULL, "cpu").config
    with pytest.raises(
        PortError, match="w8a8 on an NPU has bfloat16 or float16 beside int8, not float32"
    ):
        int8.require_int8("npu", torch.float32, by_reference)
    with pytest.raises(PortError, match="leave GMM_PROVIDER at auto"):
        build(config, FULL, gmm=by_reference)
    for mode in ("ge", "aclgraph"):
        with pytest.raises(PortError, match="w8a8 runs eagerly on cpu"):
            compile_steps(load_model(TINY, FULL, "cpu"), mode)
    with pytest.raises(PortError, match="PortPlan.quant is 'int8'; it can be 'none' or 'w8a8'"):
        PortPlan(quant="int8")  # type: ignore[arg-type]

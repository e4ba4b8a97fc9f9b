"""Part II: cached steps that begin with npu_mla_prolog_v3. Equal to the form in single operators, in
float32 and in float64; `test_the_mutations` holds the wrong forms and shows that they are caught."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from dsv3_port import PortPlan, generate, load_model, load_tokenizer, ops
from dsv3_port.check.gate import stressed, strict_gate
from dsv3_port.engine.continuous import ContinuousBatch, Request, run_requests
from dsv3_port.engine.graph import compile_steps
from dsv3_port.engine.launch import run_ranks
from dsv3_port.engine.loading import with_plan
from dsv3_port.errors import PortError
from dsv3_port.model.attention import StepInputs
from dsv3_port.model.context import BuildContext
from dsv3_port.model.decoder import DeepseekV3, build
from dsv3_port.model.mla_prolog import PrologAttention, require_prolog
from dsv3_port.model.paged_cache import PagedCache, Paging
from dsv3_port.model.visible import compressed_causal
from dsv3_port.parallel import SINGLE, TensorParallel
from tests.model.test_paged import V3_ATTENTION, by_definition, follow, ragged, relative
from tests.random_models import CONFIG, SHORT, fill, random_sources

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
FULL, PAGED = PortPlan.full(), PortPlan.upto("9")
PROLOG = PAGED.replace(mla_prolog=True)
NAN = Paging(16, poison=math.nan)


@pytest.fixture(scope="module")
def fixed() -> DeepseekV3:
    return load_model(TINY, FULL, "cpu", "float32")


def fused(model: DeepseekV3, paging: Paging = NAN, **options: Any) -> DeepseekV3:
    twin = with_plan(model, PROLOG.replace(**options))
    twin.paging = paging
    return twin


def prologs(model: DeepseekV3) -> list[PrologAttention]:
    return [m for m in model.modules() if isinstance(m, PrologAttention)]


# ---- equal to the single operators ---------------------------------------------------------------


@pytest.mark.parametrize("prefill", ["expanded", "absorbed", "plain"])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_strict_gate(fixed, prefill, block) -> None:
    """Three padded prompts of 19, 7 and 13 tokens and four cached steps, every stage and every
    expert; blocks of 16 are crossed at 16 and at 32."""
    paging = Paging(block, poison=math.nan)
    verdict = strict_gate(fixed, fused(fixed, paging, prefill_attention=prefill))
    assert verdict, verdict
    print(f"largest {verdict.largest:.1e}")


def test_strict_gate_under_stress(fixed) -> None:
    assert strict_gate(stressed(fixed), stressed(fused(fixed)))


def test_ragged_batches() -> None:
    """60 batches over prefill forms, chunks and block sizes; docs/production.md has the worst
    difference."""
    sources, worst = random_sources(), 0.0
    for seed in range(100, 160):
        rng = random.Random(seed)
        prefill = rng.choice(("expanded", "absorbed", "plain"))
        models = [
            fill(build(CONFIG, plan.replace(prefill_attention=prefill)), sources)
            for plan in (FULL, PROLOG)
        ]
        models[1].paging = Paging(rng.choice((16, 32, 48)), poison=math.nan)
        ids, mask, prompt = ragged(seed)
        want, _ = follow(models[0], ids, mask, prompt)
        got, _ = follow(models[1], ids, mask, prompt, rng.choice((0, 0, 5, 16)))
        assert bool(got.isfinite().all())
        worst = max(worst, relative(got, want))
    print(f"worst difference {worst:.1e}")
    assert worst <= 1e-5


@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize("sizes", [{}, V3_ATTENTION])
def test_published_widths_and_widened_ones(interleave: bool, sizes: dict[str, Any]) -> None:
    """512 and 64 as published, and 16 and 8 widened to them; rotary channels in pairs, as the operator
    takes them, and in halves, which are put in pairs when the weights are laid out."""
    config = CONFIG.replace(rope_interleave=interleave, **sizes)
    sources = random_sources(config)
    ids, mask, prompt = ragged(3)
    models = [fill(build(config, p), sources) for p in (FULL, PROLOG)]
    models[1].paging = NAN
    want, got = (follow(m, ids, mask, prompt)[0] for m in models)
    assert relative(got, want) <= 1e-5


def from_the_definition(sizes: dict[str, Any], verify: bool = False) -> float:
    """How far the layer is from the reports' definition in float64, over a prompt of 8 by the single
    operators, then one position at a time or a token and its draft through this one."""
    config, new = CONFIG.replace(**sizes), 2 if verify else 1
    plan = PROLOG.replace(prefill_attention="absorbed", rope="per_step", norm="separate")
    layer = PrologAttention(BuildContext(config, plan, dtype=torch.float64))
    generator = torch.Generator().manual_seed(new)
    for parameter in layer.parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = values * 0.2 + (1 if values.dim() == 1 else 0)
    layer.lay_out()
    hidden = torch.randn(1, 40, config.hidden_size, generator=generator, dtype=torch.float64)
    angle = torch.rand(40, config.qk_rope_head_dim // 2, generator=generator, dtype=torch.float64)
    cos, sin = (torch.cat((f(angle * 9),) * 2, -1) for f in (torch.cos, torch.sin))
    layer.q_a_layernorm.norm = lambda x: (  # type: ignore[method-assign]
        x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * layer.q_a_layernorm.weight
    )  # of the prompt: the model's own rounds to float32
    cache = PagedCache(1, layer.cache_widths, 1, 48, "cpu", torch.float64, NAN)
    cache.place(0, (2, 3, 1))
    got = []
    for start, end in [(0, 8), *((n, n + new) for n in range(8, 40, new))]:
        at = torch.arange(start, end).unsqueeze(0)
        cache.require_capacity(end - start)
        cache.expect(end - start)
        mask = compressed_causal(cos.device) if end - start > 1 else None
        inputs = StepInputs(at, mask, cache.pad, start == 0, cos[at][:, None], sin[at][:, None])
        inputs.paged, inputs.verify = cache.step(at, False), verify and start > 0
        got.append(layer(hidden[:, start:end], inputs, cache, 0))
        cache.advance(end - start)
    want = by_definition(layer, hidden[0], cos, sin)  # type: ignore[arg-type]
    return relative(torch.cat(got, 1)[0], want)


@pytest.mark.parametrize("sizes", [{}, V3_ATTENTION])
@pytest.mark.parametrize("verify", [False, True])
def test_the_layer_is_its_definition_in_float64(sizes: dict[str, Any], verify: bool) -> None:
    off = from_the_definition(sizes, verify)
    print(f"off {off:.1e}")
    assert off <= 1e-13


def test_the_operators_own_epsilons_are_seen_in_float64(monkeypatch) -> None:
    """1e-5 for 1e-6: too little for the gate in float32, where latents are as large as here."""
    own = with_changed(lambda v: {"rmsnorm_epsilon_cq": 1e-5, "rmsnorm_epsilon_ckv": 1e-5})
    monkeypatch.setattr(ops, "npu_mla_prolog_v3", own(ops.npu_mla_prolog_v3))
    assert from_the_definition({}) > 1e-8


@pytest.mark.parametrize("without", ["rope_once", "add_rms_norm", "merged_mlp", "gmm_routing"])
def test_other_steps_can_be_off(without) -> None:
    ids, mask, prompt = ragged(3)
    sources = random_sources()
    models = [fill(build(CONFIG, p), sources) for p in (FULL, PROLOG.minus(without))]
    models[1].paging = NAN
    want, got = (follow(m, ids, mask, prompt)[0] for m in models)
    assert relative(got, want) <= 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits(dtype) -> None:
    """As near to float32 as the single operators are, times 2."""
    ids, mask, prompt = ragged(5)
    exact = follow(load_model(TINY, FULL, "cpu", "float32"), ids, mask, prompt)[0]
    base = load_model(TINY, PAGED, "cpu", dtype)
    base.paging = NAN
    errors = [
        float((follow(m, ids, mask, prompt)[0] - exact).abs().mean()) for m in (base, fused(base))
    ]
    assert errors[1] <= 2 * errors[0]


def test_compiled_by_inductor() -> None:
    """One graph for all cached steps, slots of padding without a mask as index."""
    torch._dynamo.reset()
    ids, mask, prompt = ragged(2)
    sources = random_sources(SHORT)
    models = [fill(build(SHORT, p), sources) for p in (FULL, PROLOG)]
    want = follow(models[0], ids, mask, prompt)[0]
    models[1].paging = NAN
    compile_steps(models[1], "ge")
    before = counters["stats"]["unique_graphs"]
    assert relative(follow(models[1], ids, mask, prompt)[0], want) <= 1e-5
    assert counters["stats"]["unique_graphs"] - before == 2


def test_text(fixed) -> None:
    tokenizer = load_tokenizer(TINY)
    prompts = ["Once upon a time", "7 plus 5 is", "The cat", "A"]
    texts = [
        [g.token_ids for g in generate(m, tokenizer, prompts, 48)] for m in (fixed, fused(fixed))
    ]
    assert texts[0] == texts[1]


def test_with_drafts() -> None:
    """A token and its draft go through the operator together, in the MTP layer too."""
    tokenizer, plan = load_tokenizer(TINY), PortPlan.production().replace(mla_prolog=True)
    plain = load_model(TINY, FULL, "cpu", "float32")
    model = load_model(TINY, plan, "cpu", "float32")
    prompts = ["Once upon a time", "7 plus 5 is"]
    want = [g.token_ids for g in generate(plain, tokenizer, prompts, 24)]
    found = generate(model, tokenizer, prompts, 24)
    assert [g.token_ids for g in found] == want and sum(map(sum, (g.accepted for g in found)))
    assert len(prologs(model)) == model.config.num_hidden_layers + 1


def test_in_slots(fixed) -> None:
    """Rows that are done have slot -1: catches a write of theirs into block 0 or another row's."""
    rng = random.Random(1)
    requests = [
        Request(tuple(rng.randrange(3, 900) for _ in range(length)), new)
        for length, new in ((14, 6), (16, 3), (5, 1), (1, 9), (31, 5))
    ]
    model = fused(fixed)
    batch = ContinuousBatch(model, 2, max(r.positions for r in requests))
    found = [r.token_ids for r in run_requests(batch, requests)]
    assert not any(bool(b[0].any()) for layer in batch.cache.buffers for b in layer)
    for request, got in zip(requests, found, strict=True):
        cache = fixed.new_cache(1, request.positions)
        ids, text = list(request.ids), []
        for _ in range(request.max_new_tokens):
            text.append(int(fixed(torch.tensor([ids]), cache=cache)[0, -1].argmax()))
            ids = text[-1:]
        assert got == text


def on_a_rank(parallel: TensorParallel, path: str, plan: PortPlan) -> Tensor:
    model = load_model(path, plan, "cpu", "float32", parallel)
    model.paging = NAN
    ids = torch.randint(3, 900, (2, 24), generator=torch.Generator().manual_seed(4))
    return follow(model, ids, None, 19)[0]


def test_two_ranks() -> None:
    """Each has its own heads of uq_qr and uk; the rest is whole."""
    one = on_a_rank(SINGLE, str(TINY), FULL)
    both = run_ranks(on_a_rank, 2, str(TINY), PROLOG)
    assert torch.equal(*both) and relative(both[0], one) <= 1e-5


# ---- its weights ---------------------------------------------------------------------------------


def test_matrices_of_the_published_sizes_have_one_memory() -> None:
    """The parameter becomes a view of the operator's matrix; a widened one is a copy, small."""
    config = CONFIG.replace(**V3_ATTENTION)
    model = fill(build(config, PROLOG), random_sources(config))
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.new_cache(1, 20)
    for layer in prologs(model):
        for made, source in (
            (layer.dq, layer.q_a_proj.weight),
            (layer.uq_qr, layer.q_b_proj.weight),
            (layer.dkv_kr, layer.kv_a_proj_with_mqa.weight),
        ):
            assert made.data_ptr() == source.data_ptr() and made.is_contiguous()
            assert torch.equal(made, source.t())
        assert layer.uk.data_ptr() == layer.kv_b_proj_w_k.data_ptr()
        assert layer.gamma.data_ptr() == layer.kv_a_layernorm.weight.data_ptr()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert "dq" not in " ".join(model.state_dict())


def test_they_are_made_once_and_anew_of_other_weights() -> None:
    model = fill(build(CONFIG, PROLOG), random_sources())
    model.paging = NAN
    model.new_cache(1, 20)
    layer = prologs(model)[0]
    first = layer.dq, layer.uq_qr
    model.new_cache(1, 20)
    assert layer.dq is first[0] and layer.uq_qr is first[1]
    other = fill(build(CONFIG, FULL), random_sources(seed=1))
    model.load_state_dict(other.state_dict())
    ids, mask, prompt = ragged(3)
    want, got = (follow(m, ids, mask, prompt)[0] for m in (other, model))
    assert relative(got, want) <= 1e-5


def test_each_cached_step_has_one_of_it_a_layer_and_prompts_have_none(fixed, monkeypatch) -> None:
    seen: list[str] = []
    for name in ("npu_mla_prolog_v3", "npu_kv_rmsnorm_rope_cache_v2"):
        real = getattr(ops, name)

        def call(*args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
            seen.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(ops, name, call)
    model, layers = fused(fixed), fixed.config.num_hidden_layers
    cache = model.new_cache(1, 20)
    model(torch.arange(3, 12).unsqueeze(0), cache=cache)
    assert seen == ["npu_kv_rmsnorm_rope_cache_v2"] * layers
    seen.clear()
    model(torch.tensor([[3]]), cache=cache)
    assert seen == ["npu_mla_prolog_v3"] * layers


# ---- W8A8 ----------------------------------------------------------------------------------------


def test_int8_matrices_go_in_as_they_are() -> None:
    """weight_quant_mode 2: near the single int8 operators, whose latents are rounded between; and the
    same text as the float model."""
    plan = PROLOG.replace(quant="w8a8")
    ids, mask, prompt = ragged(5)
    floats, single, model = (
        load_model(TINY, p, "cpu", "float32") for p in (FULL, PAGED.replace(quant="w8a8"), plan)
    )
    single.paging = model.paging = NAN
    want, apart, got = (follow(m, ids, mask, prompt)[0] for m in (floats, single, model))

    def off(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())

    assert 1e-4 < off(got, want) < 0.06 and off(got, want) < 1.5 * off(apart, want)
    assert {layer.dq.dtype for layer in prologs(model)} == {torch.int8}
    tokenizer, prompts = load_tokenizer(TINY), ["Once upon a time", "7 plus 5 is"]
    texts = [[g.text for g in generate(m, tokenizer, prompts, 16)] for m in (floats, model)]
    assert texts[0] == texts[1]


def test_int8_matrices_that_lie_turned_already() -> None:
    """weight_format 'nz': the parameter is the operator's matrix, or its widened form is made of it."""
    plan = PROLOG.replace(quant="w8a8")
    ids, mask, prompt = ragged(5)
    models = [
        load_model(TINY, p, "cpu", "float32") for p in (plan, plan.replace(weight_format="nz"))
    ]
    for model in models:
        model.paging = NAN
    want, got = (follow(m, ids, mask, prompt)[0] for m in models)
    assert torch.equal(want, got)
    assert all(x.dq.data_ptr() == x.q_a_proj.weight.data_ptr() for x in prologs(models[1]))


# ---- what bad input gets -------------------------------------------------------------------------


def test_plans() -> None:
    with pytest.raises(PortError, match="mla_prolog writes into blocks.*'paged_cache'"):
        FULL.replace(mla_prolog=True)
    assert not PortPlan.production().mla_prolog
    with pytest.raises(PortError, match=r"no q_lora_rank: leave \+mla_prolog"):
        build(CONFIG.replace(q_lora_rank=None), PROLOG, device="meta")
    for dtype in (torch.float16, torch.float32):
        with pytest.raises(PortError, match="computes in bfloat16, not float"):
            require_prolog(24, "npu", dtype)
    require_prolog(24, "npu", torch.bfloat16)


# ---- the wrong forms -----------------------------------------------------------------------------

Form = Callable[[Callable[..., Any]], Callable[..., Any]]
NAMES = (
    "token_x weight_dq weight_uq_qr weight_uk weight_dkv_kr rmsnorm_gamma_cq rmsnorm_gamma_ckv rope_sin "
    "rope_cos kv_cache kr_cache"
).split()


def with_changed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Form:
    def form(right: Callable[..., Any]) -> Callable[..., Any]:
        def call(*tensors: Tensor, **given: Any) -> Any:
            values = dict(zip(NAMES, tensors, strict=True)) | given
            values |= change(values)
            first = [values.pop(name) for name in NAMES]
            return right(*first, **values)

        return call

    return form


def halves_for_pairs(v: dict[str, Any]) -> dict[str, Any]:
    """The rotary columns of the keys as another model has them."""
    rotary = v["rope_cos"].shape[-1]
    weight = v["weight_dkv_kr"].clone()
    weight[:, -rotary:] = weight[:, -rotary:].unflatten(-1, (2, -1)).transpose(1, 2).flatten(1)
    return {"weight_dkv_kr": weight}


def rope_before_nope(v: dict[str, Any]) -> dict[str, Any]:
    heads = v["weight_uk"].shape[0]
    weight = v["weight_uq_qr"].unflatten(-1, (heads, -1))
    return {"weight_uq_qr": weight.roll(v["rope_cos"].shape[-1], -1).flatten(1).contiguous()}


def v2_results(right: Callable[..., Any]) -> Callable[..., Any]:
    """Of whoever takes the results as npu_mla_prolog_v2 orders them: caches third and fourth."""

    def prolog(
        self: PrologAttention, hidden: Tensor, inputs: StepInputs, buffers: list[Tensor]
    ) -> Any:
        real, seen = ops.npu_mla_prolog_v3, []

        def call(*args: Any, **given: Any) -> Any:
            seen.append(real(*args, **given))
            return seen[-1]

        ops.npu_mla_prolog_v3 = call  # type: ignore[assignment]
        try:
            query, query_rope = right(self, hidden, inputs, buffers)
        finally:
            ops.npu_mla_prolog_v3 = real
        _, _, kv_cache, kr_cache, _ = seen[-1]
        buffers[:] = [kr_cache.view(1, 1, 1, -1), kv_cache.view(1, 1, 1, -1)]
        return query, query_rope

    return prolog


MUTATIONS: dict[str, tuple[Any, str, Form]] = {
    "a slot one behind": (
        ops,
        "npu_mla_prolog_v3",
        with_changed(lambda v: {"cache_index": v["cache_index"] - 1}),
    ),
    "padding's slots written": (
        ops,
        "npu_mla_prolog_v3",
        with_changed(lambda v: {"cache_index": v["cache_index"] * 0 + v["cache_index"].max()}),
    ),
    "cos before sin, as everywhere else": (
        ops,
        "npu_mla_prolog_v3",
        with_changed(lambda v: {"rope_sin": v["rope_cos"], "rope_cos": v["rope_sin"]}),
    ),
    "another epsilon of the queries' latent": (
        ops,
        "npu_mla_prolog_v3",
        with_changed(lambda v: {"rmsnorm_epsilon_cq": 1e-1}),
    ),
    "another epsilon of the keys' latent": (
        ops,
        "npu_mla_prolog_v3",
        with_changed(lambda v: {"rmsnorm_epsilon_ckv": 1e-1}),
    ),
    "rotary channels in halves": (ops, "npu_mla_prolog_v3", with_changed(halves_for_pairs)),
    "rotary channels before the others": (
        ops,
        "npu_mla_prolog_v3",
        with_changed(rope_before_nope),
    ),
    "gamma of another width, repeated": (
        ops,
        "npu_mla_prolog_v3",
        with_changed(lambda v: {"rmsnorm_gamma_ckv": v["rmsnorm_gamma_ckv"].roll(64)}),
    ),
    "results in npu_mla_prolog_v2's order": (PrologAttention, "prolog", v2_results),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_mutations(fixed, name, monkeypatch) -> None:
    """Each wrong form fails strict_gate, or an operator refuses it."""
    place, attribute, wrong = MUTATIONS[name]
    monkeypatch.setattr(place, attribute, wrong(getattr(place, attribute)))
    try:
        verdict = strict_gate(fixed, fused(fixed))
    except ValueError as error:
        assert "v2's order" in name and "npu_fused_infer_attention_score_v2" in str(error)
    else:
        assert not verdict


def test_weights_that_are_not_laid_out_are_refused(fixed) -> None:
    """[out, in], as every checkpoint has them: the shape tells."""
    model = fused(fixed)
    cache = model.new_cache(1, 20)
    for layer in prologs(model):
        layer.dq = layer.q_a_proj.weight.data.contiguous()
    model(torch.arange(3, 12).unsqueeze(0), cache=cache)
    with pytest.raises(ValueError, match="npu_mla_prolog_v3: weight_dq is"):
        model(torch.tensor([[3]]), cache=cache)

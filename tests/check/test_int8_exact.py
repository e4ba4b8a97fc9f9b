"""W8A8 held to its definition, and what it costs: against the loader, the numpy definition and by hand."""

from __future__ import annotations

import pytest
import torch

from dsv3_port import PortError, PortPlan, load_model
from dsv3_port.check.int8_costs import (
    int8_twin,
    matrix_errors,
    rounded_weights,
    with_outlier,
    zero_codes,
)
from dsv3_port.check.int8_exact import EXPERTS, LINEAR, MLP, int8_exact, replayed_others
from dsv3_port.check.quality import quality, quality_rows, recorded_quality
from dsv3_port.engine.graph import is_compiled
from dsv3_port.engine.loading import with_plan
from dsv3_port.model import int8
from dsv3_port.paths import tiny
from tests import int8_definition as definition
from tests.model.int8_calls import wrong_forms
from tests.random_models import random_model

FULL = PortPlan.full()
W8A8 = FULL.replace(quant="w8a8")
IDS = torch.randint(3, 900, (2, 11), generator=torch.Generator().manual_seed(6))


@pytest.fixture(scope="module")
def small():
    return load_model(tiny(), W8A8, "cpu", "float32")


@pytest.fixture(scope="module")
def plain():
    return load_model(tiny(), FULL, "cpu", "float32")


def test_every_int8_layer_is_the_definition(small):
    held = int8_exact(small, IDS, cached=2)
    layers, calls = small.config.num_hidden_layers, 3
    assert [h.kind for h in held] == [LINEAR, MLP, EXPERTS]
    assert [h.calls for h in held[:2]] == [4 * layers * calls, layers * calls]
    tokens = 2 * 9 + 2 * 2  # prompt and two steps
    top, width = small.config.num_experts_per_tok, small.config.hidden_size
    assert held[2].numbers == (layers - 1) * tokens * top * width
    assert held[1].numbers == layers * tokens * width
    assert all(h.others == 0 for h in held)
    assert not any("multiply" in vars(m) for m in small.modules())  # nothing is left behind


@pytest.mark.parametrize("name", wrong_forms())
def test_a_wrong_form_has_other_bits(small, name):
    with wrong_forms()[name]():
        try:
            held = int8_exact(small, IDS, cached=1)
        except (PortError, RuntimeError, ValueError):
            return
    assert sum(h.others for h in held) > 0


def test_a_learners_function_is_looked_at(small):
    twin = with_plan(small, small.plan)
    at = twin.model.layers[2].self_attn.o_proj
    at.int8_linear = lambda x, weight, scale: torch.nextafter(
        int8.linear(x, weight, scale), torch.tensor(torch.inf)
    )
    held = {h.kind: h for h in int8_exact(twin, IDS, cached=1)}
    width = small.config.hidden_size
    assert held[LINEAR].others == (2 * 10 + 2) * width and not held[MLP].others


def test_definitions_are_one():
    """The package's, in torch, and the tests' own in numpy."""
    from dsv3_port.check.int8_exact import _mlp, _product, _token

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 48, generator=generator).bfloat16()
    x[2] = 0
    pairs = [
        (
            torch.randint(-127, 128, shape, generator=generator).to(torch.int8),
            torch.rand(shape[0], 1, generator=generator) / 100,
        )
        for shape in ((64, 48), (48, 32))
    ]
    assert torch.equal(_product(*_token(x), *pairs[0], x.dtype), definition.linear(x, *pairs[0]))
    assert torch.equal(_mlp(x, *pairs), definition.merged_mlp(x, *pairs))


def test_replays_give_the_same_bits_and_a_changed_step_does_not(small):
    assert replayed_others(small, IDS, cached=3) == (2 * 3 * small.config.vocab_size, 0)
    assert not is_compiled(small)
    twin = with_plan(small, small.plan)
    at, calls = twin.model.layers[0].self_attn.q_a_proj, []

    def counted(x, weight, scale):
        calls.append(1)  # what Python does is not on the tape
        return int8.linear(x, weight, scale) * (1 + len(calls) / 64)

    at.int8_linear = counted
    assert replayed_others(twin, IDS, cached=3)[1] > 0


def test_what_has_no_int8_is_refused(plain):
    with pytest.raises(PortError, match="give a W8A8 model"):
        int8_exact(plain, IDS)
    with pytest.raises(PortError, match="give a float model"):
        int8_twin(int8_twin(plain))


def test_a_twin_of_float_weights_is_what_the_loader_makes(plain, small):
    twin = int8_twin(plain)
    assert twin.plan == small.plan
    for (name, a), (other, b) in zip(
        twin.state_dict().items(), small.state_dict().items(), strict=True
    ):
        assert name == other and a.dtype == b.dtype and torch.equal(a, b), name


def test_rounded_weights_are_the_codes_values(plain, small):
    rounded = rounded_weights(plain).state_dict()
    at = "model.layers.1.mlp.experts.group_w2"
    codes, scale = (small.state_dict()[n] for n in (at, f"{at}_scale"))
    assert torch.equal(rounded[at], codes * scale)
    assert torch.equal(rounded["lm_head.weight"], plain.lm_head.weight)


@pytest.mark.parametrize("factor", [4.0, 256.0])
def test_an_outlier_changes_no_bit_in_float_and_much_in_int8(plain, factor):
    same = with_outlier(plain, factor)
    before = {n: p.data_ptr() for n, p in plain.named_parameters()}
    assert torch.equal(same(IDS), plain(IDS))
    near, far = (
        [e.inputs for e in matrix_errors(m, [IDS]) if e.name in ("q_a", "kv_a")]
        for m in (plain, same)
    )
    assert sum(far) > (1.2 if factor == 4 else 20) * sum(near)
    few, many = (zero_codes(m, [IDS]) for m in (plain, same))
    assert few < many < 1 and (factor == 4 or many > 0.5)
    assert before == {n: p.data_ptr() for n, p in plain.named_parameters()}


def test_errors_of_a_product_by_hand(plain):
    found = {(e.name, e.layer): e for e in matrix_errors(plain, [IDS[:1]])}
    layers = plain.config.num_hidden_layers
    assert len(found) == 6 * layers + 2 * (layers - 1)
    assert list(found)[0] == ("q_a", 0) and list(found)[-1] == ("down, experts", layers - 1)
    seen = []
    at = plain.model.layers[1].self_attn.o_proj
    with at.register_forward_pre_hook(lambda module, args: seen.append(args[0])):
        with torch.no_grad():
            plain(IDS[:1])
    x = seen[0].flatten(0, -2)
    codes, scale = definition.weight(at.weight.numpy())
    q, s = definition.token(x.numpy())
    rows, near = codes * scale, q * s[:, None]
    want = x.double().numpy() @ at.weight.double().numpy().T

    def off(y):
        return float(((y - want) ** 2).sum() ** 0.5 / (want**2).sum() ** 0.5)

    mine = found["o", 1]
    assert mine.weights == pytest.approx(off(x.double().numpy() @ rows.T), rel=1e-4)
    assert mine.inputs == pytest.approx(off(near @ at.weight.double().numpy().T), rel=1e-4)
    assert mine.both == pytest.approx(off(near @ rows.T), rel=1e-4)
    assert not any("multiply" in vars(m) for m in plain.modules())


def test_rows_of_the_table():
    model = random_model(FULL.minus("last_token_head"))
    found = quality(model, model, [IDS % 90])
    rows = quality_rows({"itself": found}, "float")
    assert [r[0] for r in rows] == ["float", "itself"]
    assert rows[0][2:] == ("–", "–", "–", "20") and rows[1][2:] == (
        "100.00%",
        "0.00%",
        "0.0%",
        "20",
    )
    kept = recorded_quality()
    cached = {"W8A8, token by token", "W8A8, int8 cache"}
    assert set(kept) == {"int8 weights", "W8A8"} | cached and kept["W8A8"].tokens > 16_000

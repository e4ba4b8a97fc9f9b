"""The strict gate passes every right plan and sees what weaker gates let pass."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dsv3_port import PortPlan, load_model
from dsv3_port.check.compare import compare_models
from dsv3_port.check.equivalence import (
    STEPS_CHECKED,
    check_equivalence,
    difference,
    padding,
    random_ids,
    run,
)
from dsv3_port.check.gate import (
    CACHED,
    LENGTHS,
    MOMENTS,
    compare_recorded,
    gate_batch,
    record_gate,
    stressed,
    strict_gate,
)
from dsv3_port.check.peer import peer_model
from dsv3_port.check.stages import LOGITS, SPARE
from dsv3_port.engine.loading import with_plan
from dsv3_port.errors import PortError
from tests.check.wrong_forms import (
    RIGHT,
    WRONG,
    padding_as_position,
    replaying_one_output,
    with_absorbed,
    without_bias,
)
from tests.model.test_equivalence import ALONE, LADDER, OPTIONS, plan_name

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
IDS, MASK = gate_batch(1024)


@pytest.fixture(scope="module")
def upstream():
    return load_model(TINY, PortPlan.upstream(), "cpu", "float32")


@pytest.fixture(scope="module")
def full():
    return load_model(TINY, PortPlan.full(), "cpu", "float32")


@pytest.fixture(scope="module")
def recorded(upstream):
    return record_gate(upstream)


@pytest.mark.parametrize("plan", LADDER + ALONE + OPTIONS, ids=plan_name)
def test_every_right_plan_passes(plan, recorded):
    verdict = compare_recorded(recorded, record_gate(load_model(TINY, plan, "cpu", "float32")))
    assert verdict and verdict.first is None, str(verdict)
    assert list(verdict.reports) == list(MOMENTS) and len(verdict.stages) == 11
    assert sum(s.endswith("mlp.gate") for s in verdict.stages) == 3


def test_transformers_passes_and_is_the_same_reference(upstream, full, recorded):
    peer = record_gate(peer_model(upstream))
    assert compare_recorded(peer, recorded) and compare_recorded(peer, record_gate(full))


def test_a_verdict_says_what_was_looked_at(full):
    text = str(strict_gate(full, with_plan(full, full.plan), names=("finished", "yours")))
    assert text.startswith("yours equals finished at 11 stages, 3 of them choices of experts")
    assert "prompt, 1 cached, 4 cached" in text and "1e-05" in text
    wrong = strict_gate(full, without_bias(full, 3))
    assert "parts from reference at prompt, stage model.layers.3.mlp.gate: other experts" in str(
        wrong
    )
    assert 'role="status"' in wrong._repr_html_() and "✘" in wrong._repr_html_()


def test_right_absorbed_attention_passes(full):
    assert strict_gate(full, with_absorbed(full, RIGHT))


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_absorbed_attention_is_seen_in_the_first_cached_step(full, mistake):
    wrong = with_absorbed(full, WRONG[mistake])
    assert compare_models(full, wrong, IDS, MASK).ok  # the prompt takes the other path
    moment, row = strict_gate(full, wrong).first
    assert (moment, row.stage) == ("1 cached", "model.layers.0")
    report = compare_models(full, wrong, IDS, MASK, cached=1)
    assert report.first_divergence.stage == "model.layers.0"


def median_gap(a, b, batch=2):
    """As the gate before timings compares in 16 bits, here without padding."""
    ids = random_ids(a, (batch, 28), 0)
    rows = [dataclasses.replace(run(m, ids), exact=False) for m in (a, b)]
    return difference(*rows)


@pytest.mark.parametrize("layer", [1, 3])
def test_a_bias_forgotten_in_one_layer_is_seen(full, layer):
    wrong = without_bias(full, layer)
    moment, row = strict_gate(full, wrong).first
    assert (moment, row.stage) == ("prompt", f"model.layers.{layer}.mlp.gate")
    if layer == 3:
        assert 0 < row.max_abs < sum(LENGTHS) / 2  # of few tokens only
        assert median_gap(full, wrong) < 1e-6


def test_padding_counted_as_position_is_seen(full):
    wrong = padding_as_position(full)
    assert median_gap(full, wrong) < 1e-6  # nothing is padded there
    assert compare_models(full, wrong, IDS, MASK).ok
    assert compare_models(full, wrong, IDS, cached=CACHED).ok
    moment, row = strict_gate(full, wrong).first
    assert (moment, row.stage) == ("1 cached", "model.layers.0")


def test_an_output_that_is_reused_is_seen(full):
    verdict = strict_gate(full, replaying_one_output(full))
    assert verdict.first[0] == "1 cached" and verdict.first[1].stage == LOGITS


def test_stress_tells_a_group_mask_of_zero_from_minus_infinity(full):
    zero = with_plan(full, full.plan.replace(group_mask_value=0.0))
    assert strict_gate(full, zero)
    biases = [m.e_score_correction_bias for m in full.modules() if "Gate" in type(m).__name__]
    moment, row = strict_gate(full, zero, stress=True).first
    assert row.stage == "model.layers.1.mlp.gate" and row.max_abs == sum(LENGTHS)
    after = [m.e_score_correction_bias for m in full.modules() if "Gate" in type(m).__name__]
    assert all(a is b for a, b in zip(biases, after, strict=True))  # back in their place
    assert not strict_gate(stressed(full), stressed(zero))


def test_stress_moves_no_choice_of_the_right_gate(full, upstream):
    twin = stressed(full)
    assert twin.lm_head.weight.data_ptr() == full.lm_head.weight.data_ptr()
    report = compare_models(full, twin, IDS, MASK)
    assert all(r.status == "OK" for r in report.rows if r.stage.endswith("gate"))
    assert strict_gate(upstream, full, stress=True)
    assert strict_gate(peer_model(upstream), full, stress=True)


def test_no_choice_of_the_batch_hangs_by_a_hair(full):
    """Two nearly tied experts would make the gate depend on a machine's order of additions."""
    margins = []
    hooks = [
        m.register_forward_hook(lambda g, args, _: margins.append(_margin(g, args[0])))
        for n, m in full.named_modules()
        if n.endswith("mlp.gate")
    ]
    record_gate(full)
    for hook in hooks:
        hook.remove()
    assert len(margins) == 3 * (1 + CACHED) and min(margins) > 1e-5


def _margin(gate, hidden) -> float:
    scores = (hidden @ gate.weight.T).sigmoid() + gate.e_score_correction_bias
    c = gate.config
    groups = scores.view(-1, c.n_group, scores.shape[1] // c.n_group)
    of_groups = groups.topk(2, -1)[0].sum(-1).sort(-1, descending=True)[0]
    chosen = gate.choose(scores - gate.e_score_correction_bias)
    inside = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)
    kept = inside.view(groups.shape).any(-1, keepdim=True).expand_as(groups).reshape(scores.shape)
    least = scores.masked_fill(~inside, 9.0).amin(-1)
    best_other = scores.masked_fill(inside | ~kept, -9.0).amax(-1)
    by_group = of_groups[:, c.topk_group - 1] - of_groups[:, c.topk_group]
    return float(torch.minimum(least - best_other, by_group).min())


def test_within_a_layer_modules_stand_in_the_order_of_their_outputs(full):
    wrong = with_plan(full, full.plan)
    weight = wrong.model.layers[2].mlp.shared_experts.merge_up_gate_proj.weight
    weight.data = weight.data.roll(weight.shape[0] // 2, 0)
    assert compare_models(full, wrong, IDS, MASK).first_divergence.stage == "model.layers.2"
    report = compare_models(full, wrong, IDS, MASK, within="model.layers.2")
    stages = [row.stage.removeprefix("model.layers.2").lstrip(".") for row in report.rows]
    assert stages[0] == "input_layernorm" and stages[-2:] == ["mlp", ""]
    assert stages.index("self_attn") < stages.index("mlp.gate") < stages.index("mlp.experts")
    clean = {r.stage for r in report.rows if r.status == "OK"}
    assert {"model.layers.2.self_attn", "model.layers.2.mlp.gate"} <= clean
    first = report.first_divergence.stage
    assert first == "model.layers.2.mlp.shared_experts.merge_up_gate_proj"
    one = compare_models(full, wrong, IDS, MASK, within="model.layers.2", cached=2)
    assert one.first_divergence.stage == first


def test_within_compares_what_both_models_have(full, upstream):
    report = compare_models(upstream, full, IDS, MASK, within="model.layers.1.mlp")
    assert report.ok and {r.stage for r in report.rows} >= {"model.layers.1.mlp.gate"}
    with pytest.raises(PortError, match=r"no module of that name.*model\.layers\.0"):
        compare_models(full, full, IDS, within="layers.2")


def test_cached_steps_run_in_a_cache_with_spare_room(full):
    rooms = []
    twin = with_plan(full, full.plan)
    twin.new_cache = lambda batch, room: rooms.append(room) or full.new_cache(batch, room)
    assert compare_models(full, twin, IDS, MASK, cached=CACHED).ok
    assert rooms == [IDS.shape[1] + SPARE]


@pytest.mark.parametrize("cached", [IDS.shape[1], IDS.shape[1] - 5, -1])
def test_every_row_needs_a_prompt(full, cached):
    with pytest.raises(PortError, match="every row needs a token of the prompt"):
        compare_models(full, full, IDS, MASK, cached=cached)


def test_cached_steps_of_transformers_are_the_last_position(upstream, full):
    peer = peer_model(upstream)
    for mask in (None, MASK):
        assert compare_models(peer, full, IDS, mask, cached=3).ok
        wrong = with_absorbed(full, WRONG["parts swapped"])
        assert not compare_models(peer, wrong, IDS, mask, cached=3).ok


@pytest.mark.parametrize("batch", [1, 3])
def test_the_gate_before_timings_sees_few_wrong_tokens_and_padding(full, batch):
    assert (
        max(check_equivalence({"a": full, "b": with_plan(full, full.plan)}, batch=batch).values())
        == 0
    )
    for wrong, why in (
        (
            without_bias(full, 3),
            r"layers\.3\.mlp\.gate chooses other experts for \d+ of \d+ tokens",
        ),
        (padding_as_position(full), "of the largest logit"),
        (with_absorbed(full, WRONG["no mask"]), "of the largest logit"),
    ):
        with pytest.raises(PortError, match=why):
            check_equivalence({"right": full, "wrong": wrong}, batch=batch)


def test_prompts_of_the_gate_before_timings_are_padded():
    for batch, pads in ((1, [8]), (3, [0, 4, 8])):
        mask = padding(torch.zeros(batch, 24 + STEPS_CHECKED))
        assert (mask == 0).sum(1).tolist() == pads and bool(mask[:, 8:].all())
    assert padding(torch.zeros(1, 1 + STEPS_CHECKED)).all()

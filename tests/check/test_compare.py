"""The first diverging stage is named, between plans and against transformers."""

from __future__ import annotations

import pytest
import torch

from dsv3_port.check.compare import compare_models, record_stages, stages
from dsv3_port.check.equivalence import check_equivalence
from dsv3_port.check.peer import peer_model
from dsv3_port.errors import PortError
from dsv3_port.plan import PortPlan
from dsv3_port.steps import STEPS
from tests.random_models import CONFIG, random_model

IDS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[1, :4] = 0
MODEL_STEPS = [s.id for s in STEPS if s.field != "graph"]


@pytest.fixture(scope="module")
def upstream():
    return random_model(PortPlan.upstream())


@pytest.fixture(scope="module")
def peer(upstream):
    return peer_model(upstream)


def test_stages_in_the_order_they_run(upstream):
    assert stages(upstream) == [
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1.mlp.gate",
        "model.layers.1",
        "model.layers.2.mlp.gate",
        "model.layers.2",
        "model.norm",
        "lm_head",
    ]


@pytest.mark.parametrize("mask", [None, MASK], ids=["full", "padded"])
@pytest.mark.parametrize("step_id", [*MODEL_STEPS, "all"])
def test_every_plan_agrees_with_upstream(upstream, step_id, mask):
    plan = PortPlan.full() if step_id == "all" else PortPlan.with_steps(step_id)
    report = compare_models(upstream, random_model(plan), IDS, mask, names=("upstream", step_id))
    assert report.ok and report.first_divergence is None, str(report)
    assert "agree at all 8 stages" in str(report)


@pytest.mark.parametrize("mask", [None, MASK], ids=["full", "padded"])
@pytest.mark.parametrize("plan", [PortPlan.upstream(), PortPlan.full()], ids=["upstream", "full"])
def test_transformers_agrees(peer, plan, mask):
    report = compare_models(random_model(plan), peer, IDS, mask)
    assert report.ok and len(report.rows) == 8, str(report)


def _broken(change) -> torch.nn.Module:
    model = random_model(PortPlan.full())
    with torch.no_grad():
        change(model)
    return model


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (lambda m: m.model.embed_tokens.weight[IDS[0, 0]].add_(1), "model.embed_tokens"),
        (lambda m: m.model.layers[0].self_attn.o_proj.weight.mul_(1.01), "model.layers.0"),
        (
            lambda m: m.model.layers[1].mlp.gate.e_score_correction_bias.mul_(-3),
            "model.layers.1.mlp.gate",
        ),
        (lambda m: m.model.layers[1].mlp.experts.group_w2.mul_(1.01), "model.layers.1"),
        (lambda m: m.model.norm.weight.mul_(2), "model.norm"),
        (lambda m: m.lm_head.weight.mul_(2), "lm_head"),
    ],
)
def test_first_divergence_is_where_the_weights_differ(upstream, change, stage):
    report = compare_models(upstream, _broken(change), IDS, MASK)
    assert report.first_divergence.stage == stage and report.first_divergence.status == "DIFF"
    assert f"part at {stage}" in str(report) and stage in report._repr_html_()


def test_swapped_experts_are_seen_as_indices(upstream):
    broken = _broken(lambda m: m.model.layers[1].mlp.gate.e_score_correction_bias.mul_(-3))
    row = compare_models(upstream, broken, IDS).first_divergence
    assert "other experts for" in row.detail and row.max_abs > 0


def test_missing_and_misshapen_stages(upstream):
    shallow = random_model(PortPlan.full(), CONFIG.replace(num_hidden_layers=2))
    rows = {
        r.stage: r for r in compare_models(upstream, shallow, IDS, names=("deep", "shallow")).rows
    }
    assert (
        rows["model.layers.2"].status == "MISSING"
        and "only in deep" in rows["model.layers.2"].detail
    )
    assert list(rows)[-1] == "lm_head"
    narrow = random_model(PortPlan.full(), CONFIG.replace(hidden_size=48))
    assert compare_models(upstream, narrow, IDS).first_divergence.status == "SHAPE"


def test_not_a_number_is_a_difference(upstream):
    broken = _broken(lambda m: m.model.layers[0].mlp.down_proj.weight.fill_(float("nan")))
    row = compare_models(upstream, broken, IDS).first_divergence
    assert (row.stage, row.status, row.detail) == ("model.layers.0", "DIFF", "not finite")


def test_hooks_are_removed_even_after_an_error(upstream):
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        record_stages(upstream, fail)
    assert not any(m._forward_hooks for m in upstream.modules())


def test_compiled_step_is_left_alone(upstream):
    model = random_model(PortPlan.full())
    compiled = model.run_step = lambda *a: pytest.fail("the compiled step has no hooks")
    assert compare_models(upstream, model, IDS).ok
    assert model.run_step is compiled


def test_input_must_be_a_batch(upstream):
    with pytest.raises(PortError, match=r"\[batch, sequence\]"):
        compare_models(upstream, upstream, IDS[0])


def test_equivalence_gate(upstream, peer):
    models = {"upstream": upstream, "full": random_model(PortPlan.full()), "transformers": peer}
    worst = check_equivalence(models, batch=2)
    assert worst["upstream"] == 0 and max(worst.values()) <= 1e-5
    broken = _broken(lambda m: m.model.layers[2].self_attn.kv_b_proj_w_v.mul_(1.1))
    with pytest.raises(PortError, match="'broken' differs from 'upstream'"):
        check_equivalence({"upstream": upstream, "broken": broken})
    with pytest.raises(PortError, match="no models"):
        check_equivalence({})

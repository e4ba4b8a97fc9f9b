"""The one-page picture and tables say what the layout table and the config say."""

from __future__ import annotations

import dataclasses

import pytest

from dsv3_port.config import DeepseekV3Config
from dsv3_port.forecast.anatomy import component_params, config_rows, cut_rows
from dsv3_port.forecast.planner import active_params, total_params
from dsv3_port.plan import PortPlan
from dsv3_port.plots.model_map import model_picture
from dsv3_port.plots.parameters import parameter_picture
from dsv3_port.steps import STEPS
from tests.random_models import CONFIG

V3 = DeepseekV3Config.preset("v3-671b")


@pytest.mark.parametrize("config", [V3, CONFIG, DeepseekV3Config.preset("w1")])
def test_components_add_up(config):
    parts = component_params(config)
    assert sum(stored for stored, _ in parts.values()) == total_params(config)
    assert sum(active for _, active in parts.values()) == active_params(config)


def test_the_published_model_in_the_table():
    rows = {row[""]: row["V3"] for row in config_rows({"V3": V3})}
    assert rows["parameters"] == "671 B" and rows["of them active for a token"] == "36.6 B"
    assert rows["layers (of them dense)"] == "61 (3)" and rows["V vocabulary"] == "129,280"


@pytest.mark.parametrize("plan", [PortPlan.full(), PortPlan.with_steps("tensor_parallel")])
def test_cut_rows_name_the_axis(plan):
    rows = {row["parameter"]: row for row in cut_rows(V3, plan, 8)}
    assert rows["self_attn.o_proj"]["cut"] == "inputs (dim 1)"
    assert rows["self_attn.o_proj"]["rank 0 of 8"] == "[7168, 2048]"
    assert rows["self_attn.kv_a_proj_with_mqa"]["cut"] == rows["mlp.gate"]["cut"] == "whole"
    assert rows["embed_tokens"]["rank 0 of 8"] == "[16160, 7168]"
    if plan == PortPlan.full():
        assert rows["mlp.experts.group_w1_w3"] == {
            "parameter": "mlp.experts.group_w1_w3",
            "published": "512 × [2048, 7168]",
            "cut": "outputs (dim 0)",
            "rank 0 of 8": "[256, 512, 7168]",
        }
    else:
        assert (
            rows["self_attn.kv_b_proj"]["cut"]
            == rows["mlp.experts.gate_proj"]["cut"]
            == "outputs (dim 0)"
        )


def test_pictures_carry_their_words():
    figure = parameter_picture({"V3": V3, "small": CONFIG})
    assert "V3 stored 671 B: experts 97%" in figure.alt_text and len(figure.png()) > 5000
    figure = model_picture(V3, "DeepSeek-V3")
    assert (
        "kv_b_proj expands each row to 128 × (128 + 128)" in figure.alt_text
        and "2 attention" in figure.alt_text
    )
    for step in STEPS:
        assert step.field == "graph" or f"{step.number} " in figure.alt_text


def test_models_without_the_low_query_rank_are_drawn():
    assert "low rank none" in model_picture(dataclasses.replace(CONFIG, q_lora_rank=None)).alt_text

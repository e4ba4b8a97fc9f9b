"""The registry: what it names exists, and plans are what they say."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest

from dsv3_port import STEPS, PortError, PortPlan
from dsv3_port.course.show import progress_map
from dsv3_port.model.forms import FORMS
from dsv3_port.plan import CHOICES
from dsv3_port.steps import FUSED, PRODUCTION, ROUNDING, SECOND, SERVING, change, step

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("s", STEPS, ids=lambda s: s.id)
def test_every_name_in_the_registry_exists(s):
    for place in (s.before, s.after):
        module, name = place.split(":")
        assert hasattr(importlib.import_module(f"dsv3_port.{module}"), name)
    assert (ROOT / "notebooks" / f"{s.notebook}.ipynb").is_file()
    assert getattr(PortPlan(), s.field) == s.upstream != s.ported
    assert s.tolerance["float32"] <= 1e-5


@pytest.mark.parametrize("s", SECOND, ids=lambda s: s.id)
def test_every_name_of_part_two_exists(s):
    for place in (s.before, s.after):
        module, _, name = place.partition(":")
        found = importlib.import_module(f"dsv3_port.{module}")
        for part in name.split("."):
            found = getattr(found, part)
    assert not s.notebook or (ROOT / "notebooks" / f"{s.notebook}.ipynb").is_file()


def test_what_is_beside_the_ladder_is_no_step():
    for s in (*SERVING, *ROUNDING, *FUSED):
        assert (s.number, s.field) == ("", "") and change(s.id) is s
        with pytest.raises(PortError, match=f"unknown step '{s.id}'"):
            PortPlan.with_steps(s.id)
    assert change("9") is step("paged_cache")


def test_plans():
    assert PortPlan.upstream() == PortPlan() and PortPlan.upstream().step_ids == ()
    assert PortPlan.full().step_ids == tuple(s.id for s in STEPS if s.field != "graph")
    assert PortPlan.upto("mla_low_rank").step_ids == ("tensor_parallel", "mla_low_rank")
    assert PortPlan.upto("2") == PortPlan.upto("mla_low_rank")
    assert PortPlan.with_steps("merged_mlp").step_ids == ("merged_mlp",)
    assert PortPlan.full().minus("merged_mlp").plus("merged_mlp") == PortPlan.full()
    assert PortPlan.upto("aclgraph").graph == "aclgraph"


def test_steps_and_the_choices_of_a_plan_agree():
    assert set(CHOICES) == {f.name for f in dataclasses.fields(PortPlan)}
    assert all(getattr(PortPlan(), name) == values[0] for name, values in CHOICES.items())
    for s in STEPS:
        assert s.upstream == CHOICES[s.field][0] and s.ported in CHOICES[s.field][1:]
    for s in PRODUCTION:
        assert s.upstream in CHOICES[s.field] and s.ported in CHOICES[s.field][1:]
    own = {s.field for s in (*STEPS, *PRODUCTION)} | {
        "prefill_attention",
        "decode_attention",
        "npu_routing_kernel",
        "quant",
        "mla_prolog",
        "kv_cache_dtype",
        "weight_format",
        "group_mask_value",
    }
    assert own == set(CHOICES)


def test_the_forms_are_those_of_the_plan_and_of_the_steps():
    assert all(tuple(forms) == CHOICES[field] for field, forms in FORMS.items())
    assert {s.field for s in STEPS} - set(FORMS) == {"tensor_parallel", "graph"}
    for s in STEPS:
        if s.field in FORMS:
            forms = FORMS[s.field]
            for place, form in ((s.before, forms[s.upstream]), (s.after, forms[s.ported])):
                module, name = place.split(":")
                assert getattr(importlib.import_module(f"dsv3_port.{module}"), name) is form


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(
        PortError, match="unknown step 'merge'; the steps are tensor_parallel, mla_low_rank"
    ):
        PortPlan.with_steps("merge")
    with pytest.raises(PortError, match="PortPlan.mlp is 'fused'; it can be 'split' or 'merged'"):
        PortPlan(mlp="fused")


def test_progress_map_marks_the_notebook():
    lines = progress_map("06b_small_operators").splitlines()
    assert len(lines) == len(STEPS) + 2
    assert [line.split("|")[1].strip() for line in lines if "▶" in line] == [
        "6.2",
        "6.3",
        "6.4",
    ]
    assert step("4").id == "one_hot_gate"
    lines = progress_map("12_paged_cache").splitlines()
    assert len(lines) == len(STEPS) + len(SECOND) + 2
    assert [line.split("|")[1].strip() for line in lines if "▶" in line] == ["9"]
    lines = progress_map("13_mtp").splitlines()
    assert [line.split("|")[1].strip() for line in lines if "▶" in line] == ["10"]
    here = [line for line in progress_map("14_slots").splitlines() if "▶" in line]
    assert len(here) == 1 and here[0].startswith("|  | **▶ Continuous batching")
    here = [line for line in progress_map("15_int8").splitlines() if "▶" in line]
    assert len(here) == 1 and here[0].startswith("|  | **▶ W8A8")
    here = [line for line in progress_map("16_one_launch").splitlines() if "▶" in line]
    assert len(here) == 1 and here[0].startswith("|  | **▶ One launch")

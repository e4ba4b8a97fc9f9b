"""Contracts as data: every enforced rule has a test, and what is said to be refused is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsv3_port.hostnpu.rules import (
    ENFORCED,
    REFUSED,
    RULES,
    enforced_by,
    operators,
    refused_table,
    rules_table,
)

from .processes import needs_torch_npu, output

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.operator}: {r.rule[:40]}")
def test_no_enforced_rule_without_a_test(rule: object) -> None:
    r = next(r for r in RULES if r is rule)
    assert r.host in ("yes", "no") and r.source and (r.test or r.host == "no")
    if r.test:
        file, function = r.test.split("::")
        text = (TESTS / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {function}\(", text, re.M), r.test


def test_tables_have_a_row_each() -> None:
    assert len(rules_table().splitlines()) == len(RULES) + 2
    assert len(refused_table().splitlines()) == len(REFUSED) + 2


@needs_torch_npu
def test_what_is_said_to_be_refused_is() -> None:
    code = """
import dsv3_port.hostnpu as h
from dsv3_port.hostnpu import operators
h.enable()
from dsv3_port.hostnpu.registry import names
names = sorted(n.removeprefix("npu::") for n in names("npu"))
print([n for n in names if operators.host_kernel(n) is None and n.split(".")[0] not in operators.NATIVE])
"""
    refused = eval(output(code))
    assert set(REFUSED) <= set(refused)


def test_every_operator_of_the_host_npu_has_a_rule() -> None:
    """Gradients and work buffers aside, which are no operators that a program calls."""
    from dsv3_port.hostnpu.operators import ADAPTED
    from dsv3_port.ops import OPERATORS

    ours = {name.partition(".")[0] for name in (*ADAPTED, *OPERATORS)}
    inner = ("_backward", "_grad", "_grad_v2", "_grad_v3", "_get_max_workspace", "_infer_output")
    own = (
        "npu_gmm",
        "npu_gmm_v2",
        "_npu_moe_token_unpermute",
    )  # MindSpeed's; npu_moe_token_unpermute
    wanted = {n for n in ours if not n.endswith(inner)} - set(own)
    wanted -= {n for n in wanted if "backward" in n}  # repeat_interleave_backward_int
    assert not wanted - {name for rule in RULES for name in operators(rule)}


def test_who_enforces_a_rule_is_the_first_row_that_fits() -> None:
    assert enforced_by("npu_prefetch", "max_size", "a positive number") == (
        "host code, shape function"
    )
    assert enforced_by("scatter_update_", "indices", "…; the device does not check") == "no"
    assert enforced_by("npu_rms_norm", "gamma", "float32") == "CANN"
    assert all(len(row) == 4 for row in ENFORCED)
    known = {name for rule in RULES for name in operators(rule)} | {"*"}
    assert {row[0] for row in ENFORCED} <= known

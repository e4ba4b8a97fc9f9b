"""Contracts as data: every enforced rule has a test, and what is said to be refused is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsv3_port.hostnpu.rules import REFUSED, RULES, refused_table, rules_table

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
from dsv3_port.hostnpu.registry import full_name, overloads
names = [full_name(op._schema).removeprefix("npu::") for op in overloads("npu")]
print([n for n in names if operators.host_kernel(n) is None and n.split(".")[0] not in operators.NATIVE])
"""
    refused = eval(output(code))
    assert set(REFUSED) <= set(refused)

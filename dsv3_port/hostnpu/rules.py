"""The rules that the host NPU holds programs to, and what it refuses, as data (rules.json):
docs/host-npu.md prints both, and a test asks that each rule names a test which would fail without it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).with_name("rules.json")


@dataclass(frozen=True)
class Rule:
    """source: where the rule is written down. device: whether torch_npu or the device enforces it
    ("shape function": only that does). host: whether the host NPU does. vendor: the vendor's test
    that covers it. test: ours, as file::function below tests/. "" where there is none."""

    operator: str
    rule: str
    source: str
    device: str
    host: str
    vendor: str
    test: str


_data = json.loads(DATA.read_text(encoding="utf-8"))
RULES = tuple(Rule(**rule) for rule in _data["rules"])
# an operator that stays refused by name -> what it stands for
REFUSED: dict[str, str] = _data["refused"]
# (operator or *, argument, words of what it must be, who else enforces that): the first one that fits.
# Read in torch_npu's C++ (op_plugin/ops/opapi) and its shape functions; what stands in neither is left
# to CANN, whose sources were not read
ENFORCED: tuple[tuple[str, str, str, str], ...] = tuple(tuple(row) for row in _data["enforced"])


def operators(rule: Rule) -> list[str]:
    """The names in a rule's first column, `_v2` written out."""
    names: list[str] = []
    for word in rule.operator.split(", "):
        short = word.startswith("_") and not word.startswith("_npu")
        names.append(re.sub(r"_(v\d|permute)$", "", names[0]) + word if short else word)
    return names


def enforced_by(operator: str, argument: str, wants: str) -> str:
    """Who on the device's side enforces what an argument must be, as far as it is known."""
    for name, about, words, who in ENFORCED:
        if name in ("*", operator) and about in ("", argument) and words in wants:
            return who
    return "CANN"


def rules_table() -> str:
    rows = [
        "| operator | rule | source | device enforces | host NPU enforces | vendor's test | ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in RULES:
        ours = f"`{r.test.split('::')[1]}`" if r.test else "–"
        cells = [f"`{r.operator}`", r.rule, r.source, r.device, r.host, r.vendor or "–", ours]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def refused_table() -> str:
    rows = ["| operator | what it stands for |", "|---|---|"]
    return "\n".join(rows + [f"| `{name}` | {why} |" for name, why in REFUSED.items()])

"""The rules that the host NPU holds programs to, and what it refuses, as data (rules.json):
docs/host-npu.md prints both, and a test asks that each rule names a test which would fail without it."""

from __future__ import annotations

import json
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
REFUSED: dict[str, str] = _data[
    "refused"
]  # an operator that stays refused by name -> what it stands for


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

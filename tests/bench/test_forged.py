"""Records come from others too: what no machine can have made is refused, markup is text."""

from __future__ import annotations

import copy
import json

import pytest

from dsv3_port import PortError
from dsv3_port.bench import cases, records
from dsv3_port.paths import recorded_file

FILE = recorded_file("bench-peer-cpu.json")


@pytest.mark.parametrize(
    "field,value",
    [
        ("samples", 0.0),
        ("samples", -0.002),
        ("samples", 1e-30),
        ("samples", float("nan")),
        ("samples", float("inf")),
        ("samples", 1e9),
        ("date", "yesterday"),
        ("date", ""),
        ("threads", -4),
        ("busy_share", 7.0),
        ("busy_share", float("nan")),
        ("inner", 0),
        ("batch", -1),
        ("first_call_seconds", -1.0),
    ],
)
def test_what_no_machine_can_have_made(field, value, tmp_path):
    made = json.loads(FILE.read_text("utf-8"))
    row = made["cases"][0]["records"][0]
    row[field] = [value] * len(row["samples"]) if field == "samples" else value
    file = tmp_path / FILE.name
    file.write_text(json.dumps(made))
    with pytest.raises(PortError, match=field):
        cases.load(file)
    file.write_text(json.dumps([{k: v for k, v in row.items() if k not in records._DERIVED}]))
    with pytest.raises(PortError, match=field):
        records.load(file)


def test_a_cache_that_is_read_faster_than_any_memory():
    case = copy.deepcopy(cases.load(FILE).cases[0])
    name = case.records[0].name
    case.facts.setdefault(name, {})["kv_bytes"] = 2e14 * min(case.records[0].samples)
    with pytest.raises(PortError, match="more than any memory"):
        cases.check(case, "x")


def test_markup_in_a_record_is_text(tmp_path):
    evil = "<img src=x onerror=alert(1)>|<script>alert(2)</script>"
    rows = [
        {
            "name": name,
            "samples": [0.01, 0.011],
            "device": "cpu",
            "device_name": evil,
            "tier": "cpu",
            "date": "2026-01-01T00:00:00+00:00",
            "versions": {"torch": evil},
            "run": "r",
            "phase": evil,
        }
        for name in ("upstream", evil)
    ]
    file = tmp_path / "results.json"
    file.write_text(json.dumps(rows))
    text = records.load(file)._repr_markdown_()
    assert "&lt;script&gt;" in text and "<" not in text
    assert (
        len({line.replace("\\|", "").count("|") for line in text.splitlines() if line[:1] == "|"})
        == 1
    )

"""A record of a real (small) run: signed off, read back, refused where something in it does not
hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from dsv3_port import cli
from dsv3_port.bench import record
from dsv3_port.doctor import npu_smi
from dsv3_port.errors import PortError
from dsv3_port.paths import repo_root, tiny
from dsv3_port.steps import TOLERANCE

RECORDED = repo_root() / "data" / "recorded"
SMALL = {"context": 24, "prefill": 12, "rounds": 2, "compiled": False, "busy": True}


@pytest.fixture(scope="module")
def made() -> record.Recorded:
    """What a run leaves. `busy`: other tests may run beside this one."""
    return record.make_record("cpu", str(tiny()), **SMALL, command=["dsv3-port", "record"])


def test_a_record_is_signed_off_by_the_checks_of_its_run(made):
    assert made.tier == "cpu" and made.command == "dsv3-port record" and made.repeats == 2
    assert {r.name for r in made.records} == made.sign_off.differences.keys()
    assert max(made.sign_off.differences.values()) <= made.sign_off.bound == TOLERANCE["float32"]
    assert made.sign_off.greedy_models == ["upstream", "full port", "transformers"]
    assert made.sign_off.greedy_tokens > 10
    assert {r.phase for r in made.records} == {"prefill", "decode"}
    assert all(len(r.samples) == 2 for r in made.records)
    assert made.versions["torch"] and made.host.cores >= 1


def test_it_is_read_back_as_it_was_and_a_second_one_does_not_overwrite_it(made, tmp_path):
    first, second = record.save(made, tmp_path), record.save(made, tmp_path)
    assert first.name.startswith("cpu-") and first.name.endswith(f"-{made.date[:10]}.json")
    assert second.name == first.name.replace(".json", "-2.json")
    assert record.load(first) == made
    row = json.loads(first.read_text(encoding="utf-8"))["records"][0]
    assert min(row["samples"]) <= row["q1"] <= row["median"] <= row["q3"] <= max(row["samples"])
    (tmp_path / "ladder-cpu.json").write_text("[]", encoding="utf-8")
    assert list(record.load_all(tmp_path)) == [second.name, first.name]


def test_a_record_that_does_not_hold_is_refused(made):
    off = made.sign_off
    name = made.records[-1].name
    faulty = {
        "was timed and never checked": {
            "sign_off": dataclasses.replace(
                off, differences={n: d for n, d in off.differences.items() if n != name}
            )
        },
        "differs from upstream by": {
            "sign_off": dataclasses.replace(off, differences=off.differences | {name: 0.5})
        },
        "differs from upstream by nan": {
            "sign_off": dataclasses.replace(off, differences=off.differences | {name: float("nan")})
        },
        "records of tier": {"tier": "npu"},
        "samples": {"repeats": 3},
        "with a bound of 1e+00": {"sign_off": dataclasses.replace(off, bound=1.0)},
    }
    for message, change in faulty.items():
        with pytest.raises(PortError, match=message.replace("+", r"\+")):
            record.check(dataclasses.replace(made, **change), "file")


def test_a_file_that_is_none_is_named(made, tmp_path):
    file = record.save(made, tmp_path)
    content = json.loads(file.read_text(encoding="utf-8"))
    for change, message in (
        ({"tier": "host-npu"}, "tier"),
        ({"format": 2}, "format"),
        ({"extra": 1}, "extra"),
        ({"records": []}, "records"),
    ):
        file.write_text(json.dumps(content | change), encoding="utf-8")
        with pytest.raises(PortError, match=message):
            record.load(file)
    for text in ("[]", "{", "{}"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(PortError, match="no record"):
            record.load(file)


def test_the_host_stand_in_is_refused(monkeypatch):
    monkeypatch.setattr(record, "device_info", lambda device: {"tier": "host-npu"})
    with pytest.raises(PortError, match="stand-in is no NPU"):
        record.make_record("cpu")


def test_a_busy_machine_is_refused_unless_asked_for(made, monkeypatch):
    results = record.Results(
        [dataclasses.replace(r, busy=True, busy_share=0.5) for r in made.records],
        made.sign_off.differences,
    )
    monkeypatch.setattr(record, "bench_ladder", lambda *args, **kwargs: results)
    monkeypatch.setattr(record, "_same_text", lambda device: (made.sign_off.greedy_models, 1))
    with pytest.raises(PortError, match="50% of this machine"):
        record.make_record("cpu", rounds=2)
    kept = record.make_record("cpu", rounds=2, busy=True)
    assert all(r.busy for r in kept.records)


def test_versions_of_cann_and_driver_are_kept_on_an_npu(monkeypatch, tmp_path):
    info = tmp_path / "x86_64-linux" / "ascend_toolkit_install.info"
    info.parent.mkdir()
    info.write_text("version=9.1.0\n", encoding="utf-8")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    monkeypatch.setattr(npu_smi, "_asked", lambda: ("24.1.0", []))
    assert record._ascend("npu") == {"cann": "9.1.0", "npu_smi": "24.1.0"}
    assert record._ascend("cpu") == {}


def test_the_command_writes_where_it_says(made, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(record, "make_record", lambda *args, **kwargs: made)
    assert cli.main(["record", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("cpu-*.json")
    out = capsys.readouterr().out
    assert f"written as {file}" in out and "signed off" in out
    assert cli.main(["record", "--rounds", "0"]) == 2


def test_what_ships_holds():
    found = record.load_all(RECORDED)
    assert [r for r in found.values() if r.tier == "cpu"]
    for name, content in found.items():
        assert not any(r.busy for r in content.records), name
        assert Path(name).stem.startswith(content.tier)


def test_rows_show_the_full_port_against_upstream(made):
    found = record.rows({"a.json": made})
    assert [(row[0], row[3], row[4]) for row in found] == [
        ("a.json", phase, "last_token_head, eager") for phase in ("decode", "prefill")
    ]
    assert all("×" in row[5] for row in found)

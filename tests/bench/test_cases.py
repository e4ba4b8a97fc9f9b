"""ci/bench/speed.py and what is behind it, on models of a few kilobytes: what a case holds, what is
refused, what ships."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import pytest
import torch

from dsv3_port.bench import cases as bench
from dsv3_port.bench import parts as bench_parts
from dsv3_port.bench import parts_peer, peer_forms
from dsv3_port.bench import speed_tables as bench_tables
from dsv3_port.bench.records import FAIR, UPSTREAM
from dsv3_port.errors import PortError
from dsv3_port.paths import repo_root
from dsv3_port.weights.synthetic import synthetic_checkpoint
from tests.random_models import CONFIG

pytestmark = pytest.mark.filterwarnings("ignore:other processes used")
RECORDED = repo_root() / "data" / "recorded"
AT = {"device": "cpu", "dtype": "float32", "rounds": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic_checkpoint(
        dataclasses.replace(CONFIG, fp8=True), cache_dir=tmp_path_factory.mktemp("bench")
    )


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    """The forms are compared and timed as they are; that they compile is what tests/engine and the
    bench show."""
    for module in (bench_parts, parts_peer):
        monkeypatch.setattr(module, "compile_steps", lambda model, mode: model)
    monkeypatch.setattr(peer_forms, "compile_peer", lambda forward, **options: forward)


@pytest.fixture(scope="module")
def made(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_peer, "compile_steps", lambda model, mode: model)
        patch.setattr(peer_forms, "compile_peer", lambda forward, **options: forward)
        return bench_parts.peer_case(folder, "few", phase="decode", batch=2, size=10, **AT)


def test_every_form_of_the_peer_agrees_before_it_is_timed(made):
    forms = [f.name for f in peer_forms.peer_forms(torch.float32)]
    assert (
        set(made.results.names) == {UPSTREAM, FAIR, bench.FULL, "ge_graph", *forms}
        and not made.left_out
    )
    assert (
        made.differences.keys() == set(made.results.names)
        and max(made.differences.values()) <= made.bound
    )
    assert bench_tables.best_peer(made) in forms
    assert all(
        (r.context, r.batch, r.phase, len(r.samples)) == (10, 2, "decode", 2) for r in made.records
    )


def test_a_form_that_raises_is_left_out_with_its_reason(folder, monkeypatch):
    def compile_peer(forward, **options):
        def call(*args, **kwargs):
            raise RuntimeError("no such\n kernel")

        return call

    monkeypatch.setattr(peer_forms, "compile_peer", compile_peer)
    found = bench_parts.peer_case(folder, "few", phase="decode", batch=1, size=6, **AT)
    assert list(found.left_out.values()) == ["RuntimeError: no such kernel"]
    assert next(iter(found.left_out)) not in found.results.names


def test_a_form_that_computes_something_else_stops_the_case(folder, monkeypatch):
    forward = peer_forms.Peer.forward
    monkeypatch.setattr(peer_forms.Peer, "forward", lambda self, ids: forward(self, ids).flip(-1))
    with pytest.raises(PortError, match="differs from 'upstream'.*nothing was timed"):
        bench_parts.peer_case(folder, "few", phase="decode", batch=1, size=6, **AT)


def test_prefill_compares_the_last_position_only(folder):
    found = bench_parts.peer_case(folder, "few", phase="prefill", batch=1, size=9, **AT)
    assert (
        "transformers, batched_mm" not in found.results.names
    )  # it would copy every token's experts
    assert {r.tokens for r in found.records} == {9}


def test_ladder_counts_beside_the_times(folder, monkeypatch):
    monkeypatch.setattr("dsv3_port.engine.graph.compile_steps", lambda model, mode: model)
    found = bench_parts.ladder_case(
        folder, "few", phase="decode", batch=1, size=12, every=False, **AT
    )
    up, full = found.facts[UPSTREAM], found.facts[bench.FULL]
    assert up["operators"] > full["operators"] > 50 and up["kv_bytes"] > full["kv_bytes"] > 0
    assert (
        up["peak_bytes"] > found.facts[FAIR]["peak_bytes"] > 0
    )  # the growing cache makes itself anew


def test_scaling_varies_what_it_says(folder):
    found = bench_parts.scaling_case("top", (1, 2), folder, context=8, **AT)
    assert sorted({r.top for r in found.records}) == [1, 2] and len(found.records) == 6
    assert bench_tables.curve(found)[0] == "top"
    assert [r.top for r in found.results.latest() if r.name == FAIR] == [1, 2]
    over = bench_parts.scaling_case("tokens", (4, 8), folder, context=8, **AT)
    assert (
        sorted({r.tokens for r in over.records}) == [4, 8] and "ge_graph" not in over.results.names
    )
    with pytest.raises(PortError, match="unknown curve"):
        bench_parts.scaling_case("width", (1,), folder, context=8, **AT)


def test_a_case_takes_the_place_of_the_one_it_repeats(made, tmp_path):
    file = bench.save(tmp_path, "peer", "cpu", {made.key: made})
    again = dataclasses.replace(made, key="another")
    assert bench.save(tmp_path, "peer", "cpu", {"another": again, made.key: made}) == file
    found = bench.load(file)
    assert [c.key for c in found.cases] == ["another", made.key] and found.tier == "cpu"
    assert found.case(made.key).differences == made.differences
    assert bench.load_all(tmp_path) == [found]
    row = bench_tables.speed_rows([found])[0]
    assert row[0].startswith("few float32 decode, batch 2, 10 cached") and all(
        "×" in cell for cell in row[2:6]
    )
    assert f"| {row[0]} |" in bench_tables.markdown([found])
    with pytest.raises(PortError, match="no case 'x'"):
        found.case("x")


def test_what_does_not_hold_is_refused(made, tmp_path):
    faults = {
        "differs from the reference": {"differences": made.differences | {UPSTREAM: 0.5}},
        "timed and never checked": {"differences": {UPSTREAM: 0.0}},
        "not every variant": {"rounds": 3},
    }
    for message, change in faults.items():
        with pytest.raises(PortError, match=message):
            bench.save(tmp_path, "peer", "cpu", {made.key: dataclasses.replace(made, **change)})
    file = bench.save(tmp_path, "peer", "cpu", {made.key: made})
    content = json.loads(file.read_text(encoding="utf-8"))
    for change, message in (
        ({"part": "all"}, "part"),
        ({"device_name": "other"}, "records of another device"),
    ):
        file.write_text(json.dumps(content | change), encoding="utf-8")
        with pytest.raises(PortError, match=message):
            bench.load(file)


def test_tables_of_limit_scaling_and_start(made, tmp_path):
    """Numbers chosen by hand: 2 ms for 10 MB beside 10 GB/s is half of it; 1, 2, 4 ms over 1, 2, 4
    is exponent 1."""

    def record(name, *samples, **more):
        return dataclasses.replace(
            made.records[0], name=name, samples=list(samples), run="r", **more
        )

    def found(part, records, **more):
        case = bench.Case(
            "key", made.date, "ci/bench/speed.py", len(records[0].samples), records, **more
        )
        return [dataclasses.replace(bench.load(bench.save(tmp_path, part, "cpu", {"key": case})))]

    facts = {
        "step": {"work": 1e7, "fraction": 0.5, "fraction_low": 0.4, "fraction_high": 0.6},
        "read": {"rate": 1e10},
    }
    row = bench_tables.limit_rows(
        found("limit", [record("step", 2e-3), record("read", 1e-3)], facts=facts)
    )[0]
    assert row[1:] == ("2.00 ms", "10 MB", "10.0 GB/s", "50% [40%–60%]")
    rungs = [record(UPSTREAM, 8e-3), record("last_token_head", 4e-3), record("ge_graph", 1e-3)]
    counted = {n: {"kv_bytes": 2e6, "operators": 30.0} for n in (UPSTREAM, "last_token_head")}
    row = bench_tables.ladder_rows(found("ladder", rungs, facts=counted))[0]
    assert (
        row[1:4] == ("8.00 ms", "–", "–")
        and row[4].startswith("2.00×")
        and row[5].startswith("8.00×")
    )
    assert row[6:] == ("2.0 → 2.0 MB", "30 → 30")
    curve = [record(FAIR, 1e-3 * n, batch=n) for n in (4, 1, 2)]
    assert bench_tables.exponent_rows(found("scaling", curve))[0][1:] == ("1–4", f"{FAIR} 1.00")
    starts = [record("torch", 1.0, 1.2, 1.1), record("torch, then dsv3_port", 1.1, 1.4, 1.1)]
    assert bench_tables.start_rows(found("imports", starts))[1] == (
        "torch, then dsv3_port",
        "1.10 s",
        "+0.10 s",
    )


def load_command():
    spec = importlib.util.spec_from_file_location(
        "ci_bench", repo_root() / "ci" / "bench" / "speed.py"
    )
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    return command


def test_what_ships_holds():
    for found in bench.load_all(RECORDED):
        assert not any(r.busy for c in found.cases for r in c.records), found.part


def test_the_command_lists_its_cases_and_refuses_in_a_sentence(capsys, monkeypatch, made, tmp_path):
    command = load_command()
    assert (
        command.main(
            [
                "--part",
                "ladder",
                "--list",
                "--device",
                "cpu",
                "--profile",
                "w1",
                "--dtype",
                "float32",
            ]
        )
        == 0
    )
    keys = capsys.readouterr().out.split()
    assert (
        "w1-float32-decode-b8-c8192" in keys
        and "w1-float32-prefill-b1-t1024" in keys
        and len(keys) == 8
    )
    busy = dataclasses.replace(
        made, records=[dataclasses.replace(r, busy=True) for r in made.records]
    )
    monkeypatch.setattr(bench_parts, "peer_case", lambda *args, **kwargs: busy)
    words = [
        "--part",
        "peer",
        "--profile",
        "w1",
        "--dtype",
        "float32",
        "--size",
        "8",
        "--batch",
        "2",
        "--phase",
        "decode",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    assert command.main(words) == 2
    assert "other processes used this machine" in capsys.readouterr().err
    assert command.main([*words, "--graph", "eager"]) == 2 and "scaling" in capsys.readouterr().err
    assert command.main([*words, "--busy"]) == 0
    assert bench.load(tmp_path / "bench-peer-cpu.json").cases[0].results.busy

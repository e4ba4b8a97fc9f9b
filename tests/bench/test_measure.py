"""Pairing, warm-up, busy machines, counting, and the one results file."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
import types
import warnings

import pytest
import torch

from dsv3_port.bench import machine as module
from dsv3_port.bench.machine import device_info
from dsv3_port.bench.measure import _Manner, _unsure, in_a_lesson, measure
from dsv3_port.bench.outcome import BUSY, outcome
from dsv3_port.bench.paired import LEAST_FLOOR, floor_of, quartiles
from dsv3_port.bench.records import Record, Results, load, save
from dsv3_port.bench.results_table import seconds_text, stamp
from dsv3_port.count.memory import peak_memory
from dsv3_port.count.operators import count_ops
from dsv3_port.errors import PortError
from dsv3_port.plan import PortPlan
from tests.random_models import random_model

pytestmark = pytest.mark.filterwarnings("ignore:other processes used")


@pytest.fixture(autouse=True)
def nothing_measured_before(monkeypatch):
    monkeypatch.setattr(sys.modules[measure.__module__], "_manner", _Manner())


def record(name="a", samples=(1.0, 2.0, 3.0), **fields) -> Record:
    values = {
        "device": "cpu",
        "device_name": "a CPU, 2 cores",
        "tier": "cpu",
        "date": "2026-01-02T03:04:05+00:00",
        "versions": {"torch": "2.13.0"},
        "run": "r",
        **fields,
    }
    return Record(name=name, samples=list(samples), **values)


# ---- measure -------------------------------------------------------------------------------------


def test_rounds_are_interleaved_and_rotated(monkeypatch):
    monkeypatch.setattr(module.psutil, "cpu_times", _busy_times(0.0))
    monkeypatch.setattr("dsv3_port.bench.measure._unsure", lambda base: False)
    order = []
    calls = {name: (lambda name=name: (order.append(name), time.sleep(0.002))) for name in "abc"}
    measure(calls, rounds=3, warmup=1, progress=False)
    assert order[:6] == ["a", "a", "b", "b", "c", "c"]  # first call and warm-up of each
    # the first variant twice in each round: the noise floor
    assert order[6:] == [*"abca", *"bcaa", *"caab"]


def test_first_call_is_kept_apart():
    delay = iter([0.05])
    results = measure(
        {"compiles": lambda: time.sleep(next(delay, 0.002))}, rounds=3, progress=False
    )
    (r,) = results
    assert r.first_call_seconds > 0.045 and r.max < 0.04 and len(r.samples) == 3


def test_ratio_finds_a_factor_of_two(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(
        time, "perf_counter", lambda: now[0]
    )  # a clock of its own: the machine's load is not tested

    def call(seconds):
        now[0] += seconds

    results = measure(
        {"slow": lambda: call(0.012), "fast": lambda: call(0.006)}, rounds=5, progress=False
    )
    ratio = results.ratio("slow", "fast")
    assert ratio.median == pytest.approx(2) and ratio.low <= ratio.median <= ratio.high
    assert results.ratio("fast", "slow").median == pytest.approx(0.5)


def test_short_calls_are_repeated_in_a_sample_but_prepared_one_by_one(monkeypatch):
    monkeypatch.setattr(module.psutil, "cpu_times", _busy_times(0.0))  # a busy run is repeated
    seen = []
    results = measure(
        {"short": lambda: None},
        rounds=2,
        warmup=1,
        prepare=lambda name, n: seen.append((name, n)),
        progress=False,
    )
    (r,) = results
    assert r.inner > 10 and r.median < 1e-4
    assert [n for _, n in seen] == list(range(2 + 2 * r.inner))


def test_min_seconds_lengthens_samples():
    (r,) = measure({"x": lambda: time.sleep(0.002)}, rounds=1, min_seconds=0.02, progress=False)
    assert 4 <= r.inner <= 10


def test_meta_is_common_or_for_each_variant():
    results = measure(
        {"e": lambda: None, "c": lambda: None},
        rounds=1,
        progress=False,
        step_ids={"c": ("merged_mlp",)},
        meta={"phase": "decode", "batch": 8, "mode": {"e": "eager", "c": "compiled"}},
    )
    e, c = results
    assert (e.phase, e.batch, e.mode, e.step_ids) == ("decode", 8, "eager", ())
    assert (c.mode, c.step_ids, c.run) == ("compiled", ("merged_mlp",), e.run)


@pytest.mark.parametrize(
    "arguments",
    [
        {"variants": {}},
        {"variants": {"a": int}, "rounds": 0},
        {"variants": {"a": int}, "device": "tpu"},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(PortError):
        measure(**arguments)


def _busy_times(share):
    """psutil.cpu_times of a machine whose other processes use `share` of all cores."""
    times = types.SimpleNamespace
    start, own = time.perf_counter(), time.process_time()

    def cpu_times():
        wall, used = time.perf_counter() - start, time.process_time() - own
        busy = used + share * wall * (module.psutil.cpu_count() or 1)
        return Times(user=busy, idle=wall * 64 - busy)

    class Times(times):
        def __iter__(self):
            return iter(vars(self).values())

    return cpu_times


def test_a_busy_machine_warns_once_and_is_recorded(monkeypatch):
    monkeypatch.setattr(module.psutil, "cpu_times", _busy_times(0.5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = measure(
            {"a": lambda: time.sleep(0.06), "b": lambda: time.sleep(0.06)}, rounds=3, progress=False
        )
    assert len(caught) == 1 and "not to be trusted" in str(caught[0].message)
    assert results.busy and 0.35 < results.records[0].busy_share < 0.65
    assert "machine was busy" in results.table()


def test_a_quiet_machine_does_not_warn(monkeypatch):
    monkeypatch.setattr(module.psutil, "cpu_times", _busy_times(0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not measure({"a": lambda: sum(range(200_000))}, rounds=3, progress=False).busy


def test_own_threads_do_not_count_as_others(monkeypatch):
    monkeypatch.setattr(module.psutil, "cpu_times", _busy_times(0.02))
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            sum(range(10_000))

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        assert not measure({"a": lambda: time.sleep(0.03)}, rounds=3, progress=False).busy
    finally:
        stop.set()
        thread.join()


def test_a_slow_list_of_processes_lengthens_the_span_that_it_is_in(monkeypatch):
    monkeypatch.setattr(module.psutil, "cpu_times", _busy_times(0.5))
    slow = types.SimpleNamespace(children=lambda recursive: time.sleep(0.4) or [])
    monkeypatch.setattr(module.psutil, "Process", lambda: slow)
    watch = module.BusyWatch()
    time.sleep(0.1)
    watch.look()
    assert all(0.4 < share < 0.6 for _, share in watch.shares) and len(watch.shares) == 2


def test_device_info_tells_real_npu_from_stand_in(monkeypatch):
    assert (
        device_info("cpu")["tier"] == "cpu"
        and device_info("cpu")["versions"]["torch"] == torch.__version__
    )
    assert device_info("host-npu")["tier"] == "host-npu"
    npu = types.SimpleNamespace(get_device_name=lambda: "Ascend910B4", synchronize=lambda: None)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: npu)
    monkeypatch.setitem(
        sys.modules, "dsv3_port.hostnpu", types.SimpleNamespace(enabled=lambda: False)
    )
    assert (device_info("npu:0")["tier"], device_info("npu")["device_name"]) == (
        "npu",
        "Ascend910B4",
    )
    monkeypatch.setitem(
        sys.modules, "dsv3_port.hostnpu", types.SimpleNamespace(enabled=lambda: True)
    )
    assert (device_info("npu")["tier"], device_info("npu")["device_name"]) == (
        "host-npu",
        "host stand-in",
    )


def _clock(monkeypatch, seconds):
    """A clock that only the calls move: `seconds` of the n-th call."""
    now, calls = [0.0], iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module.BusyWatch, "share", property(lambda self: 0.0))
    monkeypatch.setattr(module.BusyWatch, "look", lambda self, shortest=0.1: None)

    def call():
        now[0] += seconds(next(calls))

    return call


def test_the_first_variant_is_timed_twice_and_gives_the_floor(monkeypatch):
    call = _clock(monkeypatch, lambda n: 0.010 if n % 2 else 0.0104)
    base, other = measure({"a": call, "b": call}, rounds=8, warmup=1, progress=False)
    assert len(base.again) == len(base.samples) == 8 and not other.again and not base.busy
    assert base.same_code.low < base.same_code.high
    assert floor_of([base, other]) == pytest.approx(
        max(abs(base.same_code.low - 1), abs(base.same_code.high - 1), LEAST_FLOOR)
    )
    (alone,) = measure({"a": call}, rounds=3, progress=False)
    assert not alone.again and floor_of([alone]) == LEAST_FLOOR


def test_a_run_that_cannot_tell_the_same_code_apart_is_repeated_and_marked(monkeypatch):
    made = []

    def jumpy(base):  # the same code twice, 25 % apart
        made.append(len(base.samples))
        base.again = [s / 1.25 for s in base.samples]
        return _unsure(base)

    monkeypatch.setattr(sys.modules[measure.__module__], "_unsure", jumpy)
    call = _clock(monkeypatch, lambda n: 0.010)
    results = measure({"a": call, "b": call}, rounds=4, progress=False)
    assert made == [4, 4, 4] and results.busy  # twice more, and no fourth time
    measure({"a": call, "b": call}, rounds=4, progress=False)
    assert made == [4, 4, 4, 4]  # a machine that stays busy is not waited for
    monkeypatch.setattr(sys.modules[measure.__module__], "_unsure", lambda base: False)
    assert not measure({"a": call}, rounds=4, progress=False).busy
    monkeypatch.setattr(sys.modules[measure.__module__], "_unsure", jumpy)
    measure({"a": call, "b": call}, rounds=4, progress=False)
    assert len(made) == 7  # quiet in between: repeated again
    assert "the same code twice differs by 25%" in results.table()
    assert outcome(results, "a", "b").word == BUSY


def test_a_repeated_run_that_is_short_leaves_no_bar_on_the_page(monkeypatch, capsys):
    monkeypatch.setattr(module.psutil, "cpu_times", _busy_times(0.5))
    monkeypatch.setattr(sys.modules[measure.__module__]._manner, "stays_busy", False)
    with pytest.warns(UserWarning, match="other processes used"):
        assert measure({"a": lambda: time.sleep(0.01)}, rounds=3, label="page").busy
    assert capsys.readouterr().out == ""


def test_a_lesson_does_not_wait_for_a_machine_that_stays_busy(monkeypatch):
    def rounds_at(share):
        monkeypatch.setattr(module.psutil, "cpu_times", _busy_times(share))
        busy = {"a": lambda: time.sleep(0.03), "b": lambda: time.sleep(0.03)}
        results = measure(busy, rounds=5, progress=False)
        return results.busy, [len(r.samples) for r in results]

    assert rounds_at(0.5) == (True, [5, 5]) and rounds_at(0.5) == (True, [5, 5])  # a bench
    in_a_lesson()
    assert rounds_at(0.5) == (True, [2, 2])
    busy, (rounds, _) = rounds_at(0.0)  # quiet again, and patient again
    assert not busy and 4 <= rounds <= 10
    assert rounds_at(0.5) == (True, [2, 2])  # and busy again


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [
        (lambda n: 0.010, 4),  # settled after two thirds
        (
            lambda n: 0.010 if n % 3 else 0.012,
            18,
        ),  # the same code twice 20 % apart at times: three times as many
    ],
)
def test_a_lesson_ends_when_its_figure_is_settled(monkeypatch, seconds, rounds):
    call = _clock(monkeypatch, seconds)
    assert {len(r.samples) for r in measure({"a": call, "b": call}, rounds=6, progress=False)} == {
        6
    }
    in_a_lesson()
    found = measure({"a": call, "b": call}, rounds=6, progress=False)
    assert {len(r.samples) for r in found} == {rounds} and not found.busy
    (alone,) = measure({"a": call}, rounds=6, progress=False)
    assert len(alone.samples) == 6  # nothing to be settled against


# ---- results -------------------------------------------------------------------------------------


def test_statistics():
    r = record(samples=[4.0, 1.0, 3.0, 2.0])
    assert (r.median, r.min, r.max, r.q1, r.q3) == (2.5, 1.0, 4.0, 1.75, 3.25)
    assert quartiles([7.0]) == (7.0, 7.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.5, "2.50 s"),
        (0.0123, "12.3 ms"),
        (0.123456, "123 ms"),
        (4.2e-6, "4.20 µs"),
        (5e-8, "0.05 µs"),
    ],
)
def test_durations_have_three_digits(seconds, text):
    assert seconds_text(seconds) == text


def test_ratio_pairs_rounds_of_one_run_only():
    results = Results(
        [record("a", [2.0, 40.0]), record("b", [1.0, 10.0]), record("c", [1.0, 1.0], run="other")]
    )
    assert results.ratio("a", "b").samples == [2.0, 4.0]
    with pytest.raises(PortError, match="not measured in one run"):
        results.ratio("a", "c")
    with pytest.raises(PortError, match="no record of 'z'"):
        results.ratio("a", "z")


def test_get_asks_for_the_phase_where_there_are_several():
    results = Results([record("a", phase="prefill"), record("a", phase="decode")])
    with pytest.raises(PortError, match="several phases"):
        results.get("a")
    assert results.get("a", "decode").phase == "decode"


def test_ratio_takes_the_newest_run_that_has_both():
    results = Results(
        [
            record("a", [9.0], run="1"),
            record("b", [1.0], run="1"),
            record("a", [4.0], run="2"),
            record("b", [1.0], run="2"),
            record("a", [1.0], run="3"),
        ]
    )
    assert results.ratio("a", "b").median == 4.0


def test_latest_keeps_the_newest_of_each_case():
    results = Results(
        [
            record("a", [1.0], run="1"),
            record("b", [1.0]),
            record("a", [2.0], run="2"),
            record("a", [3.0], batch=8),
        ]
    )
    assert [(r.name, r.batch, r.median) for r in results.latest()] == [
        ("b", 0, 1.0),
        ("a", 0, 2.0),
        ("a", 8, 3.0),
    ]


def test_select_by_fields():
    results = Results(
        [record("a", phase="decode"), record("b", phase="prefill"), record("c", phase="decode")]
    )
    assert results.select(phase="decode", name=["b", "c"]).names == ["c"]
    with pytest.raises(PortError, match="no colour"):
        results.select(colour="red")


def test_table_names_device_versions_and_factor():
    text = Results([record("a", [2.0, 2.0]), record("b", [1.0, 1.0])]).table()
    assert (
        "2.00×" in text
        and "a CPU, 2 cores (cpu)" in text
        and "torch 2.13.0" in text
        and "2026-01-02" in text
    )
    assert stamp([record(dtype="float32", threads=2, profile="w1")]).count("·") == 5


def test_table_says_what_differs_within_a_phase():
    rows = [
        record("a", phase="decode", batch=1, context=64),
        record("a", phase="decode", batch=8, context=64),
        record("a", phase="prefill", batch=1, tokens=128),
        record("a", phase="mask", tokens=1),
        record("a", phase="mask", tokens=8),
    ]
    text = Results(rows).table()
    assert (
        "| decode, batch 1 |" in text
        and "| decode, batch 8 |" in text
        and "| mask, 8 tokens |" in text
    )
    assert "64 cached" not in text
    assert "| decode |" in Results(rows[:1]).table()


def test_host_stand_in_timings_are_not_displayed():
    text = Results([record(tier="host-npu")])._repr_markdown_()
    assert "never shown" in text and "|" not in text


def test_save_appends_and_load_round_trips(tmp_path):
    file = tmp_path / "deep" / "results.json"
    first = Results([record("a", step_ids=("merged_mlp",), phase="decode", first_call_seconds=9.0)])
    save(first, file)
    save(Results([record("b")]), file)
    assert load(file).records == [*first.records, record("b")]
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert rows[0]["median"] == 2.0 and rows[0]["unit"] == "s"
    assert sorted(p.name for p in file.parent.iterdir()) == ["results.json", "results.json.lock"]


def test_parallel_saves_lose_nothing(tmp_path):
    file = tmp_path / "r.json"
    threads = [
        threading.Thread(target=save, args=(Results([record(str(i))]), file)) for i in range(12)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(load(file).names, key=int) == [str(i) for i in range(12)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ('{"a": 1}', "not a results file"),
        ('[{"name": "x"}]', "record 0"),
        ("[3]", "record 0"),
    ],
)
def test_broken_files_are_named(tmp_path, text, message):
    file = tmp_path / "r.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PortError, match=message) as error:
        load(file)
    assert "r.json" in str(error.value)


def test_schema_refuses_unknown_fields_tiers_and_empty_samples(tmp_path):
    good = dataclasses.asdict(record())
    for change in ({"surprise": 1}, {"tier": "abacus"}, {"samples": []}, {"samples": ["fast"]}):
        file = tmp_path / "r.json"
        file.write_text(json.dumps([good | change]), encoding="utf-8")
        with pytest.raises(PortError, match="record 0"):
            load(file)
    with pytest.raises(PortError, match="no such results file"):
        load(tmp_path / "absent.json")


# ---- counting ------------------------------------------------------------------------------------


def test_views_and_allocations_are_not_counted():
    x = torch.ones(4, 6)
    counts = count_ops(lambda: (x.view(6, 4).t()[:2].unsqueeze(0) + torch.empty(1)).softmax(-1))
    assert counts == {"aten.add": 1, "aten._softmax": 1}


def test_compound_operators_are_taken_apart_in_inference_mode_too():
    weight, x = torch.ones(3, 4), torch.ones(2, 4)

    def linear():
        with torch.inference_mode():
            torch.nn.functional.linear(x, weight)

    assert (
        count_ops(linear)
        == count_ops(lambda: torch.nn.functional.linear(x, weight))
        == {"aten.mm": 1}
    )


def test_cpu_detours_of_a_matmul_are_not_counted():
    from dsv3_port import ops

    x, weight = torch.ones(4, 64), torch.ones(32, 64)
    assert count_ops(lambda: ops.linear(x, weight)) == {"aten.mm": 1}


def test_ported_model_launches_fewer_operators():
    ids = torch.tensor([[1, 2, 3]])
    counts = {}
    for name, plan in (("upstream", PortPlan.upstream()), ("full", PortPlan.full())):
        model = random_model(plan)
        counts[name] = count_ops(lambda model=model: model(ids))
    assert sum(counts["full"].values()) < 0.6 * sum(counts["upstream"].values())
    moe_layers, full = 2, counts["full"]
    assert (
        full["npu_grouped_matmul"] == 2 * moe_layers and full["npu_moe_init_routing"] == moe_layers
    )
    assert not any(op.startswith("npu_") for op in counts["upstream"])


def test_npu_operators_can_be_counted_by_their_parts():
    model, ids = random_model(PortPlan.full()), torch.tensor([[1, 2, 3]])
    parts = count_ops(lambda: model(ids), as_npu=False)
    assert not any(op.startswith("npu_") for op in parts)
    assert sum(parts.values()) > sum(count_ops(lambda: model(ids)).values())


def test_peak_memory_counts_what_is_alive_together():
    x = torch.ones(1000, 1000)  # 4 MB, there before
    assert peak_memory(lambda: x.view(-1)[:10]) == 0
    assert peak_memory(lambda: x + 1) == 4_000_000
    assert peak_memory(lambda: (x + 1).relu().relu()) == 8_000_000

    def freed():
        for _ in range(5):
            (x + 1).relu_()

    assert peak_memory(freed) == 4_000_000

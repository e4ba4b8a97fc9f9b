"""The bench on a GPU, as far as a CPU can show it: part graphs, clocks, who counts as others, the GPU's
state, and the script with its deadline."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from dsv3_port.bench import cases, clock, gpu_state, measure, models, parts, parts_graphs
from dsv3_port.bench.bounds import GEMM_SIZE, READ_BYTES, gemm_bound, read_bound
from dsv3_port.bench.machine import own_seconds
from dsv3_port.errors import PortError
from dsv3_port.ops import cuda
from dsv3_port.paths import repo_root
from dsv3_port.weights.synthetic import synthetic_checkpoint
from tests.bench.test_cases import load_command
from tests.random_models import CONFIG

pytestmark = pytest.mark.filterwarnings("ignore:other processes used")
SCRIPT = ["bash", "ci/bench/bench_gpu.sh"]
# the order of worth: the ladder of graphs, beside transformers, prefill, then more of each
FIRST = [
    ("graphs", "moe-32", "decode"),
    ("graphs", "dense-8", "decode"),
    ("graphs", "moe-8", "decode"),
    ("graphs", "moe-32", "decode"),  # with most of the buffer empty
    ("peer", "moe-32", "decode"),
    ("peer", "moe-32", "prefill"),
    ("peer", "w1", None),
    ("graphs", "moe-32", "prefill"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_checkpoint(
        dataclasses.replace(CONFIG, fp8=True), cache_dir=tmp_path_factory.mktemp("bench")
    )


# ---- part graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_rungs_beside_their_bound(
    folder: Path, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not compiled here; a CPU leaves out what it cannot capture, with the reason."""
    compile_steps = parts_graphs.compile_steps

    def without_compiling(model: Any, mode: str) -> Any:
        return model if mode == "ge" else compile_steps(model, mode)

    monkeypatch.setattr(parts_graphs, "compile_steps", without_compiling)
    monkeypatch.setitem(READ_BYTES, "cpu", 1 << 20)
    monkeypatch.setitem(GEMM_SIZE, "cpu", 64)
    at = {"device": "cpu", "dtype": "float32", "rounds": 2}
    case = parts.graphs_case(folder, "few", phase=phase, batch=2, size=8, **at)
    bound = "read" if phase == "decode" else "gemm"
    assert case.results.names == ["eager", "compiled", bound]
    split = {parts_graphs.SPLIT} if phase == "decode" else set()
    assert set(case.left_out) == {"captured", "compiled and captured"} | split
    assert all("has no graph to capture" in why for why in case.left_out.values())
    assert case.facts[bound]["work"] == (1 << 20 if phase == "decode" else 2 * 64**3)
    eager = case.facts["eager"]
    assert 0 < eager["fraction"] and eager["work"] == case.facts["compiled"]["work"] > 1000
    assert eager["reached"] == pytest.approx(
        eager["work"] / case.results.get("eager", phase).median
    )
    assert cases.check(case, "it") is case


def test_the_split_attention_is_checked_and_timed_beside_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a buffer that is mostly empty; the work is that of what is filled."""
    monkeypatch.setattr(parts_graphs, "compile_steps", lambda model, mode: model)
    monkeypatch.setitem(READ_BYTES, "cpu", 1 << 20)
    plans, lengths = [], []
    check = parts_graphs.check_equivalence

    def checked(models: Any, **sizes: Any) -> Any:
        plans.extend((name, m.plan.decode_attention) for name, m in models.items())
        lengths.append(sizes["room"])
        return check(models, **sizes)

    monkeypatch.setattr(parts_graphs, "check_equivalence", checked)
    at = {
        "device": "cpu",
        "dtype": "float32",
        "rounds": 2,
        "phase": "decode",
        "batch": 1,
        "size": 8,
    }
    case = parts.graphs_case(folder, "few", buffer=4, **at)
    assert [name for name, form in plans if form == "split"] == [parts_graphs.SPLIT]
    assert lengths == [33] and parts_graphs.SPLIT in case.results.names and not case.left_out
    plain = parts.graphs_case(folder, "few", **at)
    assert case.facts["eager"]["work"] == plain.facts["eager"]["work"]
    with pytest.raises(PortError, match="a buffer 2 times as long"):
        parts.graphs_case(folder, "few", buffer=2, **at | {"phase": "prefill"})


def test_a_captured_step_that_differs_by_a_bit_is_not_timed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_graphs, "compile_steps", lambda model, mode: model)
    gaps = {"eager": 0.0, "captured": 1e-7, "compiled": 1e-7, "compiled and captured": 1e-7}
    monkeypatch.setattr(parts_graphs, "check_equivalence", lambda *_, **__: gaps)
    with pytest.raises(PortError, match="captured step differs from the eager one by 1.0e-07"):
        at = {"device": "cpu", "dtype": "float32", "rounds": 2}
        parts.graphs_case(folder, "few", phase="decode", batch=1, size=8, **at)


def test_bounds_of_a_gpu_are_large_enough() -> None:
    assert READ_BYTES["cuda"] >= 1 << 30 and GEMM_SIZE["cuda"] == 8192
    cpu = torch.device("cpu")
    assert read_bound(cpu).call().item() == READ_BYTES["cpu"] // 4  # all of it is read
    assert gemm_bound(cpu, torch.bfloat16).work == 2 * GEMM_SIZE["cpu"] ** 3


def test_what_is_no_step_is_not_in_the_ladder(folder: Path) -> None:
    at = {"dtype": "float32", "rounds": 2, "phase": "decode", "batch": 1, "size": 8}
    with pytest.raises(PortError, match="'compiled-captured' is none: see part graphs"):
        parts.ladder_case(folder, "few", device="cuda", graph="compiled-captured", **at)
    with pytest.raises(PortError, match="a CPU captures no graph"):
        parts.ladder_case(folder, "few", device="cpu", graph="aclgraph", **at)


def test_a_ladder_has_the_captured_rung_where_all_of_it_can_be_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda, "capability", lambda index: 9)
    gpu, bf16 = torch.device("cuda"), torch.bfloat16
    npu: Any = SimpleNamespace(type="npu")  # torch knows no such device without torch_npu
    assert models.captures(gpu, bf16) and models.captures(npu, torch.float32)
    assert not models.captures(gpu, torch.float32)
    assert not models.captures(torch.device("cpu"), bf16)
    monkeypatch.setattr(cuda, "capability", lambda index: 8)
    assert not models.captures(gpu, bf16)


# ---- clocks --------------------------------------------------------------------------------------


class Device:
    """A device that works off what was launched, with a clock of its own."""

    now = waited = 0.0

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = Device.now

        def elapsed_time(self, end: Any) -> float:  # ms
            return (end.at - self.at) * 1e3

    @classmethod
    def synchronize(cls) -> None:
        cls.waited += 1


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> type[Device]:
    Device.now = Device.waited = 0.0
    monkeypatch.setattr(torch, "get_device_module", lambda _: Device)
    return Device


def spend(seconds: float) -> None:
    Device.now += seconds


def test_events_leave_out_the_preparation_and_the_host_waits_once(device: type[Device]) -> None:
    found = clock.DeviceClock("cuda:0")
    seconds = found.seconds(lambda: spend(0.002), lambda: spend(0.5), 10)
    assert seconds == pytest.approx(0.002) and device.waited == 2 and len(found.pairs) == 10
    assert found.seconds(lambda: spend(0.003), None, 10) == pytest.approx(0.003)
    assert len(found.pairs) == 10 and device.waited == 4


def test_whose_clock_is_in_the_record(
    device: type[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert clock.clock_of("cpu").name == "host"
    assert [clock.clock_of(d).name for d in ("cuda:1", "npu:0")] == ["device", "device"]
    info = measure.device_info("cpu") | {"device": "cuda:0", "device_name": "G", "tier": "cuda"}
    monkeypatch.setattr(measure, "device_info", lambda _: info)
    monkeypatch.setattr(measure, "gpu_state", lambda _: {"clocks.sm": "1980 MHz"})
    calls = {"a": lambda: spend(0.004), "b": lambda: spend(0.001)}
    a, b = measure.measure(calls, rounds=3, device="cuda:0", progress=False)
    assert (a.clock, b.clock, a.gpu) == ("device", "device", {"clocks.sm": "1980 MHz"})
    assert a.median == pytest.approx(0.004) and b.median == pytest.approx(0.001)
    # a compiler at work is seen by the host's clock alone
    assert a.first_call_seconds is not None and a.first_call_seconds < 0.004


# ---- the machine ---------------------------------------------------------------------------------


def test_what_this_process_started_is_not_others() -> None:
    """As inductor's compile workers, which live on and have children of their own."""
    burn = "import time\nwhile time.process_time() < 0.4: pass\n"
    nested = f"import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', {burn + 'time.sleep(60)'!r}])\n"
    before = own_seconds()
    with subprocess.Popen([sys.executable, "-c", nested + "p.wait()"]) as child:
        try:
            end = time.monotonic() + 60
            while own_seconds() - before < 0.4 and time.monotonic() < end:
                time.sleep(0.05)
            assert own_seconds() - before >= 0.4 and child.poll() is None
        finally:
            for one in [*psutil.Process(child.pid).children(recursive=True), child]:
                with contextlib.suppress(psutil.Error):
                    one.kill()


SMI = """#!/bin/sh
[ "$4" = "GPU-1234" ] || exit 3
echo "580.1, 1980 MHz, 1980 MHz, 2619 MHz, 2619 MHz, 341.20 W, 700.00 W, 700.00 W, 41, P0"
"""


def test_the_gpus_clocks_and_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_state, "_identity", lambda device: "GPU-1234")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_state.gpu_state("cuda:0") == {"unknown": "no nvidia-smi on the path"}
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI, encoding="utf-8")
    tool.chmod(0o755)
    found = gpu_state.gpu_state("cuda:0")
    assert (found["clocks.sm"], found["power.limit"]) == ("1980 MHz", "700.00 W")
    monkeypatch.setattr(gpu_state, "_identity", lambda device: "GPU-other")
    assert gpu_state.gpu_state("cuda:0") == {"unknown": "nvidia-smi: CalledProcessError"}


def test_a_card_is_named_as_nvidia_smi_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {1: SimpleNamespace(uuid="aa-1"), 0: SimpleNamespace()}
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.get)
    assert gpu_state._identity("cuda:1") == "GPU-aa-1" and gpu_state._identity("cuda") == "0"


# ---- the script ----------------------------------------------------------------------------------


def steps_of(*words: str) -> list[Any]:
    done = subprocess.run(
        [*SCRIPT, "--dry-run", *words], cwd=repo_root(), capture_output=True, text=True, check=True
    )
    parse = load_command().parse
    return [parse(shlex.split(line)[2:]) for line in done.stdout.splitlines()]


def test_what_tells_most_comes_first() -> None:
    found = steps_of("--minutes", "10")
    assert [(s.part, *s.profile, s.phase) for s in found[: len(FIRST)]] == FIRST
    assert [(s.part, *s.profile) for s in steps_of("--quick")][: len(FIRST)] == [
        f[:2] for f in FIRST
    ]
    assert {s.device for s in found} == {"cuda"} and {s.part for s in found} == {
        *("graphs", "peer", "ladder", "scaling")
    }
    assert len({(s.part, *s.profile, s.phase, s.batch, s.buffer) for s in found}) == len(found) > 30
    assert [s.buffer for s in found if s.buffer != 1] == [found[3].buffer] == [4]


def test_the_same_words_on_a_cpu() -> None:
    words = ("--device", "cpu", "--layers", "a b", "--size", "16", "--rounds", "2")
    cpu, cuda = steps_of(*words), steps_of("--layers", "a b", "--size", "16", "--rounds", "2")
    assert [(s.part, s.profile, s.phase, s.batch, s.size) for s in cpu] == [
        (s.part, s.profile, s.phase, s.batch, s.size) for s in cuda
    ]
    assert {s.graph for s in cpu} == {"ge"} and {s.size for s in cpu} == {16}


def run_script(tmp_path: Path, python: str, *words: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "python3"
    file.write_text(f"#!/bin/sh\n{python}\n", encoding="utf-8")
    file.chmod(0o755)
    return subprocess.run(
        [*SCRIPT, "--out", str(tmp_path / "out"), *words],
        cwd=repo_root(),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": str(file)},
        timeout=120,
    )


def test_the_script_says_why_it_cannot_run(tmp_path: Path) -> None:
    done = run_script(tmp_path, "echo 'torch sees no GPU'")
    assert done.returncode == 2 and "cannot run here: torch sees no GPU" in done.stderr
    assert run_script(tmp_path, "true", "--minutes", "soon").returncode == 2
    lint = shutil.which("shellcheck", path=os.fspath(Path(sys.executable).parent))
    if lint:
        words = [lint, "ci/bench/bench_gpu.sh"]
        assert subprocess.run(words, cwd=repo_root(), capture_output=True).returncode == 0


def test_a_step_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    python = 'case "$*" in *--part*peer*) echo no such thing; exit 2;; esac'
    done = run_script(tmp_path, python, "--layers", "a")
    assert done.returncode == 1 and "ok      graphs-a-decode-b1" in done.stdout
    assert "FAILED  peer-a-decode-b1" in done.stdout and "no such thing" in done.stdout


def test_a_graph_that_was_skipped_is_a_failure(tmp_path: Path) -> None:
    python = 'case "$*" in *--part*graphs*) echo "skipping cudagraphs due to mutated inputs";; esac'
    done = run_script(tmp_path, python, "--layers", "a", "--quick")
    assert done.returncode == 1 and "FAILED  graphs-a-decode-b1" in done.stdout
    assert "ok      peer-a-decode-b1" in done.stdout


def test_at_the_deadline_the_step_is_cut_and_the_rest_is_named(tmp_path: Path) -> None:
    """The minute of this test is the shortest: what is cut would have taken longer."""
    python = 'case "$*" in *"--phase decode"*) exit 0;; *"--phase prefill"*) exec sleep 300;; esac'
    script = (repo_root() / SCRIPT[1]).read_text(encoding="utf-8")
    short = tmp_path / "ci" / "bench" / "bench_gpu.sh"
    short.parent.mkdir(parents=True)
    short.write_text(script.replace("minutes * 60", "minutes * 8"), encoding="utf-8")
    file = tmp_path / "python3"
    file.write_text(f"#!/bin/sh\n{python}\n", encoding="utf-8")
    file.chmod(0o755)
    words = ["bash", str(short), "--layers", "a", "--minutes", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"PYTHON": str(file)}, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok      graphs-a-decode-b1" in done.stdout
    assert "cut     peer-a-prefill-b1" in done.stdout
    assert "no time for: peer-a-prefill-b1 graphs-a-prefill-b1" in done.stdout

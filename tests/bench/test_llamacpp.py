"""llama.cpp beside our models: how it is compared and timed, with a stand-in for it that runs everywhere;
and where llama-cpp-python is installed its own logits, which must be ours."""

from __future__ import annotations

import contextlib
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from dsv3_port.bench import cases as bench
from dsv3_port.bench import llamacpp, parts_peer, speed_tables, workload
from dsv3_port.bench.llamacpp import LlamaForm, LlamaPeer
from dsv3_port.bench.parts_peer import peer_case, peer_run
from dsv3_port.bench.records import FAIR, UPSTREAM
from dsv3_port.bench.workload import Ours
from dsv3_port.check.equivalence import random_ids
from dsv3_port.cli.main import main
from dsv3_port.config import RopeScaling
from dsv3_port.engine.loading import load_model
from dsv3_port.errors import PortError
from dsv3_port.paths import tiny
from dsv3_port.plan import PortPlan
from dsv3_port.weights.synthetic import synthetic_checkpoint
from tests.random_models import CONFIG

pytestmark = pytest.mark.filterwarnings("ignore:other processes used")
AT = {"device": "cpu", "rounds": 2, "peers": ["llama.cpp"]}
FORMS = {
    "float32": [
        "llama.cpp, f32 cache",
        "llama.cpp, flash, f32 cache",
        "llama.cpp, f16 cache",
        "llama.cpp, flash, f16 cache",
    ],
}
FORMS["bfloat16"] = [*FORMS["float32"], "llama.cpp, bf16 cache", "llama.cpp, flash, bf16 cache"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic_checkpoint(CONFIG, cache_dir=tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(parts_peer, "compile_steps", lambda model, mode, **options: model)


class StandIn(LlamaPeer):
    """Our model where llama.cpp would be. error: added to the logits of forms that are not float32
    throughout, as a share of the largest."""

    error = 0.02
    closed: list[str] = []

    def __init__(self, form, model, batch, capacity, logits=1):
        self.form, self.model = form, model
        self.run = Ours(model, batch, capacity)

    def rewind(self, length):
        self.run.rewind(length)

    def fill(self, ids):
        self.run.fill(ids)

    def forward(self, ids):
        logits = self.run.forward(ids)[:, -1:]
        exact = self.form.bound("float32") < 1e-4
        return logits if exact else logits + self.error * logits.abs().max()

    def close(self):
        self.closed.append(self.form.name)


@pytest.fixture
def stand_in(monkeypatch):
    @contextlib.contextmanager
    def model(folder, dtype):
        yield load_model(folder, PortPlan.upstream(), "cpu", dtype)

    monkeypatch.setattr(StandIn, "closed", [])
    monkeypatch.setattr(parts_peer, "LlamaPeer", StandIn)
    monkeypatch.setattr(llamacpp, "llama_model", model)
    monkeypatch.setattr(llamacpp, "llama_versions", lambda: {"llama-cpp-python": "0"})
    return StandIn


@pytest.mark.parametrize(("phase", "batch"), [("decode", 2), ("prefill", 1)])
def test_every_form_is_compared_then_timed_with_ours(folder, stand_in, phase, batch):
    found = peer_run(folder, "few", dtype="float32", phase=phase, batch=batch, size=9, **AT)
    assert found.results.names == [UPSTREAM, FAIR, bench.FULL, "ge_graph", *FORMS["float32"]]
    assert len({r.run for r in found.results}) == 1  # interleaved
    assert {r.mode for r in found.results if r.name in FORMS["float32"]} == {"native"}
    assert found.bounds[FORMS["float32"][0]] == found.bounds[UPSTREAM] == 1e-5
    assert {found.bounds[n] for n in FORMS["float32"][1:]} == {5e-2}
    assert found.results.differences[FORMS["float32"][0]] < 1e-5
    assert found.results.differences[FORMS["float32"][1]] == pytest.approx(0.02, rel=0.01)
    versions = {r.name: r.versions.get("llama-cpp-python") for r in found.results}
    assert versions[FORMS["float32"][0]] == "0" and versions[UPSTREAM] is None
    assert sorted(stand_in.closed) == sorted(FORMS["float32"])


def test_the_case_is_kept_and_its_row_shown(folder, stand_in, tmp_path):
    at = {"dtype": "float32", "phase": "decode", "batch": 1, "size": 9}
    case = peer_case(folder, "few", **at, **AT)
    assert case.bound == 1e-5 and set(case.bounds) == set(FORMS["float32"][1:])
    found = bench.load(bench.save(tmp_path, "peer", "cpu", {case.key: case}))
    assert found.case(case.key).bounds == case.bounds
    assert speed_tables.speed_rows([found]) == []  # transformers' table is not about it
    ((what, _, _, factor, form, difference),) = speed_tables.llama_rows([found])
    assert (
        what == "few float32 decode, batch 1, 9 cached" and f"llama.cpp, {form}" in FORMS["float32"]
    )
    assert float(difference) < 1e-5 and ("×" in factor or factor == "busy")
    assert "| beside llama.cpp |" in speed_tables.markdown([found])


@pytest.mark.parametrize("error", [0.06, float("nan")])
def test_other_logits_stop_the_run(folder, stand_in, monkeypatch, error):
    monkeypatch.setattr(stand_in, "error", error)
    with pytest.raises(
        PortError, match=r"'llama.cpp, .*differs from 'upstream'.*nothing was timed"
    ):
        peer_run(folder, "few", dtype="float32", phase="decode", batch=1, size=5, **AT)
    assert len(stand_in.closed) == 4


def test_a_form_that_cannot_run_is_left_out(folder, stand_in, monkeypatch):
    made, forward = stand_in.__init__, stand_in.forward

    def refuse(self, form, *args, **kwargs):
        if form.flash:
            raise PortError("no flash here")
        made(self, form, *args, **kwargs)

    def fail(self, ids):
        if self.form.cache == "F16":
            raise PortError("llama_decode returned 1")
        return forward(self, ids)

    monkeypatch.setattr(stand_in, "__init__", refuse)
    monkeypatch.setattr(stand_in, "forward", fail)
    found = peer_run(folder, "few", dtype="float32", phase="decode", batch=1, size=5, **AT)
    first, flash, half, _ = FORMS["float32"]
    assert found.left_out[flash] == "no flash here" and "returned 1" in found.left_out[half]
    assert found.results.names[-1] == first


def test_threads_of_one_rest_before_the_other_is_timed(folder, stand_in, monkeypatch):
    slept = []
    monkeypatch.setattr(workload, "time", SimpleNamespace(sleep=slept.append))
    model = load_model(folder, PortPlan.upstream(), "cpu", torch.float32)
    peer = stand_in(LlamaForm("F32", False), model, 1, 8)
    work = workload.Workload({"a": model, "b": peer}, "decode", batch=1, size=4)
    for name in ("a", "a", "b", "b", "a"):
        work.prepare(name, 0)
    assert slept == [workload.SETTLE] * 3
    alone = workload.Workload({"a": model, "c": model}, "decode", batch=1, size=4)
    for name in ("a", "c"):
        alone.prepare(name, 0)
    assert len(slept) == 3


def test_forms_are_both_paths_over_every_cache():
    assert [f.name for f in llamacpp.llama_forms(torch.float32)] == FORMS["float32"]
    found = llamacpp.llama_forms(torch.bfloat16)
    assert sorted(f.name for f in found) == sorted(FORMS["bfloat16"])
    assert {f.bound("bfloat16") for f in found} == {5e-2}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["peer", "--with", "llama"], "unknown peer 'llama'.*transformers or llama.cpp"),
        (["peer", "--with", "llama.cpp", "--compile"], "--compile belongs to the ladder"),
        (["--with", "llama.cpp"], "bench peer --with llama.cpp"),
        (["peer", "--with", "llama.cpp", "--dtype", "float16"], "float32 and bfloat16"),
    ],
)
def test_words_that_do_not_fit(words, said, capsys):
    assert main(["bench", "--profile", str(tiny()), *words]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_it_is_measured_on_a_cpu_only():
    with pytest.raises(PortError, match="on a CPU, and this is cuda:0"):
        parts_peer.check_peers(["llama.cpp"], "cuda:0", torch.float32)
    parts_peer.check_peers(["transformers"], "cuda:0", torch.float16)


def test_without_the_package_the_command_to_install_it_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert main(["bench", "peer", "--with", "llama.cpp", "--profile", str(tiny())]) == 2
    said = capsys.readouterr().err
    assert "llama-cpp-python is not installed" in said
    assert "pip install 'dsv3-port[bench-peers]'" in said and len(said.splitlines()) == 1


def test_the_command_prints_differences_and_times(folder, stand_in, capsys):
    words = ["--profile", str(folder), "--context", "6", "--prefill", "5", "--rounds", "2"]
    assert main(["bench", "peer", "--with", "llama.cpp", *words]) == 0
    said = capsys.readouterr().out
    assert said.count("  llama.cpp, f32 cache: ") == 2 and "(at most 1e-05)" in said
    assert said.count("| llama.cpp, flash, f16 cache |") == 2


# from here on: the real one


@pytest.fixture(scope="module")
def real():
    return pytest.importorskip(
        "llama_cpp",
        reason="llama-cpp-python is not installed (extra bench-peers: a build of minutes)",
    )


def largest(ours, theirs):
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / ours.abs().max())


VARIANTS = {
    "published form": CONFIG,
    "one query matrix": CONFIG.replace(q_lora_rank=None),
    "rotary halves": CONFIG.replace(rope_interleave=False),
    "no yarn": CONFIG.replace(rope_scaling=None),
    "yarn, two mscales": CONFIG.replace(
        rope_scaling=RopeScaling(8, 32, mscale=1.0, mscale_all_dim=0.4)
    ),
    "yarn without mscales": CONFIG.replace(rope_scaling=RopeScaling(8, 32)),
    "yarn, attention factor": CONFIG.replace(rope_scaling=RopeScaling(8, 32, attention_factor=0.7)),
    "one group": CONFIG.replace(n_group=1, topk_group=1),
    "all groups": CONFIG.replace(topk_group=4),
    "weights as they are": CONFIG.replace(norm_topk_prob=False, routed_scaling_factor=1.0),
    "tied head, two shared": CONFIG.replace(tie_word_embeddings=True, n_shared_experts=2),
    "values wider than keys": CONFIG.replace(v_head_dim=24, qk_nope_head_dim=8),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_its_logits_are_ours(real, tmp_path, name):
    """float32 throughout: a prompt of two sequences, all positions; then steps, and steps again
    after the cache was rewound."""
    folder = synthetic_checkpoint(VARIANTS[name], cache_dir=tmp_path)
    model = load_model(folder, PortPlan.upstream(), "cpu", torch.float32)  # logits of all positions
    ids = random_ids(model, (2, 80), 3)
    with torch.no_grad():
        whole = model(ids)
    with llamacpp.llama_model(folder, torch.float32) as weights:
        every = LlamaPeer(LlamaForm("F32", False), weights, 2, 80, logits=0)
        assert largest(whole, every.forward(ids)) < 1e-5
        every.close()
        last = LlamaPeer(LlamaForm("F32", False), weights, 2, 80)
        last.fill(ids[:, :77])
        for at in (77, 78, 79):
            assert largest(whole[:, at], last.forward(ids[:, at : at + 1])[:, 0]) < 1e-5
        last.rewind(78)
        assert largest(whole[:, 78], last.forward(ids[:, 78:79])[:, 0]) < 1e-5
        last.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_paths_and_all_caches_on_the_embedded_model(real, dtype):
    for phase, batch, size in (("decode", 8, 40), ("prefill", 1, 48)):
        found = peer_run(tiny(), "tiny", dtype=dtype, phase=phase, batch=batch, size=size, **AT)
        assert set(FORMS[dtype]) <= set(found.results.names) and not found.left_out
        if dtype == "float32":
            assert found.results.differences["llama.cpp, f32 cache"] < 1e-5


def test_threads_are_torchs_and_no_file_stays(real, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.set_num_threads(3)
    with llamacpp.llama_model(folder, torch.float32) as weights:
        assert not list(tmp_path.iterdir())
        peer = LlamaPeer(LlamaForm("F16", True), weights, 1, 8)
        assert real.llama_n_threads(peer.pointer) == real.llama_n_threads_batch(peer.pointer) == 3
        peer.close()


def test_what_it_refuses_is_told(real, folder, tmp_path):
    with llamacpp.llama_model(folder, torch.float32) as weights:
        peer = LlamaPeer(LlamaForm("F32", False), weights, 1, 8)
        with pytest.raises(PortError, match="made for batch 1, given 2"):
            peer.forward(torch.zeros(2, 1, dtype=torch.long))
        with pytest.raises(
            PortError, match="0 positions are cached, 9 more pass its capacity of 8"
        ):
            peer.forward(torch.zeros(1, 9, dtype=torch.long))
        with pytest.raises(PortError, match=r"llama_decode of \[1, 1\] returned -1: \S"):
            peer.forward(torch.tensor([[CONFIG.vocab_size]]))
        peer.close()
        with pytest.raises(PortError, match="last position or of all"):
            LlamaPeer(LlamaForm("F32", False), weights, 1, 8, logits=3)
    broken = tmp_path / "model.gguf"
    broken.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(PortError, match=r"model.gguf cannot be loaded: \S"):
        llamacpp.LlamaModel(broken, CONFIG, torch.float32)

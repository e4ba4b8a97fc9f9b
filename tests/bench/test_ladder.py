"""bench_ladder on a model of a few kilobytes: what it checks, what it records, what it refuses."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

from dsv3_port.bench import ladder as ladder_module
from dsv3_port.bench import models as models_module
from dsv3_port.bench.ladder import bench_ladder
from dsv3_port.bench.models import ladder_plans, load_variants
from dsv3_port.bench.peer_forms import PeerForm, make_peer
from dsv3_port.bench.records import FAIR, PEER, UPSTREAM
from dsv3_port.check.equivalence import check_equivalence
from dsv3_port.check.peer import cache_argument, peer_model
from dsv3_port.engine import graph
from dsv3_port.errors import PortError
from dsv3_port.plan import PortPlan
from dsv3_port.steps import STEPS
from dsv3_port.weights.synthetic import synthetic_checkpoint
from tests.random_models import CONFIG, random_model

pytestmark = pytest.mark.filterwarnings("ignore:other processes used")
FEW = {
    UPSTREAM: PortPlan.upstream(),
    FAIR: PortPlan.upstream().replace(cache="fixed"),
    "full": PortPlan.full(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic_checkpoint(
        dataclasses.replace(CONFIG, fp8=True), cache_dir=tmp_path_factory.mktemp("ladder")
    )


def test_ladder_has_every_rung_of_the_registry():
    plans = ladder_plans(compiled=True, alone=True)
    rungs = [s.id for s in STEPS if s.field != "graph"]
    assert list(plans)[:2] == [UPSTREAM, FAIR] and [p for p in plans if p in rungs] == rungs
    assert plans[rungs[-1]] == PortPlan.full() and plans["ge_graph"].graph == "ge"
    assert plans["only merged_mlp"] == PortPlan.with_steps("merged_mlp")


def test_bench_records_both_phases_with_their_sizes(folder):
    results = bench_ladder(folder, plans=FEW, context=24, prefill=8, batch=2, rounds=2, peer=True)
    assert results.names == [*FEW, PEER]
    decode, prefill = results.get("full", "decode"), results.get("full", "prefill")
    assert (decode.context, decode.tokens, prefill.context, prefill.tokens, decode.batch) == (
        24,
        0,
        0,
        8,
        2,
    )
    assert (
        decode.step_ids == PortPlan.full().step_ids
        and decode.dtype == "float32"
        and decode.mode == "eager"
    )
    assert len(decode.samples) == 2 and decode.run != prefill.run
    assert results.ratio(UPSTREAM, "full", "decode").median > 0


def test_one_phase_only(folder):
    results = bench_ladder(
        folder,
        plans={UPSTREAM: PortPlan.upstream()},
        context=8,
        prefill=4,
        rounds=1,
        phases=["decode"],
    )
    assert [r.phase for r in results] == ["decode"]


def test_compiled_rung_compiles_once_per_phase(folder, monkeypatch):
    """Check and timing share shapes and strides; a recompile while timing would be counted as a
    slow step."""
    seen = []

    def counting(module, inputs):
        seen.append(module)
        return module.forward

    def compile_steps(model, mode):
        model.run_step = torch.compile(
            model.forward_step, fullgraph=True, dynamic=False, backend=counting
        )
        return model

    monkeypatch.setattr(graph, "compile_steps", compile_steps)
    torch._dynamo.reset()
    plans = {UPSTREAM: PortPlan.upstream(), "ge_graph": PortPlan.full().plus("ge_graph")}
    results = bench_ladder(folder, plans=plans, context=24, prefill=8, batch=2, rounds=2)
    assert len(seen) == 2
    record = results.get("ge_graph", "decode")
    assert record.mode == "compiled" and record.first_call_seconds > 10 * record.median


def test_different_logits_stop_the_bench(folder, monkeypatch):
    def load(path, plans, device, dtype):
        models = load_variants(path, plans, device, dtype)
        bias = models["full"].model.layers[1].mlp.gate.e_score_correction_bias
        bias.data = -30 * bias.data  # not in place: the variants share their weights
        return models

    monkeypatch.setattr(ladder_module, "load_variants", load)
    with pytest.raises(PortError, match="'full' differs from 'upstream'.*nothing was timed"):
        bench_ladder(folder, plans=FEW, context=8, prefill=8, rounds=1)


def test_variants_share_equal_weights(folder):
    models = load_variants(folder, FEW, "cpu", torch.float32)
    pointers = {m.lm_head.weight.data_ptr() for m in models.values()}
    assert len(pointers) == 1
    assert models["full"].model.layers[1].mlp.experts.group_w2.shape[0] == CONFIG.n_routed_experts


def test_bfloat16_passes_its_own_tolerance(folder):
    models = load_variants(folder, FEW, "cpu", torch.bfloat16)
    assert max(check_equivalence(models, batch=2).values()) <= 5e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "no-such-profile"}, "neither a checkpoint folder nor one of"),
        ({"phases": ["decode", "training"]}, "unknown phase"),
        ({"dtype": "float8"}, "dtype 'float8'"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_bad_input_is_a_sentence(folder, arguments, message):
    with pytest.raises(PortError, match=message):
        bench_ladder(**{"profile": folder, "rounds": 1} | arguments)


def test_too_large_a_ladder_is_refused_before_loading(folder, monkeypatch):
    class Memory:
        available = 1000

    monkeypatch.setattr(models_module.psutil, "virtual_memory", Memory)
    with pytest.raises(PortError, match="fewer plans or a smaller profile"):
        bench_ladder(folder, rounds=1)


def test_peer_needs_upstream_forms_and_a_shared_expert():
    with pytest.raises(PortError, match="upstream"):
        peer_model(random_model(PortPlan.full()))
    with pytest.raises(PortError, match="shared"):
        peer_model(random_model(PortPlan.upstream(), CONFIG.replace(n_shared_experts=0)))


def test_the_peers_cache_by_the_name_that_its_forward_has():
    """5.24 renamed it; an unknown name would be swallowed, and the peer would see no past."""

    class Before:
        def forward(self, input_ids, past_key_values=None, **kwargs): ...

    class Now:
        def forward(self, input_ids, cache=None, **kwargs): ...

    class Neither:
        def forward(self, input_ids, **kwargs): ...

    assert cache_argument(Before()) == "past_key_values" and cache_argument(Now()) == "cache"
    with pytest.raises(PortError, match="use the pinned version"):
        cache_argument(Neither())
    upstream = random_model(PortPlan.upstream())
    peer = make_peer(PeerForm("as loaded"), upstream, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        peer.forward(torch.arange(5).view(1, 5))
        peer.forward(torch.tensor([[7]]))
    assert peer.cache.get_seq_length() == 6

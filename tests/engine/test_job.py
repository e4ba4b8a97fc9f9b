"""The whole run over real ranks and gloo: one text whatever the number of ranks, and refusals
before any reading."""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsv3_port import DeepseekV3Config, PortError, PortPlan, load_model, load_tokenizer
from dsv3_port.engine.agreement import same_tokens
from dsv3_port.engine.job import Job, check_job, run_job, run_rank
from dsv3_port.engine.launch import run_ranks
from dsv3_port.engine.report import JobReport
from dsv3_port.engine.settings import Settings
from dsv3_port.engine.tokenizer import encode
from dsv3_port.parallel import TensorParallel
from dsv3_port.weights.sharding import shard_checkpoint
from dsv3_port.weights.write import write_checkpoint
from tests.oracle import hf_model
from tests.random_models import random_sources

DATA = Path(__file__).parents[2] / "data"
TINY = DATA / "tiny-dsv3"
PLAN = PortPlan.full()
COUNT = 12


def settings(folder: Path, **values) -> Settings:
    flags = {"model_dir": str(folder), "max_new_tokens": COUNT, "job_timeout": 60} | values
    return Settings.from_env_and_flags(flags, {})


def job(folder: Path, prompts: list[str], **values) -> Job:
    own = {
        k: values.pop(k) for k in ("temperature", "seed", "plan", "pad", "device") if k in values
    }
    return Job(settings(folder, **values), tuple(prompts), **{"plan": PLAN, "device": "cpu"} | own)


def tokens(report) -> list[list[int]]:
    return [g.token_ids for g in report.generations]


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Three of different lengths, so that a batch of them is ragged."""
    texts = json.loads((DATA / "prompts.json").read_text())["completion"]
    tokenizer = load_tokenizer(TINY)
    by_length = {len(ids): text for text, ids in zip(texts, encode(tokenizer, texts), strict=True)}
    assert len(by_length) >= 3
    return list(by_length.values())[:3]


@pytest.fixture(scope="module")
def oracle(prompts) -> list[list[int]]:
    """Greedy ids by transformers, one prompt at a time, no cache, no padding."""
    hf, tokenizer, found = hf_model(TINY), load_tokenizer(TINY), []
    stop = {tokenizer.eos_token_id, hf.config.eos_token_id}
    for ids in encode(tokenizer, prompts):
        out: list[int] = []
        with torch.no_grad():
            while len(out) < COUNT and not (out and out[-1] in stop):
                out.append(
                    int(hf(torch.tensor([ids + out]), use_cache=False).logits[0, -1].argmax())
                )
        found.append(out)
    return found


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> Path:
    """The embedded model split for two ranks."""
    folder = tmp_path_factory.mktemp("job") / "tp2"
    shard_checkpoint(TINY, folder, 2, dtype="fp32")
    return folder


def several(parallel: TensorParallel, jobs: dict[str, Job]) -> dict[str, JobReport | None]:
    """Each job over its own number of the started ranks, the first ones: starting eight is what
    takes long."""
    found = {}
    for name, each in jobs.items():
        world = each.settings.world_size
        group = torch.distributed.new_group(list(range(world)))
        if parallel.rank < world:
            found[name] = run_rank(TensorParallel(parallel.rank, world, group), each)
    return found


@pytest.fixture(scope="module")
def ran(halves, prompts) -> dict[str, JobReport]:
    """The reports of all jobs that need ranks, run one after the other by the same eight processes."""
    drawn = {"temperature": 0.9, "seed": 5, "batch_size": 3}
    jobs = {
        f"{world} ranks": job(TINY, prompts, world_size=world, batch_size=3) for world in (2, 4, 8)
    }
    paged = {"plan": PortPlan.upto("9"), "block_size": 16, "batch_size": 3}
    jobs |= {
        "paged": job(TINY, prompts, world_size=2, **paged),
        "paged, split folder": job(halves, prompts, **paged),
    }
    jobs |= {"drawn": job(halves, prompts, **drawn), "drawn again": job(halves, prompts, **drawn)}
    return run_ranks(
        several, 8, {name: check_job(each) for name, each in jobs.items()}, timeout_seconds=120
    )[0]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_give_the_text_of_transformers(world, prompts, oracle, request):
    """A ragged, left-padded batch, cut straight from the published checkpoint."""
    report = (
        run_job(job(TINY, prompts, world_size=1, batch_size=3))
        if world == 1
        else request.getfixturevalue("ran")[f"{world} ranks"]
    )
    assert tokens(report) == oracle
    assert [r.rank for r in report.ranks] == list(range(world))
    assert len({r.process for r in report.ranks}) == world
    assert report.ranks[0].parameters < 1.5 * report.ranks[-1].parameters
    assert (
        report.tokens_per_second > 0 and report.seconds_first > 0 and report.seconds_per_token > 0
    )


@pytest.mark.parametrize("name", ["1 rank", "paged", "paged, split folder"])
def test_a_paged_cache_gives_the_same_text(name, prompts, oracle, request):
    """In blocks of 16, so that sequences cross into new ones; the report counts blocks."""
    if name == "1 rank":
        own = job(TINY, prompts, plan=PortPlan.upto("9"), block_size=16, batch_size=3)
        report = run_job(own)
    else:
        report = request.getfixturevalue("ran")[name]
    longest = max(g.prompt_tokens for g in report.generations) + COUNT
    assert tokens(report) == oracle and longest > 16
    blocks = 3 * -(-longest // 16) + 1  # and the one that belongs to nobody
    row = DeepseekV3Config.from_pretrained(TINY).num_hidden_layers * (512 + 64) * 4
    assert {r.cache for r in report.ranks} == {blocks * 16 * row}


def test_a_block_size_needs_a_paged_cache(monkeypatch):
    with pytest.raises(PortError, match="--block-size is of the paged cache.*--plan production"):
        check_job(job(TINY, ["a"], block_size=32))
    monkeypatch.setenv("BLOCK_SIZE", "32")  # of a shell in which both plans are run
    check_job(Job(Settings.from_env_and_flags({"model_dir": str(TINY)}), ("a",), PLAN))


def test_a_split_folder_needs_no_world_size(halves, prompts, oracle, tmp_path):
    """WORLD_SIZE unset is the manifest's; batches of two and one; the report is JSON and a table."""
    report = run_job(job(halves, prompts, batch_size=2, hccl_deterministic="true"))
    assert tokens(report) == oracle and report.world_size == 2
    again = json.loads(json.dumps(report.to_dict()))
    assert [g["token_ids"] for g in again["generations"]] == oracle and len(again["ranks"]) == 2
    assert again["new_tokens"] == sum(map(len, oracle))
    assert "2 ranks" in report.summary() and "weights, MiB" in report.summary()


def test_graph_mode_gives_the_same_text_over_two_ranks(prompts, tmp_path):
    """Prompts padded to INPUT_MAX_LEN, the last batch filled up to the compiled shape, compiling
    outside the times.

    A model of one layer, of experts, so that compiling takes less: every collective of the model is
    in it."""
    config = replace(
        DeepseekV3Config.from_pretrained(TINY),
        num_hidden_layers=1,
        first_k_dense_replace=0,
        num_nextn_predict_layers=0,
    )
    small = write_checkpoint(tmp_path / "small", config, random_sources(config).items())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, small)
    want = tokens(run_job(job(small, prompts, batch_size=1)))
    report = run_job(
        job(small, prompts, world_size=2, batch_size=2, exe_mode="dynamo", input_max_len=24)
    )
    assert tokens(report) == want and report.mode == "ge"
    assert report.seconds_warm_up > 0 and len(report.generations) == 3


def test_padding_to_the_full_length_changes_nothing(prompts, oracle):
    assert tokens(run_job(job(TINY, prompts, batch_size=3, pad=True, input_max_len=40))) == oracle


def test_drawn_text_depends_on_the_seed_alone(prompts, ran):
    """Not on the batch, nor on the ranks; which all chose the same or run_rank would have raised."""
    drawn = {"temperature": 0.9, "seed": 5}
    alone = tokens(run_job(job(TINY, prompts, **drawn)))
    assert tokens(run_job(job(TINY, prompts, batch_size=3, **drawn))) == alone
    assert tokens(run_job(job(TINY, prompts, batch_size=3, temperature=0.9, seed=6))) != alone
    assert tokens(ran["drawn"]) == tokens(ran["drawn again"]) == alone


def test_ranks_that_chose_other_tokens_are_named():
    with pytest.raises(PortError, match=r"ranks \[1\] chose other tokens than rank 0"):
        same_tokens(["a", "b", "a"])
    same_tokens(["a", "a"])


def test_what_does_not_fit_is_refused_before_any_weight_is_read(halves, tmp_path):
    """The folder holds no weights at all, and still the answer is about ranks and forms."""
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("manifest.json", "config.json"):
        (empty / name).write_bytes((halves / name).read_bytes())
    with pytest.raises(
        PortError, match=r"written for world size 2, WORLD_SIZE is 4 \(flag --world-size\)"
    ):
        run_job(job(empty, ["a"], world_size=4))
    with pytest.raises(PortError, match="written for the forms"):
        run_job(job(empty, ["a"], plan=PortPlan.with_steps("tensor_parallel")))
    with pytest.raises(PortError, match="3 ranks; world sizes that fit"):
        run_job(job(TINY, ["a"], world_size=3))
    with pytest.raises(PortError, match="16 ranks"):  # 8 heads
        run_job(job(TINY, ["a"], world_size=16))
    with pytest.raises(PortError, match="'tensor_parallel'"):
        run_job(job(TINY, ["a"], world_size=2, plan=PortPlan.upstream()))
    with pytest.raises(PortError, match="MASTER_PORT is not set"):
        run_job(job(TINY, ["a"], world_size=2, rank_id=1))


def test_prompts_that_are_too_long_say_what_to_set():
    long = "Once upon a time " * 30
    with pytest.raises(PortError, match="more than INPUT_MAX_LEN = 16: set it higher"):
        run_job(job(TINY, [long], input_max_len=16))
    with pytest.raises(PortError, match="are more than the model's 1024 positions"):
        run_job(job(TINY, ["The"], max_new_tokens=1024))


def test_the_device_is_settled_before_ranks_start(monkeypatch):
    assert check_job(job(TINY, ["a"], world_size=2, device="auto")).device in ("cpu", "cuda", "npu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    wanted = job(TINY, ["a"], world_size=2, device="cuda")
    with pytest.raises(PortError, match="2 ranks on this machine and 1 cuda devices"):
        check_job(wanted)
    assert check_job(replace(wanted, device="auto")).device == "cpu"
    there = replace(
        wanted, settings=settings(TINY, world_size=2, rank_id=1, local_rank=0, master_port=1)
    )
    assert check_job(there).device == "cuda"  # the other rank has a machine of its own


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


M_MMAP_THRESHOLD = -3  # malloc.h


def peaks_of_rank(parallel: TensorParallel, tiny: str, folders: list[str]) -> list[tuple[int, int]]:
    """For each folder: largest growth while this rank loads it, and the bytes of the loaded
    parameters."""
    ctypes.CDLL(None).mallopt(
        M_MMAP_THRESHOLD, 128 << 10
    )  # fixed: glibc raises it and then keeps freed tensors
    load_model(
        tiny, PLAN, "cpu", "float32", parallel
    )  # what the libraries themselves take at first use
    found = []
    for folder in folders:
        ctypes.CDLL(None).malloc_trim(
            0
        )  # pages that the allocator kept would be taken again without being seen
        before, seen, done = anonymous_bytes(), [], threading.Event()

        def watch(seen=seen, done=done):
            while not done.wait(0.0005):
                seen.append(anonymous_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        model = load_model(folder, PLAN, "cpu", "float32", parallel)
        done.set()
        watcher.join()
        assert len(seen) > 20
        found.append((max(seen) - before, sum(p.nbytes for p in model.parameters())))
        del model
        gc.collect()
    return found


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_a_rank_loads_without_doubling_its_memory(tmp_path):
    """The largest size while loading is that of the loaded model and little more: tensors go
    straight into place."""
    config = replace(
        DeepseekV3Config.from_pretrained(TINY),
        intermediate_size=8192,
        moe_intermediate_size=512,
        n_routed_experts=32,
        num_nextn_predict_layers=0,
    )
    whole = write_checkpoint(tmp_path / "whole", config, random_sources(config).items())
    shard_checkpoint(whole, tmp_path / "tp2", 2, dtype="fp32")
    for found in run_ranks(peaks_of_rank, 2, str(TINY), [str(tmp_path / "tp2"), str(whole)]):
        for peak, held in found:
            assert held > 90e6 and held * 0.9 < peak < held * 1.25


def test_ranks_that_were_given_other_prompts(monkeypatch):
    """Every rank hears the same sentence, before their collectives could differ."""
    from dsv3_port.engine import agreement as module
    from dsv3_port.engine.job import _inputs

    one, two = job(TINY, ["Once"], world_size=2), job(TINY, ["Once upon a time"], world_size=2)
    inputs = []
    for mine in (one, two):
        monkeypatch.setattr(module, "_gathered", lambda _, own: inputs.append(own) or [own, own])
        module.inputs_agree(TensorParallel(0, 2), _inputs(mine))
    monkeypatch.setattr(module, "_gathered", lambda *_: inputs)
    for rank in (0, 1):
        with pytest.raises(PortError, match="rank 1 was started with other input.*prompts"):
            module.inputs_agree(TensorParallel(rank, 2), _inputs(one))

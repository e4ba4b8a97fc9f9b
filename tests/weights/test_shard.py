"""The on-disk splitter: what is written, what is refused, and that nothing half-written looks
complete."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from dsv3_port import DeepseekV3Config, PortError, PortPlan, load_model
from dsv3_port.parallel import TensorParallel
from dsv3_port.weights import sharding
from dsv3_port.weights.checkpoint import Checkpoint
from dsv3_port.weights.layout import targets
from dsv3_port.weights.left_out import left_out
from dsv3_port.weights.sharding import (
    estimate,
    is_sharded,
    load_shard,
    rank_folder,
    shard_checkpoint,
    source,
    split,
    verify_shards,
)
from dsv3_port.weights.synthetic import synthetic_checkpoint
from tests.oracle import plain_tensors

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
CONFIG = DeepseekV3Config.from_pretrained(TINY)
LAYOUTS = [
    PortPlan(tensor_parallel=True, attention=a, experts=e, mlp=m)
    for a, e, m in itertools.product(
        ("expanded", "low_rank"), ("loop", "grouped"), ("split", "merged")
    )
]
PLANS = {
    "full": PortPlan.full(),
    "tp": PortPlan.with_steps("tensor_parallel"),
    "low rank, loop": PortPlan.with_steps("tensor_parallel", "mla_low_rank"),
    "grouped, split": PortPlan.with_steps("tensor_parallel", "gmm_routing"),
}


def parameters(model) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", PLANS)
def test_written_ranks_equal_the_in_memory_cut(name, dtype, tmp_path):
    plan, world = PLANS[name], 4
    report = shard_checkpoint(
        TINY, tmp_path / "out", world, plan=plan, dtype=dtype, file_bytes=1 << 20
    )
    assert report.tensors_left_out > 0 and report.ranks == [0, 1, 2, 3] and report.complete
    for rank in range(world):
        place = TensorParallel(rank, world)
        got = parameters(load_model(tmp_path / "out", plan, "cpu", dtype, place))
        want = parameters(load_model(TINY, plan, "cpu", dtype, place))
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert got[key].dtype == value.dtype and torch.equal(got[key], value), key
    assert len(list((tmp_path / "out" / rank_folder(0, world)).glob("*.safetensors"))) > 1
    assert is_sharded(tmp_path / "out") and not is_sharded(TINY)


def joined(
    out: Path, plan: PortPlan, world: int, sources: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The published tensors put together again from the files of all ranks, by the inverse of every
    form."""
    config = DeepseekV3Config.from_pretrained(out)
    heads = {"nope": config.qk_nope_head_dim, "value": config.v_head_dim}
    back = {name: torch.full_like(t, float("nan")) for name, t in sources.items()}
    for rank in range(world):
        held = {}
        for file in (out / rank_folder(rank, world)).glob("*.safetensors"):
            held |= load_file(file)
        for target in targets(config, plan, TensorParallel(rank, world)):
            stored = held.pop(target.name)
            for p in target.pieces:
                part = (stored[p.at] if p.at else stored).narrow(0, p.offset, p.rows)
                place = back[p.source].narrow(p.dim, p.start, p.length)
                if "kv_b_proj_w_k" in target.name:  # [N, Dn, R] are the first Dn rows of each head
                    place.unflatten(0, (-1, sum(heads.values())))[:, : heads["nope"]] = part
                elif "kv_b_proj_w_v" in target.name:  # [N, R, Dv] are the others, transposed
                    place.unflatten(0, (-1, sum(heads.values())))[:, heads["nope"] :] = (
                        part.transpose(1, 2)
                    )
                else:
                    place.copy_(part)
        assert not held, "a rank holds what the layout does not know"
    return back


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("plan", LAYOUTS, ids=lambda p: f"{p.attention}-{p.experts}-{p.mlp}")
def test_round_trip(plan, world, tmp_path):
    """Split, joined again: the source bit for bit, its FP8 dequantised by the plain definition, for
    every form."""
    dtype = {1: "bf16", 2: "fp32", 4: "bf16", 8: "fp32"}[world]
    shard_checkpoint(TINY, tmp_path, world, plan=plan, dtype=dtype, jobs=2, file_bytes=1 << 20)
    sources = {n: t for n, t in plain_tensors(TINY).items() if left_out(CONFIG, n) is None}
    back = joined(tmp_path, plan, world, sources)
    for name, value in sources.items():
        kept = (
            torch.float32
            if name.endswith(("mlp.gate.weight", "correction_bias"))
            else sharding.DTYPES[dtype]
        )
        assert torch.equal(back[name], value.float().to(kept).to(back[name].dtype)), name


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_in_any_tiles(data, tmp_path_factory):
    """Odd widths, small tiles, several threads: what is written is what the in-memory cut gives."""
    heads, groups = data.draw(st.sampled_from([2, 4, 6])), data.draw(st.sampled_from([1, 2]))
    world = data.draw(st.sampled_from([w for w in (1, 2, 3) if heads % w == 0]))
    size = st.integers(1, 40)
    config = DeepseekV3Config.preset("small").replace(
        num_hidden_layers=2,
        hidden_size=data.draw(st.integers(1, 300)),
        vocab_size=world * data.draw(size),
        num_attention_heads=heads,
        kv_lora_rank=data.draw(size),
        q_lora_rank=data.draw(st.one_of(st.none(), size)),
        qk_nope_head_dim=data.draw(size),
        qk_rope_head_dim=2 * data.draw(size),
        v_head_dim=data.draw(size),
        intermediate_size=world * data.draw(st.integers(1, 150)),
        moe_intermediate_size=world * data.draw(size),
        n_routed_experts=4 * groups,
        n_group=groups,
        topk_group=1,
        num_experts_per_tok=2,
    )
    plan, fp8 = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.booleans())
    root = tmp_path_factory.mktemp("shapes")
    published = synthetic_checkpoint(config, fp8=fp8, cache_dir=root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "TILE", data.draw(st.sampled_from([1, 1 << 14])))
        shard_checkpoint(
            published, root / "out", world, plan=plan, dtype="fp32", jobs=2, file_bytes=1 << 17
        )
    for rank in range(world):
        place = TensorParallel(rank, world)
        got = parameters(load_model(root / "out", plan, "cpu", parallel=place))
        for key, value in parameters(load_model(published, plan, "cpu", parallel=place)).items():
            assert torch.equal(got[key], value), key


@pytest.mark.parametrize("plan", LAYOUTS, ids=lambda p: f"{p.attention}-{p.experts}-{p.mlp}")
def test_ranks_differ_only_in_where_their_cuts_begin(plan):
    """The splitter knows all ranks from rank 0's pieces."""
    first = list(targets(CONFIG, plan, TensorParallel(0, 4)))
    for rank in (1, 3):
        for mine, zero in zip(targets(CONFIG, plan, TensorParallel(rank, 4)), first, strict=True):
            assert (mine.name, mine.shape) == (zero.name, zero.shape)
            for p, q in zip(mine.pieces, zero.pieces, strict=True):
                assert p.start == q.start_of(rank)
                assert (p.source, p.dim, p.length, p.at, p.offset, p.rows) == (
                    q.source,
                    q.dim,
                    q.length,
                    q.at,
                    q.offset,
                    q.rows,
                )


def test_the_split_of_one_rank_runs_and_equals_the_checkpoint(tmp_path):
    shard_checkpoint(TINY, tmp_path / "out", 1, dtype="fp32")
    ids = torch.arange(3, 20).unsqueeze(0)
    assert torch.equal(
        load_model(tmp_path / "out", device="cpu")(ids), load_model(TINY, device="cpu")(ids)
    )


def test_several_machines_share_one_job(tmp_path):
    out = tmp_path / "out"
    shard_checkpoint(TINY, out, 2, ranks=[1])
    with pytest.raises(PortError, match="rank's folder is missing"):
        load_model(out, device="cpu", parallel=TensorParallel(0, 2))
    shard_checkpoint(TINY, out, 2, ranks=[0])
    for rank in (0, 1):
        load_model(out, device="cpu", parallel=TensorParallel(rank, 2))
    whole = tmp_path / "whole"
    shard_checkpoint(TINY, whole, 2)
    assert contents(out) == contents(whole), "two halves are the same as one run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_dry_run_writes_nothing_and_predicts_the_bytes(tmp_path):
    report = shard_checkpoint(TINY, tmp_path / "out", 2, dry_run=True)
    assert not (tmp_path / "out").exists() and "would write" in report.summary()
    shard_checkpoint(TINY, tmp_path / "out", 2)
    stored = 0
    for file in (tmp_path / "out" / rank_folder(0, 2)).glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            stored += sum(tensors.get_tensor(k).nbytes for k in tensors.keys())
    assert stored == report.bytes_per_rank


def test_a_finished_job_is_left_alone(tmp_path):
    out = tmp_path / "out"
    first = shard_checkpoint(TINY, out, 2)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*.safetensors")}
    again = shard_checkpoint(TINY, out, 2, verify=True)
    assert (
        again.bytes_read == 0 and again.tensors_resumed == again.tensors_read == first.tensors_read
    )
    assert again.verified and again.complete and "verified" in again.summary()
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*.safetensors")}
    assert not (out / ".shard").exists(), "locks and journals are gone when the job is done"


def test_refusals(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(
        PortError, match=r"vocab_size = 1024 cannot be cut over 3 ranks.*fit: \[1, 2, 4, 8\]"
    ):
        shard_checkpoint(TINY, out, 3)
    with pytest.raises(PortError, match="needs the step 'tensor_parallel'"):
        shard_checkpoint(TINY, out, 2, plan=PortPlan.upstream())
    with pytest.raises(PortError, match="not within"):
        shard_checkpoint(TINY, out, 2, ranks=[2])
    with pytest.raises(PortError, match="dtype 'int8'"):
        shard_checkpoint(TINY, out, 2, dtype="int8")
    with pytest.raises(PortError, match="jobs must be 1 or more"):
        shard_checkpoint(TINY, out, 2, jobs=0)
    assert not out.exists()
    shard_checkpoint(TINY, out, 2)
    with pytest.raises(PortError, match="already there; remove it, or leave out --no-resume"):
        shard_checkpoint(TINY, out, 2, resume=False)
    with pytest.raises(PortError, match=r"already there and differs in dtype \(bf16, not fp32\)"):
        shard_checkpoint(TINY, out, 2, dtype="fp32")
    with pytest.raises(PortError, match="another world size"):
        shard_checkpoint(TINY, out, 4)
    with pytest.raises(PortError, match="written for world size 2, WORLD_SIZE is 1: set it to 2"):
        load_model(out, device="cpu")
    with pytest.raises(PortError, match="written for the forms"):
        load_model(
            out, PortPlan.with_steps("tensor_parallel"), "cpu", parallel=TensorParallel(0, 2)
        )


def test_another_checkpoint_does_not_continue_a_job(tmp_path):
    other = Path(shutil.copytree(TINY, tmp_path / "other"))
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(values | {"rms_norm_eps": 1e-5}))
    out = tmp_path / "out"
    shard_checkpoint(TINY, out, 2, ranks=[0])
    with pytest.raises(PortError, match="already there and differs in source checkpoint"):
        shard_checkpoint(other, out, 2)
    shard_checkpoint(other, tmp_path / "from other", 2, ranks=[1])
    shutil.copytree(tmp_path / "from other" / rank_folder(1, 2), out / rank_folder(1, 2))
    with pytest.raises(PortError, match="comes from another split .source checkpoint"):
        load_model(out, device="cpu", parallel=TensorParallel(1, 2))


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    for dry_run in (True, False):
        with pytest.raises(PortError, match="are needed and .* are free"):
            shard_checkpoint(TINY, tmp_path / "out", 2, dry_run=dry_run)
    assert not list((tmp_path / "out").glob("rank-*"))


def test_a_dry_run_says_that_a_place_cannot_be_written(tmp_path, monkeypatch):
    def denied(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(estimate.tempfile, "TemporaryFile", denied)
    with pytest.raises(PortError, match="cannot be written to: Permission denied"):
        shard_checkpoint(TINY, tmp_path, 2, dry_run=True)


def test_a_damaged_rank_is_refused_by_name(tmp_path):
    out = tmp_path / "out"
    shard_checkpoint(TINY, out, 1)
    (file,) = (out / rank_folder(0, 1)).glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(
        PortError, match=f"{file.name}: {len(whole) - 10} bytes, the manifest says {len(whole)}"
    ):
        load_model(out, device="cpu")
    file.unlink()
    with pytest.raises(PortError, match=f"{file.name}: is missing"):
        load_model(out, device="cpu")
    file.write_bytes(whole)
    load_model(out, device="cpu")
    (file.parent / "manifest.json").write_text((file.parent / "manifest.json").read_text() + " ")
    with pytest.raises(PortError, match="is not the one that the job's manifest.json knows"):
        load_model(out, device="cpu")
    (file.parent / "manifest.json").unlink()
    with pytest.raises(PortError, match="has no manifest.json"):
        load_model(out, device="cpu")
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(PortError, match="format 99"):
        load_model(out, device="cpu")


def test_one_flipped_bit_is_found(tmp_path):
    """Every tensor is covered by a hash, and so is the header; the load finds it when it is asked
    to."""
    out = tmp_path / "out"
    shard_checkpoint(TINY, out, 1, file_bytes=1 << 20)
    assert verify_shards(out) > 0
    files = sorted((out / rank_folder(0, 1)).glob("*.safetensors"))
    random = torch.Generator().manual_seed(0)
    for file in files[:: max(1, len(files) // 6)]:
        whole = bytearray(file.read_bytes())
        for at in (
            20,
            int(torch.randint(len(whole) // 2, len(whole), (), generator=random)),
            len(whole) - 1,
        ):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << int(torch.randint(8, (), generator=random))
            file.write_bytes(flipped)
            with pytest.raises(
                PortError, match=f"{file.name}: .*(differs from its hash|header is damaged)"
            ):
                verify_shards(out)
        with pytest.raises(PortError, match="differs from its hash"):
            load_shard(
                out,
                PortPlan.full(),
                TensorParallel(0, 1),
                torch.device("cpu"),
                torch.float32,
                check_hashes=True,
            )
        file.write_bytes(whole)
    assert verify_shards(out) > 0


def test_after_the_plan_nobody_asks_the_checkpoint(tmp_path, monkeypatch):
    real = split.stream

    def stream(*args):
        monkeypatch.setattr(
            Checkpoint, "_entry", lambda self, name: pytest.fail(f"asked of {name}")
        )
        return real(*args)

    monkeypatch.setattr(split, "stream", stream)
    assert shard_checkpoint(TINY, tmp_path / "out", 2, verify=True).complete


def test_progress_is_quiet_off_a_terminal(tmp_path, capfd):
    shard_checkpoint(TINY, tmp_path / "out", 2, progress=True, verify=True)
    assert capfd.readouterr() == ("", "")

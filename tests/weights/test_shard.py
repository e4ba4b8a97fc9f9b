"""The on-disk splitter: what is written, what is refused, and that nothing half-written looks complete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dsv3_port import PortError, PortPlan, load_model
from dsv3_port.parallel import TensorParallel
from dsv3_port.weights import shard
from dsv3_port.weights.shard import is_sharded, rank_folder, shard_checkpoint

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
PLANS = {"full": PortPlan.full(), "tp": PortPlan.with_steps("tensor_parallel"),
         "low rank, loop": PortPlan.with_steps("tensor_parallel", "mla_low_rank"),
         "grouped, split": PortPlan.with_steps("tensor_parallel", "gmm_routing")}


def parameters(model) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", PLANS)
def test_written_ranks_equal_the_in_memory_cut(name, dtype, tmp_path):
    plan, world = PLANS[name], 4
    report = shard_checkpoint(TINY, tmp_path / "out", world, plan=plan, dtype=dtype, file_bytes=1 << 20)
    assert report.tensors_left_out > 0 and report.ranks == [0, 1, 2, 3]
    for rank in range(world):
        place = TensorParallel(rank, world)
        got = parameters(load_model(tmp_path / "out", plan, "cpu", dtype, place))
        want = parameters(load_model(TINY, plan, "cpu", dtype, place))
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert got[key].dtype == value.dtype and torch.equal(got[key], value), key
    assert len(list((tmp_path / "out" / rank_folder(0, world)).glob("*.safetensors"))) > 1
    assert is_sharded(tmp_path / "out") and not is_sharded(TINY)


def test_the_split_of_one_rank_runs_and_equals_the_checkpoint(tmp_path):
    shard_checkpoint(TINY, tmp_path / "out", 1, dtype="fp32")
    ids = torch.arange(3, 20).unsqueeze(0)
    assert torch.equal(load_model(tmp_path / "out", device="cpu")(ids), load_model(TINY, device="cpu")(ids))


def test_several_machines_share_one_job(tmp_path):
    out = tmp_path / "out"
    shard_checkpoint(TINY, out, 2, ranks=[1])
    with pytest.raises(PortError, match="rank's folder is missing"):
        load_model(out, device="cpu", parallel=TensorParallel(0, 2))
    shard_checkpoint(TINY, out, 2, ranks=[0])
    for rank in (0, 1):
        load_model(out, device="cpu", parallel=TensorParallel(rank, 2))


def test_dry_run_writes_nothing_and_predicts_the_bytes(tmp_path):
    report = shard_checkpoint(TINY, tmp_path / "out", 2, dry_run=True)
    assert not (tmp_path / "out").exists() and "would write" in report.summary()
    shard_checkpoint(TINY, tmp_path / "out", 2)
    stored = 0
    for file in (tmp_path / "out" / rank_folder(0, 2)).glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            stored += sum(tensors.get_tensor(k).nbytes for k in tensors.keys())
    assert stored == report.bytes_per_rank


def test_refusals(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(PortError, match="world sizes that fit"):
        shard_checkpoint(TINY, out, 3)
    with pytest.raises(PortError, match="needs the step 'tensor_parallel'"):
        shard_checkpoint(TINY, out, 2, plan=PortPlan.upstream())
    with pytest.raises(PortError, match="not within"):
        shard_checkpoint(TINY, out, 2, ranks=[2])
    with pytest.raises(PortError, match="dtype 'int8'"):
        shard_checkpoint(TINY, out, 2, dtype="int8")
    assert not out.exists()
    shard_checkpoint(TINY, out, 2)
    with pytest.raises(PortError, match="already there"):
        shard_checkpoint(TINY, out, 2)
    with pytest.raises(PortError, match="another world size"):
        shard_checkpoint(TINY, out, 4)
    with pytest.raises(PortError, match="written for world size 2, this run has 1"):
        load_model(out, device="cpu")
    with pytest.raises(PortError, match="written for the forms"):
        load_model(out, PortPlan.with_steps("tensor_parallel"), "cpu", parallel=TensorParallel(0, 2))


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shard.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(PortError, match="are needed and .* are free"):
        shard_checkpoint(TINY, tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    out = tmp_path / "out"
    calls = iter(range(10**9))

    def write(fd, data, place):
        if next(calls) > 100:
            raise OSError(28, "No space left on device")
        return real(fd, data, place)

    real = shard.os.pwrite
    monkeypatch.setattr(shard.os, "pwrite", write)
    with pytest.raises(PortError, match="No space left on device; nothing was completed"):
        shard_checkpoint(TINY, out, 2)
    monkeypatch.undo()
    with pytest.raises(PortError, match="split was not finished"):
        load_model(out, device="cpu", parallel=TensorParallel(0, 2))
    shard_checkpoint(TINY, out, 2)
    load_model(out, device="cpu", parallel=TensorParallel(0, 2))


def test_a_damaged_rank_is_refused_by_name(tmp_path):
    out = tmp_path / "out"
    shard_checkpoint(TINY, out, 1)
    (file,) = (out / rank_folder(0, 1)).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(PortError, match="not readable as safetensors"):
        load_model(out, device="cpu")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["format"] = 99
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PortError, match="format 99"):
        load_model(out, device="cpu")

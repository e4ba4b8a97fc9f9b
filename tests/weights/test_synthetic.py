"""Random-weight checkpoints: published names and sizes, same bytes from same arguments, sane
activations."""

from __future__ import annotations

import math
import multiprocessing
from collections import Counter

import pytest
import torch

from dsv3_port import DeepseekV3Config, PortError, PortPlan, load_model
from dsv3_port.config import RopeScaling
from dsv3_port.weights.checkpoint import INDEX, Checkpoint
from dsv3_port.weights.fp8 import scale_shape, stored_as_fp8
from dsv3_port.weights.synthetic import published_tensors, single_layer_config, synthetic_checkpoint

SMALL = DeepseekV3Config.preset("small").replace(num_hidden_layers=2, vocab_size=64)
FULL = DeepseekV3Config.preset("v3-671b")


def test_671b_has_the_published_sizes():
    """671.0 B parameters, 684.5 B with the MTP layer; 91,991 entries with the scales, 689 GB."""
    tensors = list(published_tensors(FULL))
    sizes = {name: math.prod(shape) for name, shape, _ in tensors}
    mtp = sum(n for name, n in sizes.items() if name.startswith("model.layers.61."))
    assert round((sum(sizes.values()) - mtp) / 1e9, 1) == 671.0
    assert round(sum(sizes.values()) / 1e9, 1) == 684.5
    entries, stored = len(tensors), 0
    for name, shape, dtype in tensors:
        if stored_as_fp8(name):
            entries += 1
            stored += sizes[name] + 4 * math.prod(scale_shape(*shape))
        else:
            stored += sizes[name] * dtype.itemsize
    assert entries == 91_991
    assert round(stored / 1e9) == 689


def test_mtp_layer_has_its_own_tensors():
    config = SMALL.replace(num_nextn_predict_layers=1)
    names = [n for n, _, _ in published_tensors(config)]
    own = {n.removeprefix("model.layers.2.") for n in names if n.startswith("model.layers.2.")}
    assert {
        "embed_tokens.weight",
        "enorm.weight",
        "hnorm.weight",
        "eh_proj.weight",
        "shared_head.norm.weight",
        "shared_head.head.weight",
        "mlp.gate.e_score_correction_bias",
        "self_attn.kv_b_proj.weight",
    } <= own
    assert len(names) == len(set(names))
    assert not [n for n, _, _ in published_tensors(SMALL) if n.startswith("model.layers.2.")]


def test_a_written_checkpoint_holds_what_was_announced(tmp_path):
    config = SMALL.replace(num_nextn_predict_layers=1)
    checkpoint = Checkpoint.open(synthetic_checkpoint(config, cache_dir=tmp_path))
    assert checkpoint.config == config
    announced = {
        n: (s, torch.float8_e4m3fn if stored_as_fp8(n) else d)
        for n, s, d in published_tensors(config)
    }
    assert {
        n: (checkpoint.shape(n), checkpoint.stored_dtype(n)) for n in checkpoint.names
    } == announced


def test_the_same_arguments_give_the_same_folder_and_bytes(tmp_path):
    first = synthetic_checkpoint(SMALL, cache_dir=tmp_path / "a")
    stamp = (first / INDEX).stat().st_mtime_ns
    assert synthetic_checkpoint(SMALL, cache_dir=tmp_path / "a") == first
    assert (first / INDEX).stat().st_mtime_ns == stamp
    second = synthetic_checkpoint(SMALL, cache_dir=tmp_path / "b")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()
    others = [
        synthetic_checkpoint(SMALL, seed=1, cache_dir=tmp_path / "a"),
        synthetic_checkpoint(SMALL, fp8=False, cache_dir=tmp_path / "a"),
        synthetic_checkpoint(SMALL.replace(vocab_size=72), cache_dir=tmp_path / "a"),
    ]
    assert len({first, *others}) == 4


def _make(folder: str, results) -> None:
    results.put(str(synthetic_checkpoint(SMALL, cache_dir=folder)))


def test_processes_that_start_at_once_share_one_checkpoint(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=_make, args=(str(tmp_path), results)) for _ in range(2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(120)
        assert p.exitcode == 0
    assert results.get() == results.get()
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1
    Checkpoint.open(next(p for p in tmp_path.iterdir() if p.is_dir()))


def test_activations_stay_sane_and_routing_is_spread(tmp_path):
    config = DeepseekV3Config.preset("small")
    model = load_model(synthetic_checkpoint(config, cache_dir=tmp_path), PortPlan.full(), "cpu")
    chosen: Counter[int] = Counter()
    gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    for gate in gates:
        gate.register_forward_hook(lambda _m, _i, out: chosen.update(out[0].flatten().tolist()))
    ids = torch.randint(0, config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))
    logits = model(ids)
    assert bool(logits.isfinite().all()) and 0.1 < float(logits.std()) < 10
    assert len(gates) == 3 and set(chosen) == set(range(config.n_routed_experts))
    assert max(chosen.values()) < 4 * min(chosen.values())


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("ranks", [8, 16, 32])
def test_one_layer_of_the_671b_model_as_a_rank_holds_it(kind, ranks):
    config = single_layer_config(kind, ranks)
    assert (
        config.hidden_size == 7168 and config.n_routed_experts == 256 and config.vocab_size == 4096
    )
    assert (
        config.num_attention_heads * ranks == 128 and config.moe_intermediate_size * ranks == 2048
    )
    assert config.is_moe(0) == (kind == "moe")
    shapes = {n: s for n, s, _ in published_tensors(config)}
    assert shapes["model.layers.0.self_attn.o_proj.weight"] == (7168, 128 * 128 // ranks)
    assert not [n for n in shapes if n.startswith("model.layers.1.")]


def test_bad_input_is_a_sentence(tmp_path):
    with pytest.raises(PortError, match="700 GB"):
        synthetic_checkpoint("v3-671b", cache_dir=tmp_path)
    with pytest.raises(PortError, match="unknown preset 'w9'"):
        synthetic_checkpoint("w9", cache_dir=tmp_path)
    with pytest.raises(PortError, match="'dense' or 'moe', not 'sparse'"):
        single_layer_config("sparse")
    with pytest.raises(PortError, match="cannot be cut over 3 ranks"):
        single_layer_config("moe", 3)
    (tmp_path / "file").write_text("")
    with pytest.raises(PortError, match="cannot be written"):
        synthetic_checkpoint(
            SMALL.replace(rope_scaling=RopeScaling(4, 64)), cache_dir=tmp_path / "file" / "x"
        )

"""The checkpoint reader: published FP8, what transformers saves, and every way a folder can be
wrong."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsv3_port import DeepseekV3Config, PortError, PortPlan, load_model
from dsv3_port.weights.checkpoint import INDEX, Checkpoint
from dsv3_port.weights.layout import targets
from dsv3_port.weights.load import by_source, check_sources
from dsv3_port.weights.synthetic import published_tensors, synthetic_checkpoint
from dsv3_port.weights.write import write_checkpoint
from tests.oracle import hf_model, plain_tensors

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
SMALL = DeepseekV3Config.preset("small").replace(num_hidden_layers=2, vocab_size=64)


@pytest.fixture
def copy(tmp_path):
    """A copy of the embedded model that a test may damage."""
    return Path(shutil.copytree(TINY, tmp_path / "copy"))


def edit_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def rewrite(folder: Path, change) -> None:
    """Change the tensors of the shard that holds layer 0's kv_a_proj_with_mqa."""
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    file = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    tensors = load_file(file)
    change(tensors, name)
    save_file(tensors, file)


def test_the_embedded_model_is_in_the_published_form():
    checkpoint = Checkpoint.open(TINY)
    config = checkpoint.config
    assert config == DeepseekV3Config.preset("tiny")
    assert {n: checkpoint.shape(n) for n in checkpoint.names} == {
        n: s for n, s, _ in published_tensors(config)
    }
    kv_a = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    assert checkpoint.stored_dtype(kv_a) == torch.float8_e4m3fn
    assert checkpoint.shape(kv_a)[0] % 128, "an edge block is part of the format"
    assert checkpoint.stored_dtype("model.embed_tokens.weight") == torch.bfloat16
    bias = checkpoint.read("model.layers.1.mlp.gate.e_score_correction_bias")
    assert (
        checkpoint.stored_dtype("model.layers.1.mlp.gate.e_score_correction_bias") == torch.float32
    )
    assert bias.abs().max() > 0, "the bias was trained"
    assert len(checkpoint.files) > 1 and checkpoint.nbytes < 12 << 20
    assert json.loads((TINY / "config.json").read_text())["quantization_config"][
        "weight_block_size"
    ] == [128, 128]


def test_every_value_as_the_definition_says():
    checkpoint, plain = Checkpoint.open(TINY), plain_tensors(TINY)
    assert set(checkpoint.names) == set(plain)
    for name in checkpoint.names:
        assert torch.equal(checkpoint.read(name), plain[name].float()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_transformers_saves_loads_as_well(dtype, tmp_path):
    hf_model.__wrapped__(TINY).to(dtype).save_pretrained(tmp_path / "hf")
    assert "rope_parameters" in json.loads((tmp_path / "hf" / "config.json").read_text())
    want = load_model(TINY, PortPlan.full(), "cpu", dtype)
    got = load_model(tmp_path / "hf", PortPlan.full(), "cpu", dtype)
    assert (
        got.config.replace(fp8=True, num_nextn_predict_layers=1, torch_dtype="bfloat16")
        == want.config
    )
    for (name, a), (_, b) in zip(got.named_parameters(), want.named_parameters(), strict=True):
        torch.testing.assert_close(
            a, b, rtol=2**-8 if dtype == torch.bfloat16 else 0, atol=0, msg=name
        )


def test_plain_checkpoints_without_q_lora(tmp_path):
    config = SMALL.replace(q_lora_rank=None, rope_scaling=None)
    path = synthetic_checkpoint(config, fp8=False, cache_dir=tmp_path)
    checkpoint = Checkpoint.open(path)
    assert not checkpoint.config.fp8 and checkpoint.config.q_lora_rank is None
    ids = torch.arange(3, 12).unsqueeze(0)
    with torch.no_grad():
        want = hf_model(path)(ids, use_cache=False).logits[:, -1:]
    assert (
        float((load_model(path, device="cpu")(ids) - want).abs().max() / want.abs().max()) <= 1e-5
    )


def test_a_single_file_without_an_index(copy):
    tensors = {}
    for file in copy.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (copy / INDEX).unlink()
    save_file(tensors, copy / "model.safetensors")
    assert sorted(Checkpoint.open(copy).names) == sorted(Checkpoint.open(TINY).names)


@pytest.mark.parametrize("where", ["../outside.safetensors", "/etc/outside.safetensors"])
def test_an_index_cannot_leave_its_folder(copy, where):
    shard = next(copy.glob("*.safetensors"))
    shutil.copy(shard, copy.parent / "outside.safetensors")
    edit_index(copy, lambda m: m.update({"lm_head.weight": where}))
    with pytest.raises(PortError, match="lm_head.weight points to .* outside its folder"):
        Checkpoint.open(copy)


def test_a_link_cannot_leave_its_folder_either(copy):
    shard = sorted(copy.glob("*.safetensors"))[0]
    shutil.move(shard, copy.parent / "outside.safetensors")
    shard.symlink_to(copy.parent / "outside.safetensors")
    with pytest.raises(PortError, match="outside its folder"):
        Checkpoint.open(copy)


def test_the_links_of_the_hugging_face_cache_are_followed(tmp_path):
    """There a snapshot holds links to ../../blobs/<hash>."""
    home, blobs = tmp_path / "snapshots" / "0123abc", tmp_path / "blobs"
    home.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(p for p in TINY.iterdir() if p.is_file())):
        shutil.copy(file, blobs / str(number))
        (home / file.name).symlink_to(Path("../../blobs") / str(number))
    assert Checkpoint.open(home).names == Checkpoint.open(TINY).names


def test_a_lone_file_that_links_elsewhere_is_refused(copy):
    (copy / INDEX).unlink()
    shutil.move(sorted(copy.glob("*.safetensors"))[0], copy.parent / "outside.safetensors")
    (copy / "model.safetensors").symlink_to(copy.parent / "outside.safetensors")
    with pytest.raises(PortError, match="link to another place, outside its folder"):
        Checkpoint.open(copy)


def test_damaged_folders_are_named(copy):
    shard = sorted(copy.glob("*.safetensors"))[0]
    data = shard.read_bytes()
    shard.write_bytes(data[:-100])
    with pytest.raises(PortError, match=f"{shard.name}: .* truncated or damaged"):
        Checkpoint.open(copy)
    shard.write_bytes(b"not safetensors at all")
    with pytest.raises(PortError, match=f"{shard.name}: not readable as safetensors"):
        Checkpoint.open(copy)
    shard.write_bytes(struct.pack("<Q", 4) + b"[1, ")
    with pytest.raises(PortError, match=f"{shard.name}: not readable as safetensors"):
        Checkpoint.open(copy)
    header = b'{"a": {"data_offsets": [0, 0]}}'
    shard.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(
        PortError, match=f"{shard.name}: not readable as safetensors: a tensor without dtype"
    ):
        Checkpoint.open(copy)
    shard.unlink()
    with pytest.raises(PortError, match="is the download complete"):
        Checkpoint.open(copy)
    (copy / INDEX).write_text("{}")
    with pytest.raises(PortError, match="not a usable index"):
        Checkpoint.open(copy)
    (copy / INDEX).unlink()
    for file in copy.glob("*.safetensors"):
        file.unlink()
    (copy / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        PortError, match="pytorch_model.bin is a pickle, and only safetensors are read"
    ):
        Checkpoint.open(copy)
    with pytest.raises(PortError, match="no such file"):
        Checkpoint.open(copy / "nowhere")


def test_a_tensor_in_two_shards_is_refused(copy):
    first, second = sorted(copy.glob("*.safetensors"))[:2]
    tensors = load_file(first)
    name = next(iter(load_file(second)))
    tensors[name] = load_file(second)[name]
    save_file(tensors, first)
    with pytest.raises(PortError, match="is also in"):
        Checkpoint.open(copy)


def test_a_missing_scale_is_an_error_that_names_the_tensor(copy):
    rewrite(copy, lambda t, n: t.pop(n + "_scale_inv"))
    edit_index(
        copy, lambda m: m.pop("model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv")
    )
    with pytest.raises(
        PortError, match=r"kv_a_proj_with_mqa.weight is FP8 and its .*_scale_inv is missing"
    ):
        Checkpoint.open(copy)


def test_a_scale_of_another_shape_is_refused(copy):
    rewrite(copy, lambda t, n: t.update({n + "_scale_inv": torch.ones(3, 2)}))
    with pytest.raises(PortError, match=r"_scale_inv is \[3, 2\], which does not fit \[80, 256\]"):
        Checkpoint.open(copy)


def test_a_scale_that_is_not_float32_is_refused(copy):
    rewrite(copy, lambda t, n: t.update({n + "_scale_inv": t[n + "_scale_inv"].bfloat16()}))
    with pytest.raises(PortError, match="_scale_inv is stored as BF16; F32 is read"):
        Checkpoint.open(copy)


def test_an_impossible_scale_is_named_when_it_is_read(copy):
    rewrite(copy, lambda t, n: t[n + "_scale_inv"].fill_(float("nan")))
    with pytest.raises(
        PortError, match="kv_a_proj_with_mqa.weight: weight_scale_inv holds a negative"
    ):
        Checkpoint.open(copy).read("model.layers.0.self_attn.kv_a_proj_with_mqa.weight")


def test_an_index_that_names_the_wrong_shard(copy):
    first, second = sorted(copy.glob("*.safetensors"))[:2]
    name = next(iter(load_file(first)))
    edit_index(copy, lambda m: m.update({name: second.name}))
    with pytest.raises(
        PortError, match=f"says that {name} is in {second.name}, which does not hold it"
    ):
        Checkpoint.open(copy)


def test_a_value_is_the_callers_own():
    """Writing into it must not reach the file, whatever the stored form."""
    checkpoint = Checkpoint.open(TINY)
    for name in (
        "model.norm.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "lm_head.weight",
    ):
        value = checkpoint.read(name, checkpoint.stored_dtype(name))
        before = value.clone()
        value.zero_()
        assert torch.equal(checkpoint.read(name, before.dtype), before)
    with pytest.raises(PortError, match="there is no tensor lm_head.bias"):
        checkpoint.read("lm_head.bias")


def test_a_dtype_that_is_not_read_is_named(copy):
    rewrite(copy, lambda t, n: t.update({n: t[n].to(torch.int8)}))
    with pytest.raises(PortError, match="kv_a_proj_with_mqa.weight is stored as I8"):
        Checkpoint.open(copy)


def test_config_and_weights_that_do_not_belong_together(copy):
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps(values | {"num_hidden_layers": 5, "num_nextn_predict_layers": 0})
    )
    with pytest.raises(PortError, match="have no place in the model"):
        load_model(copy, device="cpu")  # the MTP layer's own tensors
    (copy / "config.json").write_text(json.dumps(values | {"n_routed_experts": 20}))
    with pytest.raises(PortError, match="are missing, first model.layers.1.mlp.experts.16"):
        load_model(copy, device="cpu")
    (copy / "config.json").write_text(json.dumps(values | {"intermediate_size": 256}))
    with pytest.raises(
        PortError, match=r"gate_proj.weight is \[512, 256\], config.json asks for \[256, 256\]"
    ):
        load_model(copy, device="cpu")


def test_writing_stops_clean(tmp_path):
    def breaks():
        yield "model.norm.weight", torch.ones(4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "out", SMALL, breaks())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "keep").write_text("mine")
    with pytest.raises(PortError, match="not empty"):
        write_checkpoint(tmp_path / "out", SMALL, [])


def test_any_flipped_bit_of_a_header_is_refused_or_harmless(copy):
    """A flip in the header, the index or a scale: an error that names the file, or the same values;
    never a crash."""
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    before = Checkpoint.open(copy)
    file, at, _ = before.place(name)
    shapes = {n: before.shape(n) for n in before.names}
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(60):
        flipped = bytearray(whole)
        place, bit = (int(torch.randint(n, (), generator=generator)) for n in (8 + length, 8))
        flipped[place] ^= 1 << bit
        file.write_bytes(flipped)
        try:
            found = Checkpoint.open(copy)
            check_sources(found, by_source(list(targets(found.config, PortPlan.full()))))
        except PortError as error:
            refused += file.name in str(error) or str(copy) in str(error)
        else:
            assert {n: found.shape(n) for n in found.names} == shapes, (place, bit)
    assert refused > 50
    file.write_bytes(whole[:-1])
    with pytest.raises(PortError, match=f"{file.name}: .*truncated or damaged"):
        Checkpoint.open(copy)


def test_a_name_that_is_listed_twice_is_refused(copy):
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    text = (copy / INDEX).read_text()
    line = next(x for x in text.splitlines() if f'"{name}"' in x)
    (copy / INDEX).write_text(text.replace(line, f"{line}\n{line}"))
    with pytest.raises(PortError, match=f"{name} is listed twice"):
        Checkpoint.open(copy)
    (copy / INDEX).write_text(text)
    file, _, _ = Checkpoint.open(copy).place(name)
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = whole[8 : 8 + length].rstrip()
    key, entry = f'"{name}":'.encode(), json.dumps(json.loads(header)[name]).encode()
    header = header[:-1] + b"," + key + entry + b"}"
    file.write_bytes(struct.pack("<Q", len(header)) + header + whole[8 + length :])
    with pytest.raises(PortError, match=f"{name} is listed twice"):
        Checkpoint.open(copy)


def test_tensors_that_overlap_are_refused(copy):
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    file, _, _ = Checkpoint.open(copy).place(name)
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    header[name]["data_offsets"] = [x - 1 for x in header[name]["data_offsets"]]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    with pytest.raises(PortError, match="does not fit its neighbours or its shape"):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": [[], 4]},
        {"shape": ["2", 4]},
        {"shape": [True, 4]},
        {"shape": [-2, -4]},
        {"data_offsets": [0.0, 8]},
    ],
    ids=str,
)
def test_sizes_in_a_header_are_whole_numbers(wrong, copy):
    """Also of a dtype whose bytes are not counted, where no other rule looks at the shape."""
    (copy / INDEX).unlink()
    for old in copy.glob("*.safetensors"):
        old.unlink()
    entry = {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 8]} | wrong
    text = json.dumps({"a": entry}).encode()
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(PortError, match="not readable as safetensors: a has a shape or place"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("promised", [True, False])
def test_a_config_that_contradicts_the_dtypes_is_refused(promised, tmp_path):
    source = synthetic_checkpoint(SMALL, fp8=not promised, cache_dir=tmp_path)
    values = json.loads((source / "config.json").read_text())
    values.pop("quantization_config", None)
    if promised:
        values |= {"quantization_config": SMALL.replace(fp8=True).to_dict()["quantization_config"]}
    (source / "config.json").write_text(json.dumps(values))
    match = (
        "stored as bfloat16, and config.json promises FP8"
        if promised
        else "e4m3fn, and config.json says nothing"
    )
    with pytest.raises(PortError, match=match):
        load_model(source, device="cpu")

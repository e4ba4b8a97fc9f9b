"""What users' folders look like: links, pointers, other formats, few open files, odd outputs."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest

from dsv3_port import PortError, load_model, load_tokenizer
from dsv3_port.weights.checkpoint import Checkpoint
from dsv3_port.weights.sharding import shard_checkpoint
from tests.weights.spoil import copy, edit_json, header

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 3167072\n"


def linked(folder: Path, blobs: Path) -> Path:
    """A folder whose files are links into `blobs`."""
    made = copy(folder.with_name("made"))
    folder.mkdir(parents=True)
    blobs.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(sorted(made.iterdir())):
        shutil.move(file, blobs / f"{number:040x}")
        (folder / file.name).symlink_to(blobs / f"{number:040x}")
    return folder


def test_a_snapshot_of_the_hub_and_a_download_folder_that_links_into_it(tmp_path):
    cache = tmp_path / "models--deepseek-ai--DeepSeek-V3"
    for number, place in enumerate((cache / "snapshots" / "0123", tmp_path / "download")):
        folder = linked(place, cache / "blobs")
        load_model(folder, device="cpu")
        load_tokenizer(folder)
        assert shard_checkpoint(folder, tmp_path / f"out{number}", 1).complete
        assert not (tmp_path / f"out{number}" / "config.json").is_symlink()


def modelscope(folder: Path) -> Path:
    """A folder as ModelScope's client leaves it: real files, and its own beside them."""
    made = copy(folder)
    (made / "configuration.json").write_text('{"framework": "pytorch", "task": "text-generation"}')
    (made / ".mv").write_text("Revision:master,CreatedAt:1735200000")
    for name in (".msc", ".mdl"):  # pickles: nobody may open them
        (made / name).write_bytes(b"\x80\x04cos\nsystem\n\x8c\x04exit\x85R.")
    (made / "._____temp" / "figures").mkdir(parents=True)
    (made / "._____temp" / "model-00001-of-000003.safetensors").write_bytes(b"half")
    return made


@pytest.mark.parametrize("linked_name", [False, True])
def test_a_folder_of_modelscope_and_its_cache(linked_name, tmp_path):
    home = tmp_path / "hub" / "models" / "deepseek-ai"
    home.mkdir(parents=True)
    folder = modelscope(home / ("DeepSeek-V3___1" if linked_name else "DeepSeek-V3"))
    if linked_name:  # a dot in a name is written as ___, and a link has the name itself
        (home / "DeepSeek-V3.1").symlink_to(folder)
        folder = home / "DeepSeek-V3.1"
    load_model(folder, device="cpu")
    load_tokenizer(folder)
    assert shard_checkpoint(folder, tmp_path / "out", 2).complete
    assert shard_checkpoint(copy(tmp_path / "plain"), tmp_path / "right", 2).complete
    out, right = (
        {f.relative_to(tmp_path / name): f for f in (tmp_path / name).rglob("*") if f.is_file()}
        for name in ("out", "right")
    )
    assert set(out) == set(right)  # nothing of ModelScope's own
    assert all(out[f].read_bytes() == right[f].read_bytes() for f in out if f.suffix != ".json")


@pytest.mark.parametrize(
    "name",
    ["special_tokens_map.json", "tokenizer_config.json", "generation_config.json", "config.json"],
)
def test_a_side_file_that_is_a_link_to_another_place(name, tmp_path):
    m = copy(tmp_path / "m")
    file = m / name
    outside = tmp_path / "private.json"
    outside.write_text(file.read_text() if file.exists() else '{"unk_token": "SECRET"}')
    file.unlink(missing_ok=True)
    file.symlink_to(outside)
    with pytest.raises(PortError, match=f"{name}: is a link out of its folder"):
        shard_checkpoint(m, tmp_path / "out", 1)
    assert not (tmp_path / "out" / name).exists()


@pytest.mark.parametrize(
    "name", ["model-00002-of-000003.safetensors", "config.json", "tokenizer.json"]
)
def test_a_pointer_that_git_lfs_left(name, tmp_path):
    m = copy(tmp_path / "m")
    (m / name).write_text(POINTER)
    with pytest.raises(PortError, match=f"{name}: is a pointer that Git LFS left.*git lfs pull"):
        load_tokenizer(m) if name == "tokenizer.json" else load_model(m, device="cpu")


def renamed(folder: Path, old: str, new: str) -> Path:
    """One tensor under another name."""
    for file in sorted(folder.glob("*.safetensors")):
        start, entries = header(file)
        if old in entries:
            data = file.read_bytes()[start:]
            entries[new] = entries.pop(old)
            text = json.dumps(entries).encode()
            file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"][new] = table["weight_map"].pop(old)
    index.write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize(
    "end,kind",
    [
        ("qweight", "GPTQ's or AWQ's"),
        ("g_idx", "GPTQ's"),
        ("weight_packed", "compressed-tensors'"),
        ("weight_offset", "Ascend's W8A8"),
        ("absmax", "bitsandbytes'"),
    ],
)
def test_tensors_of_another_format(end, kind, tmp_path):
    m = renamed(copy(tmp_path / "m"), "lm_head.weight", f"lm_head.{end}")
    with pytest.raises(PortError, match=f"lm_head.{end} is of {kind}"):
        Checkpoint.open(m)


def test_an_index_of_another_format(tmp_path):
    m = copy(tmp_path / "m")
    (m / "model.safetensors.index.json").rename(
        m / "quant_model_weight_w8a8.safetensors.index.json"
    )
    with pytest.raises(PortError, match="Ascend's own quantised format"):
        Checkpoint.open(m)


def test_an_mtp_layer_that_config_does_not_speak_of(tmp_path):
    m = copy(tmp_path / "m")
    edit_json(m / "config.json", num_nextn_predict_layers=None)
    load_model(m, device="cpu")
    assert shard_checkpoint(m, tmp_path / "out", 1).tensors_left_out > 0
    edit_json(m / "config.json", num_hidden_layers=3)  # a layer too few is no MTP layer
    with pytest.raises(PortError, match="tensors have no place in the model"):
        load_model(m, device="cpu")


@pytest.mark.parametrize("output", ["m", "m/split", "link", "link/split", "m/../m"])
def test_an_output_in_the_source(output, tmp_path):
    m = copy(tmp_path / "m")
    (tmp_path / "link").symlink_to(m)
    before = sorted(m.rglob("*"))
    for dry_run in (True, False):
        with pytest.raises(PortError, match="the output is the source"):
            shard_checkpoint(m, tmp_path / output, 1, dry_run=dry_run)
    assert sorted(m.rglob("*")) == before


def test_more_source_files_than_may_be_open(tmp_path):
    m = copy(tmp_path / "m")
    index = json.loads((m / "model.safetensors.index.json").read_text())
    for file in sorted(m.glob("*.safetensors")):
        start, entries = header(file)
        data = file.read_bytes()[start:]
        for number, (name, entry) in enumerate((k, v) for k, v in entries.items() if k[0] != "_"):
            first, last = entry["data_offsets"]
            text = json.dumps({name: {**entry, "data_offsets": [0, last - first]}}).encode()
            part = m / f"{file.stem}-{number:03d}.safetensors"
            part.write_bytes(len(text).to_bytes(8, "little") + text + data[first:last])
            index["weight_map"][name] = part.name
        file.unlink()
    (m / "model.safetensors.index.json").write_text(json.dumps(index))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        assert len(set(index["weight_map"].values())) > 200
        assert shard_checkpoint(m, tmp_path / "out", 2).complete
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

"""A split, a resumed split and a loaded folder are what is in their files, not names and sizes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dsv3_port import PortError, load_model
from dsv3_port.parallel import TensorParallel
from dsv3_port.weights import content, sharding
from dsv3_port.weights.sharding import rank_folder, shard_checkpoint, source, verify_shards, workers
from tests.weights.spoil import copy, edit_json, header, poke

NORM = "model.layers.2.input_layernorm.weight"


@pytest.fixture
def twins(tmp_path) -> tuple[Path, Path]:
    """Two checkpoints with the same names, sizes and times; one value of one norm differs."""
    a, b = copy(tmp_path / "a"), copy(tmp_path / "b")
    file = poke(b, NORM, b"\x00\x3f", at=6)
    stat = (a / file.name).stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return a, b


def test_another_checkpoint_of_the_same_layout_is_not_a_finished_split(twins, tmp_path):
    a, b = twins
    shard_checkpoint(a, tmp_path / "out", 1)
    with pytest.raises(PortError, match=f"the content of {NORM} differs .*empty folder"):
        shard_checkpoint(b, tmp_path / "out", 1)
    assert shard_checkpoint(a, tmp_path / "out", 1).bytes_read == 0


def test_ranks_of_two_checkpoints_do_not_make_a_job(twins, tmp_path):
    a, b = twins
    shard_checkpoint(a, tmp_path / "out", 2, ranks=[0])
    with pytest.raises(PortError, match=f"the content of {NORM} differs"):
        shard_checkpoint(b, tmp_path / "out", 2, ranks=[1])
    assert not (tmp_path / "out" / rank_folder(1, 2)).exists()


def test_two_hosts_that_end_at_once_compare_what_they_read(twins, tmp_path, monkeypatch):
    """Neither had a manifest to look at when it began."""
    a, b = twins
    monkeypatch.setattr(sharding.ranks, "earlier_contents", lambda *_: {})
    shard_checkpoint(a, tmp_path / "out", 2, ranks=[0])
    with pytest.raises(PortError, match="differs in values of the source|read another"):
        shard_checkpoint(b, tmp_path / "out", 2, ranks=[1])
    assert not (tmp_path / "out" / rank_folder(1, 2)).exists()


@pytest.mark.parametrize("also", ["same time", "new time"])
def test_a_source_that_changed_between_two_runs(also, tmp_path, monkeypatch):
    """Interrupted after the norm was written; the source is exchanged before the split goes on."""
    a, out = copy(tmp_path / "a"), tmp_path / "out"
    real, seen = source.split_source, []

    def split(reader, one, *rest):
        if len(seen) > 150:
            raise KeyboardInterrupt
        seen.append(one.name)
        return real(reader, one, *rest)

    monkeypatch.setattr(workers, "split_source", split)
    with pytest.raises(KeyboardInterrupt):
        shard_checkpoint(a, out, 2, jobs=1)
    monkeypatch.undo()
    norm = next(n for n in seen if n.endswith("layernorm.weight"))
    before = {f: f.stat() for f in a.glob("*.safetensors")}
    file = poke(a, norm, b"\x00\x3f", at=6)
    if also == "same time":
        os.utime(file, ns=(before[file].st_atime_ns, before[file].st_mtime_ns))
    with pytest.raises(PortError, match=f"the content of {norm} differs"):
        shard_checkpoint(a, out, 2)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_changed_side_file_is_another_job(name, tmp_path):
    m, out = copy(tmp_path / "m"), tmp_path / "out"
    shard_checkpoint(m, out, 2, ranks=[0])
    kept = (out / name).read_bytes()
    edit_json(m / name, note="x")
    with pytest.raises(PortError, match=f"differs in {name}"):
        shard_checkpoint(m, out, 2, ranks=[1])
    assert (out / name).read_bytes() == kept


def test_a_side_file_edited_in_a_finished_split(tmp_path):
    m, out = copy(tmp_path / "m"), tmp_path / "out"
    shard_checkpoint(m, out, 1)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        kept = (out / name).read_text("utf-8")
        edit_json(out / name, note="x")
        for look in (lambda: load_model(out, device="cpu"), lambda: verify_shards(out)):
            with pytest.raises(PortError, match=f"{name}: differs from the file"):
                look()
        (out / name).unlink()
        with pytest.raises(PortError, match=f"{name}: is missing"):
            load_model(out, device="cpu")
        (out / name).write_text(kept, "utf-8")
    (out / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(PortError, match="chat_template.jinja: was not there"):
        load_model(out, device="cpu")


def change_header(file: Path, how: str) -> None:
    start, entries = header(file)
    one, two = (entries[f"model.layers.{i}.input_layernorm.weight"] for i in (1, 2))
    if how == "dtype":
        one["dtype"] = "F16"
    elif how == "places":
        one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]
    else:
        one["shape"] = [one["shape"][0] // 2, 2]
    text = json.dumps(entries, separators=(",", ":")).encode()
    assert len(text) <= start - 8
    data = bytearray(file.read_bytes())
    data[8:start] = text.ljust(start - 8)
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["dtype", "places", "shape"])
def test_an_edited_header_of_a_rank(how, tmp_path):
    shard_checkpoint(copy(tmp_path / "m"), tmp_path / "out", 1)
    (file,) = (tmp_path / "out").rglob("*.safetensors")
    size = file.stat().st_size
    change_header(file, how)
    assert file.stat().st_size == size
    with pytest.raises(PortError, match=f"{file.name}: its header is damaged or was edited"):
        load_model(tmp_path / "out", device="cpu")


def test_a_changed_value_of_a_rank_is_seen_by_loading(tmp_path):
    out = tmp_path / "out"
    shard_checkpoint(copy(tmp_path / "m"), out, 2)
    file = poke(out, "model.norm.weight", b"\x00\x40")
    with pytest.raises(PortError, match=f"{file.name}: model.norm.weight differs from its hash"):
        load_model(out, device="cpu", parallel=TensorParallel(0, 2))
    load_model(out, device="cpu", parallel=TensorParallel(1, 2))


def test_what_was_read_is_remembered_while_the_file_stays_as_it_is(tmp_path, monkeypatch):
    """A second look is cheap, and a changed file is looked at again, also with its old time."""
    m, out = copy(tmp_path / "m"), tmp_path / "out"
    monkeypatch.setattr(content, "user_cache_dir", lambda _: str(tmp_path / "cache"))
    monkeypatch.setattr(content, "_WORTH", 0)
    monkeypatch.setattr(content, "_SETTLED", 0)
    shard_checkpoint(m, out, 1)
    load_model(out, device="cpu")
    hashed: list[str] = []
    real_split, real_hash = source.split_source, sharding.read._hash_value
    monkeypatch.setattr(
        workers, "split_source", lambda *a: (hashed.append(a[1].name), real_split(*a))[1]
    )
    monkeypatch.setattr(
        sharding.read, "_hash_value", lambda *a: (hashed.append("value"), real_hash(*a))[1]
    )
    shard_checkpoint(m, out, 1)
    load_model(out, device="cpu")
    assert not hashed
    (file,) = out.rglob("*.safetensors")
    for folder, look in (
        (m, lambda: shard_checkpoint(m, out, 1)),
        (out, lambda: load_model(out, device="cpu")),
    ):
        stat = {f: f.stat() for f in folder.rglob("*.safetensors")}
        file = poke(folder, NORM, b"\x00\x3f", at=6)
        os.utime(file, ns=(stat[file].st_atime_ns, stat[file].st_mtime_ns))
        with pytest.raises(PortError, match=f"{NORM} differs"):
            look()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"x": 1}', '{"x": {"stamp": [], "tensors": []}}', "[" * 99999]
)
def test_a_damaged_memory_is_no_memory(text, tmp_path, monkeypatch):
    m = copy(tmp_path / "m")
    monkeypatch.setattr(content, "user_cache_dir", lambda _: str(tmp_path / "cache"))
    past = content.Remembered(m, [])
    past._file.parent.mkdir(parents=True)
    past._file.write_text(text)
    assert content.Remembered(m, sorted(m.glob("*.safetensors"))).hash_of(m, "x") is None


def test_modes_are_kept(tmp_path):
    m, out = copy(tmp_path / "m"), tmp_path / "out"
    for file in m.iterdir():
        file.chmod(0o600)
    shard_checkpoint(m, out, 1)
    for file in (out / "tokenizer.json", out / "config.json", *out.rglob("*.safetensors")):
        assert file.stat().st_mode & 0o777 == 0o600, file


def test_the_hash_of_a_tensor_does_not_depend_on_tiles_or_threads(tmp_path, monkeypatch):
    m = copy(tmp_path / "m")
    shard_checkpoint(m, tmp_path / "one", 2, jobs=1)
    monkeypatch.setattr(source, "TILE", 1)
    shard_checkpoint(m, tmp_path / "two", 2, jobs=3)
    one, two = (sharding.read_manifest(tmp_path / n)["contents"] for n in ("one", "two"))
    assert one == two and len(set(one.values())) > 150


def test_a_damaged_line_of_a_journal_counts_as_not_written(tmp_path, monkeypatch):
    m, out = copy(tmp_path / "m"), tmp_path / "out"
    count = iter(range(10**9))
    real = source.split_source

    def split(*args):
        if next(count) >= 60:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(workers, "split_source", split)
    with pytest.raises(KeyboardInterrupt):
        shard_checkpoint(m, out, 1, jobs=1)
    monkeypatch.undo()
    (journal,) = (out / ".shard").glob("*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    digest = lines[40].index(b'"blocks": "') + 12
    lines[40] = (
        lines[40][:digest]
        + b"%x" % (15 - int(lines[40][digest:][:1], 16))
        + lines[40][digest + 1 :]
    )
    journal.write_bytes(b"".join(lines))
    report = shard_checkpoint(m, out, 1, verify=True)
    assert report.verified and report.tensors_resumed == 38  # the job, its stamps, 38 tensors

"""Whatever a folder's files hold, the outcome is success or PortError, nothing else."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsv3_port import DeepseekV3Config, PortError, load_tokenizer
from dsv3_port.config import PRESETS
from dsv3_port.engine.chat import check_messages
from dsv3_port.engine.tokenizer import encode
from dsv3_port.paths import tiny
from dsv3_port.weights.checkpoint import Checkpoint
from dsv3_port.weights.sharding import (
    read_manifest,
    read_rank_manifest,
    shard_checkpoint,
    verify_shards,
    workers,
)
from tests.weights.spoil import copy, header

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [2**63, 2**64, -(2**63), 1e308, "model.safetensors", "../x", "\ud800", "\x1b["]
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@contextlib.contextmanager
def port_errors_only():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(PortError):
            yield


def changed(data: st.DataObject, value: object) -> object:
    """One value somewhere in a JSON document exchanged, removed or given another name."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 9)):
        key = data.draw(st.sampled_from(sorted(value)))
        what = data.draw(st.sampled_from(["inside", "inside", "gone", "name"]))
        made = dict(value)
        if what == "inside":
            made[key] = changed(data, value[key])
        else:
            held = made.pop(key)
            if what == "name":
                made[data.draw(st.text(max_size=8))] = held
        return made
    if isinstance(value, list) and value and data.draw(st.integers(0, 9)):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], changed(data, value[at]), *value[at + 1 :]]
    return data.draw(JSON)


@QUICK
@given(data=st.data())
def test_config(data):
    with port_errors_only():
        values = changed(data, PRESETS["tiny"].to_dict())
        made = DeepseekV3Config.from_dict(values if isinstance(values, dict) else {})
        made.softmax_scale, made.to_dict(), made.eos_token_ids


@QUICK
@given(data=st.data())
def test_index(data, tmp_path):
    m = tmp_path / "m"
    if not m.exists():
        copy(m)
    file = m / "model.safetensors.index.json"
    table = changed(data, json.loads((tiny() / file.name).read_text()))
    file.write_text(json.dumps(table), "utf-8", errors="replace")
    with port_errors_only():
        Checkpoint.open(m)


@QUICK
@given(data=st.data())
def test_header(data, tmp_path):
    m = tmp_path / "m"
    if not m.exists():
        copy(m)
    name = "model-00002-of-000003.safetensors"
    start, entries = header(tiny() / name)
    values = (tiny() / name).read_bytes()[start:]
    text = json.dumps(changed(data, entries)).encode(errors="replace")
    length = data.draw(st.one_of(st.just(len(text)), st.integers(0, 2**64 - 1)))
    (m / name).write_bytes(length.to_bytes(8, "little") + text + values)
    with port_errors_only():
        Checkpoint.open(m)


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("split") / "out"
    shard_checkpoint(tiny(), out, 1)
    return out


@QUICK
@given(data=st.data())
def test_manifests(data, split):
    rank = split / "rank-00000-of-00001"
    for folder, read in ((split, read_manifest), (rank, read_rank_manifest)):
        file = folder / "manifest.json"
        kept = file.read_bytes()
        try:
            file.write_text(json.dumps(changed(data, json.loads(kept))))
            with port_errors_only():
                read(folder)
                verify_shards(split) if data.draw(st.integers(0, 9)) == 0 else None
        finally:
            file.write_bytes(kept)


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    """A split that was stopped half-way, and the bytes of a whole one beside it."""
    out, count, real = (
        tmp_path_factory.mktemp("cut") / "out",
        iter(range(10**9)),
        workers.split_source,
    )

    def stop(*args):
        if next(count) > 60:
            raise KeyboardInterrupt
        return real(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workers, "split_source", stop)
        shard_checkpoint(tiny(), out, 1, jobs=1)
    return out


@settings(max_examples=12, deadline=None)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), cut_off=st.booleans())
def test_journal(at, bit, cut_off, cut, tmp_path_factory):
    """Whatever happened to the journal, what comes of it is a whole split or an error."""
    out = tmp_path_factory.mktemp("again") / "out"
    shutil.copytree(cut, out)
    (journal,) = (out / ".shard").glob("*.jsonl")
    text = bytearray(journal.read_bytes())
    at %= len(text)
    text[at] ^= 1 << bit
    journal.write_bytes(text[:at] if cut_off else text)
    with port_errors_only():
        assert shard_checkpoint(tiny(), out, 1, verify=True).verified


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(tiny())


@QUICK
@given(prompt=JSON | st.text() | st.text(alphabet="ab\ud800\x00\x1b\u202e"))
def test_prompts(prompt, tokenizer):
    with port_errors_only():
        if isinstance(prompt, str):
            encode(tokenizer, [prompt])
        else:
            check_messages(prompt)


@QUICK
@given(data=st.data())
def test_messages(data):
    message = {"role": "user", "content": [{"type": "text", "text": "a"}], "tool_calls": [{}]}
    with port_errors_only():
        check_messages(changed(data, [message, message]))


FLAGS = st.text(max_size=8).filter(lambda text: "\x00" not in text) | st.sampled_from(
    ["nan", "inf", "-1", "0", str(2**64), "1e400", "0-99999999999", "\ud800", "", "١"]
)


@settings(max_examples=60, deadline=None)
@given(
    flags=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "--world-size",
                    "--ranks",
                    "--jobs",
                    "--dtype",
                    "--plan",
                    "--temperature",
                    "--seed",
                ]
            ),
            FLAGS,
        ),
        max_size=3,
    ),
    command=st.sampled_from(["shard", "infer"]),
)
def test_flags(flags, command, tmp_path_factory):
    """main() returns an exit code or argparse exits with 2: no other exception comes out."""
    from dsv3_port.cli import main

    out = str(tmp_path_factory.mktemp("flags") / "out")
    words = {
        "shard": [
            "--model-path",
            str(tiny()),
            "--output-path",
            out,
            "--world-size",
            "1",
            "--dry-run",
        ],
        "infer": ["--show-settings"],
    }[command]
    with contextlib.suppress(SystemExit):
        assert main([command, *words, *(f"{flag}={value}" for flag, value in flags)]) in (0, 2)

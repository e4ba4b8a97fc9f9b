"""files.py: complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsv3_port.files import appearing, write_atomic, write_json


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.json"
    write_json(file, {"b": 1, "a": 2})
    assert file.read_text() == '{\n "a": 2,\n "b": 1\n}\n'

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(file, "half")
    assert file.read_text().startswith("{") and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path):
    read, write = os.pipe()
    write_atomic(Path(f"/dev/fd/{write}"), "through")
    os.close(write)
    with os.fdopen(read) as stream:
        assert stream.read() == "through"


def test_a_folder_appears_whole_or_not(tmp_path: Path):
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), appearing(target) as work:
        (work / "half").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with appearing(target) as work:
        (work / "whole").touch()
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["whole"] and [target] == list(tmp_path.iterdir())

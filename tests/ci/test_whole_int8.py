"""ci/tools/whole_int8.py on a few layers; the whole layout is run by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ci" / "tools"))

import whole_int8

FEW = ["--layers", "3", "--experts", "8", "--ranks", "1"]


def test_both_formats_give_the_text_of_fp8(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert whole_int8.main(["--work", str(tmp_path), *FEW]) == 0
    said = capsys.readouterr().out
    assert said.count("the text and the logits of int8 straight from FP8") == 2


def test_a_folder_of_other_numbers_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = whole_int8.shard_checkpoint

    def other(source: Path, *given: object, **named: object) -> object:
        wrong = whole_int8.synthetic_checkpoint(
            whole_int8.narrow(3, 8), seed=1, cache_dir=tmp_path / "other"
        )
        return real(wrong, *given, **named)

    monkeypatch.setattr(whole_int8, "shard_checkpoint", other)
    assert whole_int8.main(["--work", str(tmp_path), *FEW]) == 1


def test_the_whole_layout_has_every_published_entry() -> None:
    from dsv3_port.weights.fp8 import stored_as_fp8
    from dsv3_port.weights.synthetic import published_tensors

    names = [name for name, *_ in published_tensors(whole_int8.narrow(61, 256))]
    assert len(names) + sum(map(stored_as_fp8, names)) == 91_991

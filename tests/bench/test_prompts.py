"""Part prompts: what is counted and compared at each length, what does not fit, and its picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dsv3_port.bench import cases as bench
from dsv3_port.bench import parts_prompts, prompt_table, speed_tables
from dsv3_port.bench.cases import FULL, Case
from dsv3_port.bench.prompt_table import CHUNKED, SCORES
from dsv3_port.errors import PortError
from dsv3_port.messages import using
from dsv3_port.plots.fonts import chinese_font
from dsv3_port.plots.prompts import prompt_curves
from dsv3_port.weights.synthetic import synthetic_checkpoint
from tests.random_models import CONFIG

pytestmark = pytest.mark.filterwarnings("ignore:other processes used")
LENGTHS = (16, 64, 256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return synthetic_checkpoint(CONFIG, cache_dir=tmp_path_factory.mktemp("prompts"))


def case_at(folder: Path, **more: Any) -> Case:
    at = {"device": "cpu", "dtype": "float32", "rounds": 2, "lengths": LENGTHS, "chunk": 16} | more
    return parts_prompts.prompts_case(folder, "few", **at)


@pytest.fixture(scope="module")
def made(folder: Path) -> Case:
    return case_at(folder)


def test_scores_grow_with_the_square_and_chunks_do_not(made: Case) -> None:
    assert made.differences.keys() == {SCORES, FULL, CHUNKED} and not made.left_out
    assert max(made.differences.values()) <= made.bound
    at = {name: prompt_table.peaks_of(made, name) for name in made.differences}
    heads = CONFIG.num_attention_heads
    assert all(list(peaks) == list(LENGTHS) for peaks in at.values())
    assert at[SCORES][256] >= 4 * heads * 256**2 > at[FULL][256]
    assert at[FULL][256] == pytest.approx(4 * at[FULL][64], rel=0.05)
    assert at[CHUNKED][256] < at[FULL][256] / 2


def test_what_does_not_fit_is_left_out_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_prompts, "free_bytes", lambda device: 2**20)
    found = case_at(folder, lengths=(16, 256))
    assert list(found.left_out) == [f"{SCORES}, 256 tokens"]
    assert [r.tokens for r in found.records if r.name == SCORES] == [16]
    assert {r.tokens for r in found.records if r.name == FULL} == {16, 256}


def test_a_wrong_prefill_is_not_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = parts_prompts.Chunked.forward
    monkeypatch.setattr(parts_prompts.Chunked, "forward", lambda self, ids: 1.01 * right(self, ids))
    with pytest.raises(
        PortError, match=r"by chunks, 16 tokens: logits differ .* nothing was timed"
    ):
        case_at(folder)


def test_lengths_are_checked(folder: Path) -> None:
    with pytest.raises(PortError, match="must be positive"):
        case_at(folder, chunk=0)


def test_it_is_kept_tabled_and_drawn(made: Case, tmp_path: Path) -> None:
    (found,) = [bench.load(bench.save(tmp_path, "prompts", "cpu", {made.key: made}))]
    rows = prompt_table.prompt_rows([found])
    assert [row[0] for row in rows] == [f"few float32, {n} tokens" for n in LENGTHS]
    assert all("×" in row[4] and row[2].endswith(" MB") for row in rows)
    assert f"| {rows[0][0]} |" in speed_tables.markdown([found])
    quiet = dataclasses.replace(
        made, records=[dataclasses.replace(r, busy=False) for r in made.records]
    )
    fig = prompt_curves(quiet)
    assert "by chunks" in fig.alt_text and fig.png() and fig.narrow and fig.narrow().png()
    with using("zh"):
        assert ("分段" if chinese_font() else "by chunks") in prompt_curves(quiet).alt_text

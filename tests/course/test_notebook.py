"""What a notebook says about itself, and which of its cells make which slide."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from dsv3_port.course.notebook import FIELDS, course_files, read_notebook
from dsv3_port.course.tutorial import choose

NOTEBOOKS = course_files(Path(__file__).parents[2] / "notebooks")


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_every_notebook_describes_itself_in_both_languages(file):
    found = read_notebook(file)
    assert found.title.startswith(file.stem.partition("_")[0]) and any(
        "\u4e00" <= c <= "\u9fff" for c in found.title_zh
    )
    assert found.summary.endswith(".") and len(found.summary) > 20
    least = 5  # a page that is shorter teaches more
    assert set(FIELDS) <= set(found.card) and found.reading_minutes >= least
    assert found.run_seconds >= 5
    if file.stem[0] == "a":  # an appendix is for reference
        return
    cells = nbformat.read(file, as_version=4).cells
    objectives = next(c.source for c in cells if "objectives" in c.metadata.get("tags", []))
    assert (
        3
        <= sum(line[:2] in ("1.", "2.", "3.", "4.", "5.") for line in objectives.splitlines())
        <= 5
    )
    assert sum("\u4e00" <= c <= "\u9fff" for c in objectives) > 40


def test_names_of_the_course_and_their_order(tmp_path):
    names = ("06b_b", "a2_x", "06a_a", "10_c", "00_s", "scratch", "a_b", "7_x", "a12_y")
    for name in names:
        (tmp_path / f"{name}.ipynb").touch()
    found = [f.stem for f in course_files(tmp_path)]
    assert found == ["00_s", "06a_a", "06b_b", "10_c", "a2_x"]
    assert [f.stem for f in choose(tmp_path, ["6", "a2"])] == ["06a_a", "06b_b", "a2_x"]
    assert [f.stem for f in choose(tmp_path, ["06b", "0"])] == ["00_s", "06b_b"]

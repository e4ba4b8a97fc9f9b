"""What a notebook says about itself, and which of its cells make which slide."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from dsv3_port import STEPS, PortError
from dsv3_port.course.notebook import FIELDS, course_files, read_notebook
from dsv3_port.course.tutorial import choose
from dsv3_port.paths import repo_root
from dsv3_port.steps import SECOND

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


def test_each_part_of_the_course_is_there_without_the_other():
    folder = repo_root() / "notebooks"
    one, two = ([f.stem for f in choose(folder, part=n)] for n in (1, 2))
    assert two == [s.notebook for s in SECOND if s.notebook]
    assert one == [f.stem for f in course_files(folder) if f.stem not in two]
    assert {s.notebook for s in STEPS} < set(one) and {"10_results", "a1_checkpoint"} < set(one)
    assert [f.stem for f in choose(folder, ["12", "02"], 2)] == ["12_paged_cache"]
    assert [f.stem for f in choose(folder, ["13"], 2)] == ["13_mtp"]
    with pytest.raises(PortError, match="no notebook of part 1 is among 12_paged_cache"):
        choose(folder, ["12"], 1)

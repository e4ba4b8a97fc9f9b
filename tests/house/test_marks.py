"""Every place that tests/conftest.py marks is there, and its marks are pyproject's."""

from __future__ import annotations

import pytest

from tests.conftest import LONG, MARKS, TESTS, mark_of, turn


@pytest.mark.parametrize("place", MARKS)
def test_a_marked_place_exists(place):
    file, _, name = place.partition("::")
    assert (TESTS / file).exists()
    assert not name or f"def {name}" in (TESTS / file).read_text(encoding="utf-8")


def test_marks_are_those_of_the_settings(pytestconfig):
    known = {line.partition(":")[0].strip() for line in pytestconfig.getini("markers")}
    assert set(MARKS.values()) <= known
    assert (
        mark_of("hostnpu/test_enable.py::test_x") == "hostnpu"
        and mark_of("test_steps.py::t") is None
    )


@pytest.mark.parametrize("file", LONG)
def test_a_long_file_exists(file):
    assert (TESTS / file).is_file()


def test_long_files_begin_first():
    files = ["bench/test_mlp.py", LONG[1], "test_steps.py", LONG[0]]
    assert sorted(files, key=turn) == [LONG[0], LONG[1], "bench/test_mlp.py", "test_steps.py"]

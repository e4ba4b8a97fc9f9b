"""Every place that tests/conftest.py marks is there, and its marks are pyproject's."""

from __future__ import annotations

import pytest

from tests.conftest import MARKS, TESTS, mark_of


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

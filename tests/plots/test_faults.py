"""The pictures of the hunt use the words of the lists and say everything in their text."""

from __future__ import annotations

from dsv3_port.check.fault_cases import PARTS
from dsv3_port.plots.faults import SHARED, WITHIN, step_map, tool_map


def texts(fig):
    return {t.get_text() for t in fig.axes[0].texts}


def test_the_step_shows_every_part_that_can_be_accused():
    assert set(PARTS) <= texts(step_map()) and {*WITHIN, *SHARED} <= set(PARTS)
    assert "layers 0 to 3" in step_map().alt_text


def test_a_tool_that_sees_is_marked_and_named():
    fig = tool_map({"1": {"text": True, "gate": False}, "2": {"text": False, "gate": False}})
    marks = [t.get_text() for t in fig.axes[0].texts]
    assert marks == ["sees"]
    assert "1: text. 2: nothing." in fig.alt_text
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["text", "gate"]

"""The picture that opens 07 says what it draws."""

from __future__ import annotations

from dsv3_port.plots.graph_pieces import graph_pieces
from dsv3_port.plots.lanes import run_lanes


def test_one_launch_in_place_of_many_and_a_question_that_breaks_it():
    fig = graph_pieces(operators=5)
    eager, graph, whole, broken = fig.axes
    assert (eager.get_title(loc="left"), graph.get_title(loc="left")) == (
        "eager: 5 launches",
        "as one graph: 1 launch",
    )
    waits = len(run_lanes(5, 2.0, 0.8).device) - 1
    assert [len(ax.patches) for ax in (eager, graph)] == [5 + 5 + waits, 1 + 5]

    def said(ax):
        return [t.get_text() for t in ax.texts]

    assert "start = int(slot[0])" in said(broken) and "start = int(slot[0])" not in said(whole)
    assert said(whole)[-1] == "one graph" and said(broken)[-3:] == ["graph", "Python", "graph"]
    assert "5 operators" in fig.alt_text and "Python at that line" in fig.alt_text

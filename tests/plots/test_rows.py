"""The pictures of 14 say what they draw."""

from __future__ import annotations

from matplotlib.colors import to_rgb

from dsv3_port.count.rows import RowLog
from dsv3_port.engine.continuous import Request, Result
from dsv3_port.plots.colours import VERMILLION
from dsv3_port.plots.rows import COLUMNS, DRAWN, MOMENTS, hand_over, rows_over_time


def test_the_drawn_rows_are_a_schedule():
    """No row has two requests at once, and whoever comes begins where another one ended."""
    had = [(row, step) for _, row, before, steps in DRAWN for step in range(before, before + steps)]
    assert len(set(had)) == len(had)
    ends = {(row, before + steps) for _, row, before, steps in DRAWN}
    assert all(before == 0 or (row, before) in ends for _, row, before, _ in DRAWN)


def test_what_is_written_at_the_hand_over_is_row_1_alone():
    fig = hand_over()
    rows, memory = fig.axes
    assert len(rows.patches) == len(DRAWN)
    cells = [p for p in memory.patches if hasattr(p, "get_width")]
    assert len(cells) == len(MOMENTS) * 3 * len(COLUMNS)
    new = [p for p in cells if p.get_facecolor()[:3] == to_rgb(VERMILLION)]
    assert {p.get_y() for p in new} == {1} and len(new) == 6
    assert "6 numbers of row 1 are written" in fig.alt_text
    said = [t.get_text() for t in memory.texts]
    assert said.count("2^40") == 1 and "D takes it: before step 4" in said


def log(spans: list[tuple[int, int, int]], occupancy: tuple[int, ...]) -> RowLog:
    """spans: (row, admitted, ended) of each request."""
    results = tuple(
        Result(n, admitted, [3] * (ended - admitted + 1), "length", ended, row)
        for n, (row, admitted, ended) in enumerate(spans)
    )
    requests = tuple(Request((5,), len(r.token_ids)) for r in results)
    return RowLog(2, requests, results, occupancy, 1, 2, 0)


STATIC = log([(0, 0, 4), (1, 0, 2), (0, 4, 7), (1, 4, 4)], (2, 2, 1, 1, 1, 1, 1))
SLOTS = log([(0, 0, 4), (1, 0, 2), (1, 2, 5), (0, 4, 4)], (2, 2, 2, 2, 1))


def test_bars_are_those_of_the_log():
    fig = rows_over_time(STATIC, SLOTS)
    for ax, one in zip(fig.axes, (STATIC, SLOTS), strict=False):
        rows, bars = ax.patches[:2], ax.patches[2:]
        assert [(r.get_x(), r.get_width()) for r in rows] == [(0, one.steps)] * 2
        ran = [r for r in one.results if r.ended > r.admitted]
        assert [(b.get_x(), b.get_width(), b.get_y()) for b in bars] == [
            (r.admitted, r.ended - r.admitted, r.row + 0.1) for r in ran
        ]
    assert fig.axes[0].get_title("left") == "batch after batch: 7 steps, 5 rows for nobody"
    assert fig.axes[1].get_title("left") == "row by row: 5 steps, 1 row for nobody"
    assert "Row by row: 5 steps, 1 of 10 rows. Both give 9 tokens" in fig.alt_text
    assert fig.png().startswith(b"\x89PNG") and fig.narrow().png().startswith(b"\x89PNG")

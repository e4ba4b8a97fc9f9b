"""The pictures of 12 say what they draw."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_rgb

from dsv3_port.count.blocks import BlockLog
from dsv3_port.engine.generate import Generation
from dsv3_port.errors import PortError
from dsv3_port.plots.colours import CYCLE, VERMILLION
from dsv3_port.plots.pages import blocks_over_time, page_strips


def test_the_strips_hold_every_row_once_and_write_one():
    fig = page_strips()
    fixed, paged = fig.axes
    assert len(fixed.patches) == 2 * 16 and len(paged.patches) == 8 * 4
    for ax in fig.axes:  # the same rows, above and below, and the same one is new
        new = [p for p in ax.patches if p.get_facecolor()[:3] == to_rgb(VERMILLION)]
        white = [p for p in ax.patches if p.get_facecolor()[:3] == (1, 1, 1)]
        assert len(new) == 1 and len(ax.patches) - len(white) == 11 + 6 + 1
    said = [t.get_text() for t in paged.texts]
    assert any("table[B][6 // 4] = 2, row 6 % 4 = 2, slot 2 * 4 + 2 = 10" in t for t in said)
    assert "written to slot 10" in fig.alt_text


LOG = BlockLog(
    16,
    3,
    40,
    (((1,), (2,)), ((1, 3), ()), ((1, 2), ())),
    ((16, 5), (17, 0), (18, 0)),
    tuple(Generation(p, "", [], 1, 0.0, 0.0) for p in ("one", "two")),
)


def test_owners_are_the_colours_of_the_log():
    assert (LOG.fixed, LOG.held, LOG.used) == (80, [32, 32, 32], [21, 17, 18])
    fig = blocks_over_time(LOG)
    (image,) = fig.axes[0].images
    one, two, free = to_rgb(CYCLE[0]), to_rgb(CYCLE[1]), (1.0, 1.0, 1.0)
    drawn = [[tuple(map(float, c)) for c in row] for row in image.get_array()]
    assert drawn == [[one, one, one], [two, free, one], [free, one, free]]
    assert "holds 80 positions throughout" in fig.alt_text and fig.png().startswith(b"\x89PNG")


def test_more_sequences_than_colours_are_refused():
    many = tuple(Generation("p", "", [], 1, 0.0, 0.0) for _ in range(8))
    log = BlockLog(16, 8, 40, (((),) * 8,), ((0,) * 8,), many)
    with pytest.raises(PortError, match="8 sequences; 7 colours"):
        blocks_over_time(log)

"""The picture that opens 06a says what it draws."""

from __future__ import annotations

import pytest

from dsv3_port import PortError
from dsv3_port.plots.cache_strips import cache_strips


def test_growing_writes_all_rows_and_fixed_one():
    fig = cache_strips(filled=2, steps=3, room=6)
    assert "writes 3, 4, 5 rows" in fig.alt_text and "1, 1, 1 row is written" in fig.alt_text
    said = [t.get_text() for ax in fig.axes for t in ax.texts]
    assert "5 rows written" in said and "slot 4: 1 row written" in said
    # squares: every row that is kept or written, and what is given back or empty
    assert [len(ax.patches) for ax in fig.axes] == [3 + 4 + 5 + 3 + 4, 3 * 6]
    assert fig.png().startswith(b"\x89PNG")


def test_a_room_that_is_too_small_is_refused():
    with pytest.raises(PortError, match="4 \\+ 4 positions do not fit a room of 7"):
        cache_strips(room=7)

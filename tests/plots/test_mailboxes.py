"""The picture that opens 08 says what it draws."""

from __future__ import annotations

import pytest

from dsv3_port import PortError
from dsv3_port.plots.mailboxes import mailboxes


def test_ids_change_and_addresses_do_not():
    fig = mailboxes(ids=(4, 6), filled=2)
    said = [t.get_text() for t in fig.axes[0].texts]
    assert {"capture", "replay 1", "after 4", "after 6", "3 rows", "4 rows"} <= set(said)
    assert [t for t in said if t.startswith("no. ")] == [f"no. {0x10 * k:#x}" for k in range(1, 6)]
    assert "token ids 4, 6" in fig.alt_text and "3 to 4 rows" in fig.alt_text
    assert fig.png().startswith(b"\x89PNG")


def test_a_capture_alone_is_refused():
    with pytest.raises(PortError, match="one replay at least"):
        mailboxes(ids=(4,))

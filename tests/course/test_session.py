"""What `start` sets up in a notebook's process."""

from __future__ import annotations

import sys
import warnings

from dsv3_port.bench.measure import BusyMachine
from dsv3_port.course import session


def test_a_busy_machine_is_told_without_a_path_or_a_line_of_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "in_a_lesson", lambda: None)
    monkeypatch.setattr(session, "_started", [])
    monkeypatch.setattr(warnings, "formatwarning", session._usual)
    session.start(results_dir=tmp_path)
    for category in (BusyMachine, UserWarning):
        sys.stderr.write(warnings.formatwarning("used by others", category, "/a/b.py", 7, "x = 1"))
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "used by others"
    assert rest == ["/a/b.py:7: UserWarning: used by others", "  x = 1"]

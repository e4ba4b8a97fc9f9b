"""Names of others in tables are text: neither HTML's markup nor Markdown's."""

from __future__ import annotations

import pytest
from nbconvert.filters import markdown2html

from dsv3_port.markdown import cell, table

NAMES = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[here](javascript:alert(1))",
    "![](http://example.com/x.png)",
    "[a][b]",
    "a | b | c",
    "`code` *bold* **more** ~~gone~~ $x$",
    "two\nlines\n\n# and a heading",
    "\x1b[31mred\x07",
    "end\\",
    "\\`x\\`",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_and_nothing_else(name):
    import html
    import re

    page = markdown2html(table(["name", "time"], [[name, "1 ms [0.9–1.1]"]]))
    rows = re.findall(r"<td>(.*?)</td>", page, re.S)
    shown = "".join(c for c in " ".join(name.split()) if c.isprintable())
    assert [html.unescape(r) for r in rows] == [shown, "1 ms [0.9–1.1]"], page
    assert "<script" not in page and "<a" not in page and "<img" not in page


def test_what_was_measured_is_escaped_in_tables_of_speed(monkeypatch):
    """A case's profile is whatever its record says."""
    from dsv3_port.bench import speed_tables

    evil = "<b>w1</b> | [x](javascript:1)"
    monkeypatch.setattr(speed_tables, "speed_rows", lambda found: [(evil,) * 7])
    for name in ("ladder_rows", "limit_rows", "exponent_rows", "start_rows"):
        monkeypatch.setattr(speed_tables, name, lambda found: [])
    page = speed_tables.markdown([])
    assert cell(evil) in page and "<b>" not in page and "](" not in page.replace("\\](", "")

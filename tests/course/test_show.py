"""Diffs of every step, the progress map, banners and tables, in HTML, Markdown and plain text."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

import pytest

from dsv3_port.course.diff import _highlight, diff, source
from dsv3_port.course.show import banner, progress, table
from dsv3_port.errors import PortError
from dsv3_port.messages import using
from dsv3_port.steps import STEPS


class Reader(HTMLParser):
    """Text of a piece of HTML, with a check that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("step", STEPS, ids=lambda s: s.id)
def test_diff_shows_every_line_of_both_sides(step):
    shown = diff(step.id)
    text = Reader(shown._repr_html_()).text
    for side in (shown.before, shown.after):
        assert side.place in text
        assert all(line in text for line in side.text.splitlines())
    pairs = list(shown.pairs())
    assert [i for _, i, _ in pairs if i is not None] == list(
        range(len(shown.before.text.splitlines()))
    )
    assert [j for _, _, j in pairs if j is not None] == list(
        range(len(shown.after.text.splitlines()))
    )
    assert str(shown).startswith("--- dsv3_port/") and shown._repr_markdown_().startswith("```diff")


def test_on_a_phone_a_diff_is_one_column():
    """As its styles order it: what goes before what comes, equal lines once, as `diff -u` has them."""
    shown = diff("gmm_routing")
    cells = re.findall(r'<div style="(--(?:o:(\d+)|again)[^"]*)">(.*?)</div>', shown._repr_html_())
    kept = sorted((int(o), k, cell) for k, (_, o, cell) in enumerate(cells) if o)
    parts = [re.sub("<[^>]+>", "\0", cell).split("\0") for *_, cell in kept]
    lines = [unescape("".join(p)) for p in parts]
    plain = [re.sub(r"^\d+", "", line).replace("−", "-", 1) for line in lines]
    wanted = [x[1:] if x[0] == " " else x for x in str(shown).splitlines()[2:]]
    assert [x.strip() for x in plain] == [x.strip() for x in wanted]
    assert len(cells) > len(kept) > 60


def test_diff_of_what_has_no_number_on_the_ladder():
    shown = diff("slots")
    assert shown.label == "Continuous batching in slots: source before and after"
    assert "def run_requests(" in shown.after.text and "def decode(" in shown.before.text


def test_diff_marks_what_changed_in_more_than_colour():
    html = diff("one_hot_gate")._repr_html_()
    assert "−" in html and ">+<" in html and 'aria-label="step 4' in html
    assert (
        "<style" not in html and "class=" not in html
    )  # inline only: nothing to sanitise, nothing to leak


def test_source_of_strings_objects_and_methods():
    by_name = source("model.gate:Gate.choose")
    assert by_name.text.startswith("def choose(self") and "\n    " in by_name.text
    from dsv3_port.model.gate import Gate

    assert source(Gate.choose) == by_name
    assert by_name.file == "dsv3_port/model/gate.py" and str(by_name.line) in by_name.place
    assert "```python" in by_name._repr_markdown_() and "choose" in repr(by_name)
    assert "choose" in Reader(by_name._repr_html_()).text
    assert source("config").line == 1


@pytest.mark.parametrize("what", ["model.gate:Nothing", "model.nothing:Gate", 3])
def test_no_source_is_a_sentence(what):
    with pytest.raises(PortError, match="no source for"):
        source(what)


def test_unknown_step():
    with pytest.raises(PortError, match="unknown step"):
        diff("merged_attention")


def test_highlighting_keeps_lines_and_escapes():
    code = 'x = "<b>"\n\n\ny = """two\nlines & more"""'
    lines = _highlight(code)
    assert len(lines) == len(code.split("\n")) and "<b>" not in "".join(lines)
    assert [Reader(line).text for line in lines] == code.split("\n")


def test_progress_marks_done_here_and_next():
    shown = progress("03_gmm_routing")
    text = Reader(shown._repr_html_()).text
    assert (
        "✓ 2 MLA low-rank absorb" in text and "▶ 3 Grouped matmul" in text and "4 One-hot" in text
    )
    assert "✓ 4" not in text and "▶ Grouped" in shown._repr_markdown_()
    assert "✓ 8" in Reader(progress("10_results")._repr_html_()).text
    assert "9 Paged" not in Reader(progress("10_results")._repr_html_()).text
    text = Reader(progress("12_paged_cache")._repr_html_()).text
    assert "✓ 8" in text and "▶ 9 Paged" in text and "✓ 10" not in text
    text = Reader(progress("13_mtp")._repr_html_()).text
    assert "✓ 9 Paged" in text and "▶ 10 Multi-token" in text
    text = Reader(progress("14_slots")._repr_html_()).text
    assert "✓ 9 Paged" in text and "▶ Continuous batching" in text
    text = Reader(progress("15_int8")._repr_html_()).text
    assert "✓ Continuous batching" in text and "▶ W8A8" in text
    text = Reader(progress("16_one_launch")._repr_html_()).text
    assert "✓ W8A8" in text and "▶ One launch" in text
    assert "✓" not in progress("00_start_here")._repr_html_()


def test_banner_says_what_numbers_are_worth():
    assert "this CPU's" in repr(banner("cpu")) and "不说明 NPU" not in repr(banner("cpu"))
    with using("zh"):
        assert "不说明 NPU" in repr(banner("cpu")) and "this CPU's" not in repr(banner("cpu"))
    stand_in = banner("host-npu")
    assert (
        "never shown" in stand_in._repr_markdown_()
        and "host stand-in" in Reader(stand_in._repr_html_()).text
    )
    with pytest.raises(PortError, match="unknown device"):
        banner("tpu")


def test_table_of_dicts_and_of_rows():
    text = table([{"name": "a|b", "GiB": 1.23456}, {"name": "c", "cards": 8}])._repr_markdown_()
    head, _, first, second = text.splitlines()
    assert [c.strip() for c in head.split("|")[1:-1]] == ["name", "GiB", "cards"]
    assert "a\\|b" in first and "1.235" in first and second.rstrip("| ").endswith("8")
    assert "| x" in repr(table([["x", 1]], headers=["h", "n"]))
    assert repr(table([])) == "(no rows)"

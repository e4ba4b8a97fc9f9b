"""What nbconvert would break on the way to a page: folded answers and the indentation of shown
sources."""

from __future__ import annotations

import re
from pathlib import Path

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from dsv3_port.course.diff import diff
from dsv3_port.course.pages import write_page


def page(tmp_path: Path, *cells) -> str:
    return write_page(
        new_notebook(cells=list(cells)), "a", tmp_path / "pages", tmp_path
    ).read_text()


def test_details_hold_their_content(tmp_path):
    html = page(
        tmp_path,
        new_markdown_cell("<details><summary>Answer</summary>\n\n1. one\n2. two\n\n</details>"),
    )
    inside = re.search(r"<details>(.*?)</details>", html, re.DOTALL).group(1)
    assert "one" in inside and "two" in inside


def test_pictures_of_raw_html_are_embedded(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "dot.png")
    html = page(tmp_path, new_markdown_cell('<img alt="a dot" src="dot.png">'))
    assert 'src="data:image/png;base64,' in html and "dot.png" not in html


def test_indentation_of_sources_survives(tmp_path):
    output = new_output(
        "execute_result", {"text/html": diff("last_token_head")._repr_html_()}, execution_count=1
    )
    html = page(tmp_path, new_code_cell("show.diff()", outputs=[output], execution_count=1))
    assert len(re.findall(r">    return<", html)) == 2


def test_progress_bars_leave_one_state(tmp_path):
    bars = [new_output("stream", name="stdout", text=f"\rmeasure: {n}%") for n in (10, 50, 90)]
    html = page(tmp_path, new_code_cell("measure()", outputs=bars, execution_count=1))
    assert "measure: 90%" in html and html.count("measure: ") == 1


def test_wide_tables_become_cards_on_phones(tmp_path):
    wide = "| a | b | c | d | `e` |\n|---|---|---|---|---|\n| 1 | 2 | 3 | 4 | 5 |\n| 6 | 7 | 8 | 9 | 0 |"
    narrow = "| a | b |\n|---|---|\n| 1 | 2 |"
    html = page(tmp_path, new_markdown_cell(f"{wide}\n\n{narrow}"))
    assert html.count('<table class="cards">') == 1
    named = re.findall(r'<td data-name="(.*?)"[^>]*>(.*?)</td>', html)
    assert named == list(zip("abcde" * 2, "1234567890", strict=True))


def test_imports_are_folded_and_other_code_is_not(tmp_path):
    cells = [new_code_cell("import torch"), new_code_cell("x = 1")]
    cells[0].metadata.tags = ["imports"]
    html = page(tmp_path, *cells)
    folded = re.findall(r'<details class="folded">(.*?)</details>', html, re.DOTALL)
    assert len(folded) == 1 and "torch" in folded[0]

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

"""What nbconvert would break on the way to a page: folded answers and the indentation of shown
sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from dsv3_port.bench.records import Results, save
from dsv3_port.course import pages
from dsv3_port.course.diff import diff
from dsv3_port.course.front import ladder_pictures, write_index
from dsv3_port.course.notebook import Notebook
from dsv3_port.course.pages import write_page
from dsv3_port.messages import using
from dsv3_port.plots.fonts import chinese_font
from tests.bench.test_measure import record


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


def test_an_exporter_is_made_once_and_remembers_no_page(tmp_path):
    """Of a folder and a language; what it made before does not show in the next page."""
    cells = [
        new_markdown_cell("# firstpage\n\n$a_1$"),
        new_markdown_cell("# secondpage"),
        new_code_cell("x = 1"),
    ]

    def made(name: str, *cells, language: str = "") -> str:
        nb = new_notebook(cells=list(cells))
        file = write_page(nb, name, tmp_path / "pages", tmp_path, language=language)
        return file.read_text(encoding="utf-8")

    pages._exporter.cache_clear()
    first = made("a", cells[0]), made("b", *cells[1:]), made("a", cells[0], language="zh-CN")
    assert pages._exporter.cache_info().misses == 2 and pages._exporter.cache_info().hits == 1
    assert "<math" in first[0] and "firstpage" not in first[1] and '<html lang="zh"' in first[2]
    pages._exporter.cache_clear()
    alone = made("b", *cells[1:])
    ids = re.compile(r'id="cell-id=\w+"|id="[0-9a-f]{8}"')
    assert ids.sub("", alone) == ids.sub("", first[1])


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


@pytest.mark.parametrize(("longest", "cards"), [(40, 0), (41, 1)])
def test_four_columns_become_cards_where_one_has_a_long_text(tmp_path, longest, cards):
    table = f"| a | b | c | d |\n|---|---|---|---|\n| 1 | 2 | {'`x`' + 'y' * (longest - 1)} | 4 |"
    html = page(tmp_path, new_markdown_cell(table))
    assert html.count('<table class="cards">') == cards


def test_imports_are_folded_and_other_code_is_not(tmp_path):
    cells = [new_code_cell("import torch"), new_code_cell("x = 1")]
    cells[0].metadata.tags = ["imports"]
    html = page(tmp_path, *cells)
    folded = re.findall(r'<details class="folded">(.*?)</details>', html, re.DOTALL)
    assert len(folded) == 1 and "torch" in folded[0]


def test_a_page_has_a_table_of_contents(tmp_path):
    """Names are unique, work with two languages, and a page with one section has none."""
    text = "# T\n\n## Build it: `f` · 动手\n\n## 动手\n\n## Build it: `f`\n\nx"
    made = page(tmp_path, new_markdown_cell(text))
    names = re.findall(r'<h2 id="([^"]+)"', made)
    assert names == ["build-it-f", "section-2", "build-it-f-3"]
    links = re.findall(r'<li><a href="#([^"]+)">([^<]+)</a>', made)
    assert [name for name, _ in links] == names and links[0][1] == "Build it: f · 动手"
    assert "contents of this page" not in page(tmp_path, new_markdown_cell("## One"))


def test_a_cell_to_write_in_says_where_that_works(tmp_path):
    cells = [new_code_cell("...", metadata={"tags": ["yours"]}), new_code_cell("x")]
    assert page(tmp_path, *cells).count("you need JupyterLab") == 1


def test_the_front_page_shows_a_recorded_ladder_where_the_run_was_busy(tmp_path):
    """And the run's own where it was quiet; it says where to start."""
    results = tmp_path / "results"
    (first,) = ladder_pictures(results)
    assert first.link == "results/recorded-ladder.png"
    assert first.phone == "results/phone-recorded-ladder.png"
    narrow = tmp_path / first.phone
    assert Image.open(narrow).width == 462
    drawn = narrow.stat().st_mtime_ns
    assert ladder_pictures(results) == [first] and narrow.stat().st_mtime_ns == drawn  # not anew
    if chinese_font():  # the same in the language of the page, beside it
        with using("zh"):
            (zh,) = ladder_pictures(results)
        assert zh.link == "results/recorded-ladder.zh.png" and (tmp_path / zh.phone).is_file()
        with Image.open(tmp_path / zh.link) as shown_zh:
            assert "上游，固定缓存" in shown_zh.text["Description"]
    (results / "ladder.png").write_bytes((results / "recorded-ladder.png").read_bytes())
    for busy in (True, False):
        share = 0.9 if busy else 0.0
        made = record(phase="decode", label="ladder w1 decode", busy=busy, busy_share=share)
        (results / "results.json").unlink(missing_ok=True)
        save(Results([made]), results / "results.json")
        (shown,) = ladder_pictures(results)
        assert shown.phone == shown.link.replace("results/", "results/phone-")
        assert ("recorded" in shown.link) == busy == ("90% used by others" in shown.caption)
        assert ("Recorded earlier, not in this run: AMD EPYC" in shown.caption) == busy
    about = [Notebook(name, name) for name in ("00_start_here", "01_x")]
    front = write_index(tmp_path, about, [], "a cpu").read_text(encoding="utf-8")
    assert "Start with" in front and "jupyter lab notebooks/00_start_here.ipynb" in front

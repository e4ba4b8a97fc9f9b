"""A translation shows the original's outputs, and is refused when its code is not the original's."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dsv3_port.course.pages import write_pages
from dsv3_port.course.translations import translated
from dsv3_port.errors import PortError

CI = Path(__file__).parents[2] / "ci" / "tools"


def notebook(text: str, code: str, outputs=()) -> nbformat.NotebookNode:
    return new_notebook(
        cells=[
            new_markdown_cell(text, id="text"),
            new_code_cell(code, id="code", outputs=list(outputs)),
        ]
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "zh-CN").mkdir()
    nbformat.write(notebook("# Hello", "print(1)"), tmp_path / "00_a.ipynb")
    nbformat.write(notebook("# 你好", "print(1)"), tmp_path / "zh-CN" / "00_a.ipynb")
    return tmp_path


def executed() -> nbformat.NotebookNode:
    nb = notebook("# Hello", "print(1)", [new_output("stream", text="it ran")])
    nb.cells.insert(
        0, new_code_cell("seed = 1", id="random", metadata={"tags": ["injected-parameters"]})
    )
    return nb


def test_both_languages_become_pages_that_point_at_each_other(folder):
    write_pages(executed(), folder / "00_a.ipynb", folder / "pages")
    english, chinese = (
        (folder / "pages" / f"00_a{end}.html").read_text() for end in ("", ".zh-CN")
    )
    assert "Hello" in english and '<a href="00_a.zh-CN.html">中文</a>' in english
    assert "你好" in chinese and "Hello" not in chinese and "it ran" in chinese
    assert '<a href="00_a.html">English</a>' in chinese


def test_other_code_is_refused_and_found_by_the_check(folder):
    spec = importlib.util.spec_from_file_location("check_notebooks", CI / "check_notebooks.py")
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    assert rules.check_translations(folder) == []
    file = folder / "zh-CN" / "00_a.ipynb"
    nbformat.write(notebook("# 你好", "print(2)"), file)
    with pytest.raises(PortError, match="cell code: its code differs"):
        translated(executed(), file)
    assert rules.check_translations(folder) == [
        "zh-CN/00_a: cell code: its code differs from the original's"
    ]
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 你好", id="text")]), file)
    assert rules.check_translations(folder) == [
        "zh-CN/00_a: its cells are not those of the original, from code on"
    ]
    (folder / "00_a.ipynb").unlink()
    assert "no such notebook" in rules.check_translations(folder)[0]

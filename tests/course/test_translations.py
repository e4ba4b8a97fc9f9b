"""A translation shows the original's outputs, and is refused when its code is not the original's."""

from __future__ import annotations

import re
from copy import deepcopy

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dsv3_port.course.pages import write_pages
from dsv3_port.course.translations import differences, fingerprint, is_text, stale, translated
from dsv3_port.errors import PortError


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
    assert "Hello" in english and _switch(english) == ("00_a.zh-CN.html", "zh-CN", "中文")
    assert "你好" in chinese and "Hello" not in chinese and "it ran" in chinese
    assert _switch(chinese) == ("00_a.html", "en", "English")
    assert '<html lang="zh">' in chinese and '<html lang="en">' in english


def _switch(page: str) -> tuple[str, str, str]:
    """(page, language, name) of the link to the other language."""
    (link,) = re.findall(r'<a [^>]*class="language"[^>]*>[^<]*', page)
    names = [re.search(rf'{key}="([^"]*)"', link)[1] for key in ("href", "hreflang", " lang")]
    assert names[1] == names[2]
    return names[0], names[1], link.rpartition(">")[2]


def test_other_code_is_refused(folder):
    original, twin = folder / "00_a.ipynb", folder / "zh-CN" / "00_a.ipynb"
    nbformat.write(notebook("# 你好", "print(2)"), twin)
    with pytest.raises(PortError, match="cell code: its code differs"):
        translated(executed(), twin, original)
    made = write_pages(executed(), original, folder / "pages")  # the notebook itself has its page
    assert [page.name for page in made] == ["00_a.html"]
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 你好", id="text")]), twin)
    with pytest.raises(PortError, match="cell code: missing"):
        translated(executed(), twin, original)


def stub(docstring: str, body: str = "...") -> nbformat.NotebookNode:
    text = f'@slot("00.last")\ndef last(hidden):\n    """{docstring}"""\n    {body}'
    return new_code_cell(text, id="own", metadata={"tags": ["yours"]})


def test_the_learners_cell_may_say_its_task_in_chinese_and_no_other():
    own, chinese = stub("what it needs"), stub("它需要什么")
    assert differences([own], [chinese]) == [] and is_text(own)
    assert stale([own], [chinese]) == ["own"]
    chinese.metadata["dsv3"] = {"source": fingerprint(own.source)}
    assert stale([own], [chinese]) == []
    assert differences([own], [stub("它需要什么", "return hidden")]) == [
        "cell own: its code differs from the original's"
    ]
    for cell in (own, chinese):
        cell.metadata["tags"] = ["judge"]
    assert differences([own], [chinese]) and not is_text(own)


def test_what_a_learner_wrote_stays_in_the_page_of_the_twin(tmp_path):
    (tmp_path / "zh-CN").mkdir()
    original, twin = tmp_path / "00_a.ipynb", tmp_path / "zh-CN" / "00_a.ipynb"
    english, chinese = (
        new_notebook(cells=[stub(text)]) for text in ("what it needs", "它需要什么")
    )
    nbformat.write(english, original)
    nbformat.write(chinese, twin)
    assert "它需要什么" in translated(english, twin, original).cells[0].source
    filled = deepcopy(english)
    filled.cells[0] = stub("what it needs", "return hidden")
    assert translated(filled, twin, original).cells[0].source == filled.cells[0].source


def test_every_cell_that_is_out_of_step_is_named():
    def cells(**texts: str) -> list[nbformat.NotebookNode]:
        return [new_markdown_cell(text, id=name) for name, text in texts.items()]

    ours = cells(one="a", two="b", three="c")
    assert differences(ours, cells(one="一", three="三", four="四")) == [
        "cell two: missing",
        "cell four: the original has no such cell",
    ]
    assert differences(ours, cells(two="二", one="一", three="三")) == [
        "cell one: stands at another place than in the original"
    ]
    moved = cells(one="一", two="二", three="三")
    moved[1] = new_code_cell("二", id="two")
    moved[2].metadata["tags"] = ["recap"]
    assert differences(ours, moved) == [
        "cell two: its kind differs from the original's",
        "cell three: its list of tags differs from the original's",
    ]

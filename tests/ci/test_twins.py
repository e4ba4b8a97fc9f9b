"""Twins in Chinese: what is out of step is named, cell by cell and section by section."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, writes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "ci" / "tools"))

import twins  # noqa: E402
from twin_words import dead_stars, joined, still_english  # noqa: E402

PAGE = """# Settings

How a run is set.

## Where they stand

In the table below; [speed](speed.md) is another page.

```shell
dsv3-port infer   # a comment
```

<!-- settings:begin -->
| one |
<!-- settings:end -->
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(twins, "WAITING", ("notebooks/*.ipynb", "docs/*.md"))
    for folder in ("docs", "notebooks/workshop/deck"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "docs" / "settings.md").write_text(PAGE)
    (tmp_path / "docs" / "speed.md").write_text("# Speed\n\nHow fast a step is.\n")
    cells = [
        new_markdown_cell("# Hello there\n\nSee [settings](../docs/settings.md).", id="title"),
        new_code_cell("print(1)", id="code"),
        new_markdown_cell("```python\nx = 1\n```", id="only-code"),
    ]
    (tmp_path / "notebooks" / "00_a.ipynb").write_text(writes(new_notebook(cells=cells)))
    return tmp_path


@pytest.fixture
def say(root, capsys):
    """Run the tool; its exit code and lines."""

    def run(*words: str) -> tuple[int, list[str]]:
        code = twins.main(list(words), root)
        return code, capsys.readouterr().out.splitlines()

    return run


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_a_notebook_is_written_translated_sealed_and_found_when_the_original_changes(root, say):
    original, twin = root / "notebooks" / "00_a.ipynb", root / "notebooks/zh-CN/00_a.ipynb"
    say("--new", "00_a")
    assert json.loads(twin.read_text())["metadata"]["dsv3"] == {"language": "zh-CN"}
    assert say("--stale", "00_a")[1][:2] == [
        "00_a: cell title: not translated yet",
        "00_a: cell only-code: not translated yet",
    ]
    assert say("--seal", "00_a") == (1, ["00_a: cell title: still the English text"])
    edit(twin, "Hello there", "Bonjour")
    assert say("--seal", "00_a") == (1, ["00_a: cell title: holds no Chinese"])
    edit(twin, "# Bonjour\\n", "# 你好\\n")
    edit(twin, "See [", "见 [")
    assert say("--seal", "00_a")[0] == 0 and say()[0] == 0
    edit(original, "Hello there", "Hello again")
    code, lines = say()
    assert code == 1 and lines[0] == "00_a: cell title: the original changed"
    assert len(lines) == 2  # the other cell is not named
    say("--new", "00_a")  # which keeps what is translated
    assert "你好" in twin.read_text() and say()[1][0] == lines[0]
    assert say("--seal", "00_a")[0] == 0 and say()[0] == 0
    edit(original, "print(1)", "print(2)")
    assert say()[1][0] == "00_a: cell code: its code differs from the original's"
    assert say("--seal", "00_a")[0] == 1
    say("--new", "00_a")
    assert say()[0] == 0 and "print(2)" in twin.read_text()


def test_a_cell_that_is_missing_is_named_and_written(root, say):
    twin = root / "notebooks/zh-CN/00_a.ipynb"
    say("--new", "00_a")
    nb = json.loads(twin.read_text())
    del nb["cells"][1]
    nb["cells"][0]["outputs"] = ["left"]
    twin.write_text(json.dumps(nb))
    lines = say()[1]
    assert "00_a: cell code: missing" in lines
    assert "00_a: cell title: holds outputs; strip them" in lines
    say("--new", "00_a")
    assert not [line for line in say()[1] if "missing" in line]


def translate(twin: Path) -> None:
    for old, new in (
        ("# Settings", "# 设置"),
        ("How a run is set.", "一次运行如何设置。"),
        ("## Where they stand", "## 在哪里"),
        ("In the table below; ", "见下表；"),
        ("is another page", "是另一页"),
        ("# a comment", "# 注释"),
    ):
        edit(twin, old, new)


def test_sections_of_a_page(root, say):
    original, twin = root / "docs" / "settings.md", root / "docs/zh-CN/settings.md"
    say("--new", "docs/settings.md")
    assert "## Where they stand\n<!-- source: where-they-stand -->\n\nIn" in twin.read_text()
    assert "[speed](../speed.md)" in twin.read_text()
    assert say("--seal", "docs/settings.md")[1] == [
        "docs/settings.md: section settings: still the English text",
        "docs/settings.md: section where-they-stand: still the English text",
    ]
    translate(twin)
    assert say("--seal", "docs/settings.md")[0] == 0 and say()[0] == 0
    edit(original, "| one |", "| two |")  # what the code writes is nobody's to translate
    assert say()[0] == 0
    edit(original, "table below", "table further down")
    assert say()[1][:-1] == ["docs/settings.md: section where-they-stand: the original changed"]
    say("--seal", "docs/settings.md")
    edit(twin, "dsv3-port infer", "dsv3-port bench")
    assert say()[1][0] == (
        "docs/settings.md: section where-they-stand: its code differs from the original's"
    )


def test_a_section_that_is_added_or_renamed(root, say):
    original, twin = root / "docs" / "settings.md", root / "docs/zh-CN/settings.md"
    say("--new", "docs/settings.md")
    translate(twin)
    say("--seal", "docs/settings.md")
    edit(original, "## Where they stand", "## Why\n\nBecause they differ.\n\n## Where they are")
    lines = say()[1]
    assert "docs/settings.md: section why: missing" in lines
    assert "docs/settings.md: section where-they-are: missing" in lines
    assert "docs/settings.md: section where-they-stand: the original has no such section" in lines
    edit(original, "## Why\n\nBecause they differ.\n\n", "")
    say("--new", "docs/settings.md")
    assert "## 在哪里\n<!-- source: where-they-are -->\n" in twin.read_text()
    assert say("--stale", "docs/settings.md")[1][0].endswith("where-they-are: not translated yet")


def test_links_lead_to_twins_where_there_are_any(root, say):
    say("--new", "00_a", "docs/settings.md")
    assert "](../../docs/settings.md)" in (root / "notebooks/zh-CN/00_a.ipynb").read_text()
    say("--new", "docs/speed.md")
    line = "00_a: leads to ../../docs/settings.md instead of ../../docs/zh-CN/settings.md; --links"
    assert any(text.startswith(line) for text in say()[1])
    say("--links")
    assert "](../../docs/zh-CN/settings.md)" in (root / "notebooks/zh-CN/00_a.ipynb").read_text()
    assert "[speed](speed.md)" in (root / "docs/zh-CN/settings.md").read_text()
    edit(root / "docs/zh-CN/settings.md", "(speed.md)", "(gone.md)")
    lines = say()[1]
    assert not [text for text in lines if "--links" in text]
    assert "docs/settings.md: leads to gone.md, which does not exist" in lines


def test_a_twin_that_is_not_there(root, say, monkeypatch):
    (root / "docs" / "zh-CN").mkdir()
    (root / "docs" / "zh-CN" / "other.md").write_text("# 其他\n")
    assert say()[1][0] == "docs/zh-CN/other.md: there is no such original"
    monkeypatch.setattr(twins, "WAITING", ("notebooks/*.ipynb",))
    assert "docs/speed.md: no twin yet: --new writes one" in say()[1]
    with pytest.raises(SystemExit, match="no notebook and no text"):
        say("--new", "nothing")


def test_what_needs_no_translation():
    assert not still_english("`x = 1`\n\n[a](b.md)", "`x = 1`\n\n[a](b.md)")
    assert not still_english("cell:mla-plot:1", "cell:mla-plot:1")
    assert still_english("A sentence of words.", "A sentence of words.")
    assert not still_english("# def f(x): return what follows", "# def f(x)：返回值", code=True)


@pytest.mark.parametrize(
    "text",
    [
        "见**图（左）**的说明",
        "设**`x`**为零",
        "是**（甲）乙**，",
        "用*“甲”*来",
        "- 见**图（左）**的\n- 另",
    ],
)
def test_stars_that_would_stay_stars(text):
    assert len([*dead_stars(text)]) >= 1
    assert not [*dead_stars(f"```\n{text}\n```")]


@pytest.mark.parametrize(
    "text",
    [
        "见**图**（左）的说明",
        "**论点。** 能跑不等于正确。**看图：**\n\n下一段",
        "是*哪些*专家，`k*T + t` 与 `npu_*`，$a*b$，2 * 3",
        "**甲（乙）**，丙",
    ],
)
def test_stars_that_are_emphasis(text):
    assert not [*dead_stars(text)]


def test_dead_stars_are_found_in_a_twin(root, say):
    say("--new", "docs/speed.md")
    edit(root / "docs/zh-CN/speed.md", "How fast a step is.", "一步**多快（见下）**的说明")
    assert any("section speed: stars stay stars" in line for line in say()[1])


def test_a_line_that_breaks_between_chinese_characters(root, say):
    assert joined("甲乙\n丙丁，\n  戊 a\n己") == "甲乙丙丁，戊 a\n己"
    kept = "# 甲\n乙\n\n- 丙\n- 丁\n\n```\n甲\n乙\n```\n"
    assert joined(kept) == kept
    twin = root / "docs/zh-CN/speed.md"
    say("--new", "docs/speed.md")
    edit(twin, "How fast a step is.", "一步\n有多快")
    assert any("a line breaks between two Chinese" in line for line in say()[1])
    say("--links")
    assert "一步有多快" in twin.read_text(encoding="utf-8")
    assert not [line for line in say()[1] if "breaks" in line]


def test_every_twin_of_the_course_is_in_step():
    assert twins.main([]) == 0

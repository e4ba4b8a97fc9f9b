"""Tables that the code writes speak the language of their page."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from dsv3_port.messages import catalogue, using

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "ci" / "tools"))

import readme  # noqa: E402
import table_words  # noqa: E402

HAN = re.compile(r"[\u4e00-\u9fff]")
TABLE = """\
| operator | meaning | points |
|---|---|---|
| `npu_swiglu` | tokens generated at most | 12 |
| MatMulV2 | w1 float32 decode, batch 8, 1024 cached | `a \\| b` |

[1] `npu_swiglu`: not there: rotate"""


def test_cells_are_said_and_names_stay():
    with using("zh"):
        lines = table_words.in_language("settings", TABLE).split("\n")
    assert lines[0] == "| 算子 | 含义 | 数据点数 |" and lines[1] == "|---|---|---|"
    assert lines[2] == "| `npu_swiglu` | 最多生成的 token 数 | 12 |"
    assert lines[3] == "| MatMulV2 | w1 float32 decode，batch 8，已缓存 1024 个 | `a \\| b` |"
    assert lines[5] == "[1] `npu_swiglu`：没有 rotate"
    assert table_words.in_language("settings", TABLE) == TABLE


def test_a_value_that_is_also_a_word_of_the_catalogue_stays():
    table = "| meaning | default |\n|---|---|\n| default | default |"
    with using("zh"):
        assert table_words.in_language("settings", table).endswith("| 默认值 | default |")


def test_headings_and_spoken_columns_are_wanted():
    wanted = list(table_words.words("settings", TABLE.replace("points", "values")))
    assert wanted == [
        *("operator", "meaning", "values"),
        "tokens generated at most",
        "w1 float32 decode, batch 8, 1024 cached",
    ]
    assert list(table_words.words("another", TABLE)) == ["operator", "meaning", "points"]


@pytest.mark.parametrize("file", [f for f in readme.FILES if readme.FILES[f]])
def test_the_chinese_page_has_chinese_tables(file):
    """Every heading that has a word in it, and every spoken cell."""
    twin = readme._twin(file)
    text = (ROOT / twin).read_text(encoding="utf-8")
    for name in readme.FILES[file]:
        (table,) = re.findall(rf"<!-- {name}:begin.*?-->\n(.*?)<!-- {name}:end", text, re.DOTALL)
        english = readme.TABLES[name]()
        spoken, columns = set(table_words.words(name, english)), table_words.SPOKEN.get(name, ())
        for (heads, there), (_, said) in zip(
            table_words.rows(english), table_words.rows(table), strict=True
        ):
            for head, cell, chinese in zip(heads, there, said, strict=True):
                due = heads is there or head in columns
                if due and cell in spoken and HAN.search(catalogue("zh").gettext(cell)):
                    assert HAN.search(chinese), (name, cell)

"""README stays true: its tables are the code's, its files exist, its Python runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = sorted(f"docs/{f.name}" for f in (ROOT / "docs").glob("*.md"))
FILES = [
    "README.md",
    "README.zh-CN.md",
    "CONTRIBUTING.md",
    "notebooks/workshop/instructor.md",
    *DOCS,
]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")


def test_tables_are_those_of_the_code():
    done = subprocess.run(
        [sys.executable, ROOT / "ci" / "tools" / "readme.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", FILES)
def test_every_local_link_exists(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    links = [m for m in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in m]
    links += re.findall(r' (?:src|srcset)="([^"]+)"', text)
    assert len(links) > 10 or not file.startswith("README")
    missing = [link for link in links if not (ROOT / file).parent.joinpath(link).exists()]
    assert not missing


def test_readme_is_one_page_and_names_every_page():
    assert len(TEXT.splitlines()) <= 150
    assert len(re.sub("<[^>]*>", "", TEXT).split()) <= 1400  # tags of its pictures apart
    assert all(f"({page})" in TEXT for page in DOCS)


def test_the_chinese_readme_is_its_twin():
    """As many headings of each level, tables, links to the same places, the same code."""

    def shape(text: str) -> tuple[list[str], list[str], list[str]]:
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        marks = re.findall(r"^(#+) ", prose, re.MULTILINE)
        links = [
            m.replace("zh-CN/", "") for m in re.findall(r"\]\(([^)]+)\)", text) if "README" not in m
        ]
        links += [m.replace(".zh.", ".") for m in re.findall(r' (?:src|srcset)="([^"]+)"', text)]
        commands = re.findall(r"^(python3 \S+ \w+)", text, re.MULTILINE)
        return marks, sorted(links), commands

    assert shape(TEXT) == shape(CHINESE)


def test_its_pictures_say_what_the_code_says(monkeypatch, tmp_path, capsys):
    """In both languages, wide and for a phone; one that is old or gone is named."""
    monkeypatch.syspath_prepend(str(ROOT / "ci" / "tools"))
    import readme_pictures as tool

    assert tool.main(["--check"]) == 0
    for name in tool.PICTURES:
        for language in ("en", "zh"):
            wide, phone = tool.files(name, language)
            assert tool.says(wide) == tool.says(phone) != ""
            assert wide.name in (TEXT if language == "en" else CHINESE)
            assert phone.name in (TEXT if language == "en" else CHINESE)
    monkeypatch.setattr(tool, "FOLDER", tmp_path)
    monkeypatch.setattr(tool, "PICTURES", {"ladder": lambda: None})
    monkeypatch.setattr(tool, "drawn", lambda: [(tool.files("ladder", "zh"), Figure())])
    assert tool.main(["--check"]) == 1 and "ladder.zh.png" in capsys.readouterr().err


class Figure:
    alt_text = "what the code says"


def test_what_the_readme_says_a_graph_needs_is_what_blocks_one():
    from dsv3_port.engine.graph import graph_blockers
    from dsv3_port.plan import PortPlan
    from dsv3_port.steps import STEPS

    needed = {
        w for s in STEPS for r in graph_blockers(PortPlan.upstream()) for w in [s.id] if w in r
    }
    assert needed == set(re.findall(r"`(\w+)`", TEXT[TEXT.index("A\ngraph (7, 8)") :][:160]))


def test_the_python_example_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def shell_blocks(file: str = "README.md") -> list[str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return [textwrap.dedent(block) for block in re.findall(r"```shell\n(.*?)```", text, re.DOTALL)]


@pytest.mark.parametrize("file", FILES)
def test_every_shell_block_is_shell(file):
    for block in shell_blocks(file):
        # <this repository> stands for the address, which a copy of the repository cannot know
        done = subprocess.run(
            ["bash", "-n"],
            input=block.replace("<this repository>", "ADDRESS"),
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("file", FILES)
def test_scripts_that_are_named_exist(file):
    for path in re.findall(r"(?:python3?|bash) (\S+\.(?:py|sh))", "\n".join(shell_blocks(file))):
        assert (ROOT / path).is_file(), path


def commands(file: str = "README.md") -> list[list[str]]:
    """Every `dsv3-port ...` and `... -m dsv3_port ...` line, its variables and continuation lines
    included."""
    found = []
    for line in "\n".join(shell_blocks(file)).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words[:1] == ["dsv3-port"]:
            found.append(words[1:])
        elif "dsv3_port" in words:
            found.append(words[words.index("dsv3_port") + 1 :])
    return found


def test_every_command_in_the_readme_parses():
    from dsv3_port.cli.main import make_parser

    named = [words for file in FILES for words in commands(file)]
    assert {words[0] for words in named} >= {
        "doctor",
        "plan",
        "shard",
        "infer",
        "compare",
        "bench",
        "record",
        "hostnpu",
        "ge",
    }
    for words in named:
        make_parser().parse_args(words)


def test_the_chinese_readme_has_the_same_example_and_is_chinese():
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert example in CHINESE and sum("\u4e00" <= c <= "\u9fff" for c in CHINESE) > 600


def test_every_variable_before_a_command_is_a_setting():
    from dsv3_port.engine.settings import TABLE

    used = re.findall(
        r"^([A-Z_]+)=\S+ dsv3-port",
        "\n".join(b for f in FILES for b in shell_blocks(f)),
        re.MULTILINE,
    )
    assert used and set(used) <= {row.variable for row in TABLE}


def test_the_memory_that_the_readme_names_is_the_plans():
    from dsv3_port.config import DeepseekV3Config
    from dsv3_port.forecast.planner import GIB, forecast

    rows = forecast(
        DeepseekV3Config.preset("v3-671b"), world_sizes=(8, 32), dtypes=("bfloat16",), hbm_gib=64
    )
    eight, many = (round(r.total_bytes / GIB) for r in rows)
    page = (ROOT / "docs" / "ascend.md").read_text(encoding="utf-8")
    assert re.search(rf"take {eight} GiB a card on 8 cards and {many} GiB on 32", page)
    assert [r.fits for r in rows] == [False, True]

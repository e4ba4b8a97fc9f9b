"""One catalogue: whatever is said is found, Chinese where the reader is, and nothing is missing."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
from babel.messages.pofile import read_po as babel_read

from dsv3_port import messages
from dsv3_port.engine import language
from dsv3_port.errors import PortError
from dsv3_port.messages import N_, catalogue, read_po, sentences, tr, trn, using

ROOT = Path(__file__).parents[2]
PO = ROOT / "dsv3_port" / "locale" / "zh.po"


def test_our_reader_finds_what_babel_finds():
    with PO.open("rb") as stream:
        theirs = babel_read(stream, locale="zh")
    due = {}
    for m in theirs:
        if m.id and not m.fuzzy:
            one = isinstance(m.id, str)
            due[m.id if one else m.id[0]] = m.string if one else m.string[0]
    assert len(due) > 500 and read_po(PO.read_text(encoding="utf-8")) == due


def test_hard_entries():
    text = (
        'msgid ""\nmsgstr "Language: zh\\n"\n\n#: a.py\nmsgid ""\n"two \\"lines\\"\\n"\n"of it"\nmsgstr "两行"\n\n'
        '#, fuzzy\nmsgid "doubtful"\nmsgstr "疑"\n\nmsgid "one"\nmsgid_plural "many"\nmsgstr[0] "若干"\n'
    )
    assert read_po(text) == {'two "lines"\nof it': "两行", "one": "若干"}


def test_a_language_is_in_force_where_it_is_used():
    assert tr("not written yet") == "not written yet" and N_("a") == "a"
    with using("zh"):
        assert tr("not written yet") == "尚未作答" and tr("said by nobody") == "said by nobody"
        assert trn(" · {n} thread", " · {n} threads", 1) == trn(
            " · {n} thread", " · {n} threads", 2
        )
        assert sentences("甲", "乙？", "") == "甲。乙？"
    assert messages.language() == "en" and sentences("a", "b?") == "a. b?"
    assert trn(" · {n} thread", " · {n} threads", 2) == " · {n} threads"
    assert catalogue("fr").gettext("Right.") == "Right."


@pytest.fixture
def env(monkeypatch):
    for name in ("DSV3_LANG", "LC_ALL", "LC_MESSAGES", "LANG", language.SESSION):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


def test_the_system_then_the_setting(env):
    env("LANG", "zh_CN.UTF-8")
    assert language.reader_language() == "zh"
    env("LC_ALL", "C")
    assert language.reader_language() == "en"
    env("DSV3_LANG", "zh")
    assert language.reader_language() == "zh"
    env("DSV3_LANG", "fr")
    with pytest.raises(PortError, match="DSV3_LANG is 'fr'; it can be 'auto', 'en', 'zh'"):
        language.reader_language()


def test_the_notebooks_language_wins(env, tmp_path):
    folder = tmp_path / "notebooks" / "zh-CN"
    folder.mkdir(parents=True)
    file = folder / "00_a.ipynb"
    file.write_text(json.dumps({"metadata": {"dsv3": {"language": "zh-CN"}}, "cells": []}))
    env("DSV3_LANG", "en")
    language.settle(tmp_path)
    assert messages.language() == "en"
    env(language.SESSION, str(file))  # as JupyterLab says it
    language.settle(tmp_path)
    assert messages.language() == "zh"
    env(language.SESSION, str(tmp_path / "gone.ipynb"))
    language.settle(folder)
    assert messages.language() == "en"
    env(language.SESSION, "")  # nobody says it: the folder does
    language.settle(folder)
    assert messages.language() == "zh"


@pytest.fixture
def tool():
    sys.path.insert(0, str(ROOT / "ci" / "tools"))
    import messages as module

    return module


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("f\"<b>{tr('a text')}</b>\"", "it stands in an f-string"),
        ("f\"<b>{tr('a {n}').format(n=1)}</b>\"", "it stands in an f-string"),
        ('tr(f"{n} texts")', "an f-string; put values in"),
        ("tr(name)", "no text is written there"),
        ('tr("a" if x else "b")', "no text is written there"),
        ('N_("a" + b)', "no text is written there"),
        ('trn("one", many, 2)', "no text is written there"),
        ('", ".join(map(tr, names))', "tr is handed on"),
        ('tr("a " "text").format(n=n)', ""),
        ('trn("one", "{n} many", len(names))', ""),
        ("told(name)", ""),
    ],
)
def test_a_text_that_babel_cannot_see_is_refused(code, why, tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text(f"x = 1\ny = {code}\n")
    found = list(tool.unsaid())
    assert [line.startswith(f"a.py:2: {why}") for line in found] == [True] * bool(why)


def test_a_template_that_hands_on_a_name_is_refused(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "PACKAGE", tmp_path)
    (tmp_path / "a.html").write_text(
        '{{ tr("fine") }}\n{{ tr(slot.title) }} {{ told(slot.title) }}\n'
    )
    assert [line.partition(": ")[0] for line in tool.unsaid()] == ["a.html:2"]


def test_what_the_code_of_a_notebook_shows():
    sys.path.insert(0, str(ROOT / "ci" / "tools"))
    from notebook_texts import shown_texts

    code = """
rows = [("two projections", n), (f"{n} cached steps", report)]
rows += [(f"model.layers.{n}.mlp", "Once upon a time")]
for name, n in (("as long as they are", 1), ("padded to 64", 2)):
    rows.append((name, n))
sizes["(a) weights of a rank, bytes"] = n
for n in found:
    rows.append((f"and {n} more, in all", "aten.mm"))
show.table([*rows, *sizes], ["", "count"])
show.Shown("", f"{n} of {len(lost):,} tokens.")
gate = strict_gate(a, b, names=("growing", f"fixed, {built.code} code"))
times = {"low rank, fixed cache": a} | {f"{n} ranks": b for n in (1, 2)}
raise ValueError(f"not said: {n} of them")
"""
    assert set(shown_texts(ast.parse(code))) == {
        *("two projections", "{0} cached steps", "(a) weights of a rank, bytes", "count"),
        *("and {0} more, in all", "{0} of {1} tokens.", "fixed, {0} code"),
        *("low rank, fixed cache", "{0} ranks", "as long as they are", "padded to 64"),
    }


def test_a_text_with_values_is_found_by_its_pattern():
    made = messages.Catalogue(
        {
            "{0} code": "{0}代码",
            "fixed, {0} code": "固定，{0}代码",
            "finished": "完成的",
            "b {n}": "乙",
        }
    )
    assert made.with_values("finished code") == "完成的代码"
    assert made.with_values("fixed, finished code") == "固定，完成的代码"  # the longer one first
    assert made.with_values("your code") == "your代码"
    assert made.with_values("a code\nof two lines") == "a code\nof two lines"
    assert made.with_values("b 1") == "b 1"  # a field with a name is filled by who says it


def test_translations_of_a_branch_that_is_merged(tool, monkeypatch, tmp_path):
    ours, theirs = tmp_path / "zh.po", tmp_path / "theirs.po"
    ours.write_text('msgid "a"\nmsgstr "甲"\n\nmsgid "b"\nmsgstr ""\n', encoding="utf-8")
    theirs.write_text('msgid "a"\nmsgstr "另"\n\nmsgid "b"\nmsgstr "乙"\n', encoding="utf-8")
    monkeypatch.setattr(tool, "PO", ours)
    monkeypatch.setattr(tool, "wanted", lambda: {t: ((t,), ["course/a.py"]) for t in "ab"})
    assert len(tool.findings()) == 1
    tool.update([str(theirs)])
    assert not tool.findings() and read_po(ours.read_text(encoding="utf-8")) == {
        "a": "甲",
        "b": "乙",
    }


def test_a_missing_text_and_another_value_are_found(monkeypatch, tmp_path):
    sys.path.insert(0, str(ROOT / "ci" / "tools"))
    import messages as tool

    po = tmp_path / "zh.po"
    po.write_text(
        'msgid "call {n}"\nmsgstr "第 {m} 次"\n\nmsgid "gone"\nmsgstr "无"\n', encoding="utf-8"
    )
    due = {
        "call {n}": (("call {n}",), ["course/a.py"]),
        "new": (("new",), ["course/a.py"]),
    }
    monkeypatch.setattr(tool, "PO", po)
    monkeypatch.setattr(tool, "wanted", lambda: due)
    assert tool.findings() == [
        "course/a.py: 'call {n}': its Chinese puts in other values",
        "course/a.py: 'new' has no Chinese",
        "'gone' is said nowhere any more",
    ]

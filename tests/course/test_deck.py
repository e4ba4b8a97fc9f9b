"""Written decks: what a slide may hold, and what the builder makes of an executed notebook."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from dsv3_port.course.deck import CODE, WIDTH, Figure, problems, read_deck, words
from dsv3_port.course.gallery import gallery
from dsv3_port.course.slides import deck, signature, write_slides
from dsv3_port.course.yours import slots

sys.path.insert(0, str(Path(__file__).parents[2] / "ci" / "tools"))
import check_notebooks
from decks import check_decks, known_slots

ROOT = Path(__file__).parents[2]
CELLS = {"plot": "draw()", "long": "\n".join(["x = 1"] * 9), "wide": "y" * 80}


def found(text: str) -> str:
    """Findings about one slide."""
    whole = "\n---\n".join([text, *["# filler"] * 8])
    return "\n".join(problems(read_deck(whole), CELLS, ["00.last"]))


def test_a_slide_is_title_words_figure_and_notes():
    first, second = read_deck(
        "# One · 一\nwords\n\ncell:plot:2\n???\nsay this\n---\n## Two\n\nmore"
    )
    assert (first.title, first.text, first.notes) == ("One · 一", "words", "say this")
    assert first.figures == (Figure("cell", "plot", 2),) and second.figures == ()
    assert (second.title, second.text, second.notes) == ("Two", "more", "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no title", "has no title"),
        ("# one two three four five six seven eight nine", "a title of 9 words"),
        ("# T\n" + "word " * 31, "31 words, at most 30"),
        ("# T\ncell:plot\ncell:plot", "2 figures"),
        ("# T\ncell:none", "cell:none: the notebook has no such cell"),
        ("# T\nbuild:09.none", "build:09.none: the notebook has no such slot"),
        ("# T\ncode:long", "code of 9 lines"),
        ("# T\ncode:wide", f"at most {CODE}, {WIDTH} characters"),
        ("# T\n```python\n" + "x\n" * 9 + "```", "code of 9 lines"),
        ("# T\nIt takes 12 ms.", "a measured number is typed"),
    ],
)
def test_what_a_slide_may_not_be(text, says):
    assert says in found(text)


def test_what_a_slide_may_be():
    assert found("# Eight words are the most that fit here\n" + "word " * 30 + "\ncell:plot") == ""
    assert found("# 一个标题\nbuild:00.last\n???\n" + "note " * 90) == ""
    few = list(problems(read_deck("# One"), CELLS, []))
    assert few == ["1 slides, 9 to 12 are wanted"]
    assert words("`a` **b** two-part 中文四字") == 3 + 2


def test_every_deck_of_the_course():
    core = [n for n in check_notebooks.expected_names() if n not in check_notebooks.APPENDICES]
    assert check_decks(ROOT / "notebooks", core) == []
    assert set(known_slots()) == set(slots())


def test_a_missing_and_a_foreign_deck_are_found(tmp_path):
    (tmp_path / "workshop" / "deck").mkdir(parents=True)
    (tmp_path / "workshop" / "deck" / "77.md").write_text("# x")
    lines = check_decks(tmp_path, ["02_x"])
    assert lines == [
        "02_x: no deck; write workshop/deck/02.md",
        "deck/77.md: belongs to no notebook of the core",
    ]


def test_a_twin_is_held_to_the_same_rules(tmp_path):
    """Its folder is no foreign deck, and what is wrong with its slides is found."""
    (tmp_path / "workshop" / "deck" / "zh-CN").mkdir(parents=True)
    (tmp_path / "02_x.ipynb").write_text('{"cells": []}')
    (tmp_path / "workshop" / "deck" / "02.md").write_text("\n---\n".join(["# One"] * 9))
    twin = tmp_path / "workshop" / "deck" / "zh-CN" / "02.md"
    twin.write_text("\n---\n".join(["# 一"] * 9))
    assert check_decks(tmp_path, ["02_x"]) == []
    twin.write_text("\n---\n".join(["# 这个标题比一张幻灯片能放得下的还要长"] + ["# 一"] * 8))
    assert check_decks(tmp_path, ["02_x"]) == [
        "deck/zh-CN/02.md: slide 1: a title of 9 words, at most 8"
    ]


@pytest.mark.parametrize("slot_id", slots())
def test_a_signature_fits_a_slide(slot_id):
    lines = signature(slots()[slot_id]).splitlines()
    assert len(lines) <= CODE and max(map(len, lines)) <= WIDTH
    assert lines[0].startswith("def ") and lines[-1].endswith('"""')


def test_outputs_are_those_of_the_run(tmp_path):
    """The first picture, an output by its number, and a sentence where the run has none."""
    table = new_output("display_data", {"text/html": "<p>a table</p>"})
    picture = new_output("display_data", {"text/html": "<img>", "image/png": "aGk="})
    nb = new_notebook(cells=[new_code_cell("draw()", outputs=[table, picture], id="plot")])
    text = (
        "# A\ncell:plot\n---\n# B\ncell:plot:1\n---\n# C\ncell:plot:3\n---\n# D\ncode:plot\n???\nn"
    )
    cells = deck(read_deck(text), nb).cells
    kinds = [(c.metadata.deck.kind, c.metadata.deck.start, c.metadata.deck.end) for c in cells]
    assert kinds[:2] == [("text", True, False), ("figure", False, True)]
    assert kinds[-1] == ("note", False, True)
    assert cells[1].outputs[0].data == picture.data and cells[3].outputs[0].data == table.data
    assert "this run has no such output" in cells[5].source and "draw()" in cells[7].source
    assert write_slides(nb, "02_x", tmp_path, tmp_path) == []  # no deck, no slides


def test_a_gallery_shows_text_beside_text():
    shown = gallery(slots()["02.absorbed"]).html
    assert shown.count("<tr>") == 4 and "scale of R + Dr" in shown and shown.count("▸") >= 2

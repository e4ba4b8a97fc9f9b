"""Copies for a class: everything answered, or everything but prose."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from dsv3_port.cli.main import main
from dsv3_port.course.copies import clean, solved
from dsv3_port.course.judge import check
from dsv3_port.course.notebook import course_files
from dsv3_port.course.written import is_empty
from dsv3_port.course.yours import slots

NOTEBOOKS = course_files(Path(__file__).parents[2] / "notebooks")


def tagged(nb, tag):
    return [c for c in nb.cells if c.cell_type == "code" and tag in c.metadata.get("tags", [])]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_solved_copy_leaves_nothing_open(file):
    original = nbformat.read(file, as_version=4)
    nb = solved(original)
    nbformat.validate(nb)
    for cell, stub in zip(tagged(nb, "yours"), tagged(original, "yours"), strict=True):
        (slot_id,) = re.findall(r'@slot\("([\w.]+)"', cell.source)
        body = slots()[slot_id].solution.strip()
        assert is_empty(stub.source) and not is_empty(cell.source) and body in cell.source
    asked = [c for c in tagged(nb, "exercise") if "check(" in c.source]
    assert len(asked) == sum("check(" in c.source for c in tagged(original, "exercise"))
    for cell in asked:
        names = {"check": check}
        exec(cell.source.replace("\ncheck(", "\nverdict = check("), names)
        assert names["verdict"].ok


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_clean_copy_has_headings_and_the_same_code(file):
    original = nbformat.read(file, as_version=4)
    nb = clean(original)
    nbformat.validate(nb)
    text = [c.source for c in nb.cells if c.cell_type == "markdown"]
    assert text and all(line.startswith("#") for t in text for line in t.splitlines())
    code = [[c.source for c in n.cells if c.cell_type == "code"] for n in (original, nb)]
    assert code[0] == code[1] and len(nb.cells) < len(original.cells)


def test_the_command_writes_both(tmp_path, capsys):
    assert main(["copies", "--out", str(tmp_path)]) == 0
    for kind in ("solved", "clean"):
        assert [f.name for f in course_files(tmp_path / kind)] == [f.name for f in NOTEBOOKS]
    assert f"{2 * len(NOTEBOOKS)} copies" in capsys.readouterr().out
    assert main(["copies", "--notebooks", str(tmp_path), "--out", str(tmp_path / "x")]) == 2

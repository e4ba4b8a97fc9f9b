"""A class's page from collected progress files: good ones, bad ones, foreign ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dsv3_port import PortError
from dsv3_port.cli.main import main
from dsv3_port.course import kept, session, yours
from dsv3_port.course.classroom import cell_of, read_class, stuck, write_class
from dsv3_port.course.kept import Tried, note, note_hint, read_progress
from dsv3_port.course.yours import hint, slots, solution

sys.path.insert(0, str(Path(__file__).parents[2] / "ci" / "tools"))
import browser
import check_pages

SLOTS = slots()
FIRST, MLA = SLOTS["00.last"], SLOTS["02.absorbed"]


@pytest.fixture
def collected(tmp_path):
    """Mira has built one and is stuck at another, Tom sent his file by mail, three files are not
    what they should be."""
    mira = tmp_path / "mira" / "results"
    note(mira, FIRST, "right", FIRST.solution)
    for _ in range(3):
        note(mira, MLA, "wrong", "def absorbed(): pass")
    note_hint(mira, MLA, 2)
    (mira / "results.json").write_text("[]")
    tom = tmp_path / "tom"
    note(tom, FIRST, "right", FIRST.solution)
    note(tom, FIRST, "raised", "def last(hidden): 1 / 0")
    note_hint(tom, FIRST, 4)
    (tom / "progress.json").rename(tmp_path / "tom-progress.json")
    (tmp_path / "cut.json").write_text('{"format": 1, "slo')
    (tmp_path / "shopping.json").write_text('["milk"]')
    row = {"state": "right", "tries": 1, "built": True, "last": ""}
    other = {"format": 1, "slots": {"99.none": row}}
    (tmp_path / "<b>ann.json").write_text(json.dumps(other))
    (tmp_path / "notes.txt").write_text("nothing")
    return tmp_path


def test_learners_are_named_and_what_is_wrong_is_told(collected):
    room = read_class(collected)
    assert [x.name for x in room.learners] == ["<b>ann", "mira", "tom"]
    assert [x.built(list(SLOTS)) for x in room.learners] == [0, 1, 1]
    problems = "\n".join(room.problems)
    assert len(room.problems) == 3 and str(collected) not in problems
    assert "cut.json: not readable as JSON" in problems
    assert "shopping.json: not a progress file of format 1" in problems
    assert "<b>ann.json: slots that this version does not know: 99.none" in problems
    assert stuck(room, SLOTS) == ["mira at 02.absorbed: 3 tries, 2 hints"]


def test_the_page_shows_everyone_and_escapes_names(collected, capsys):
    assert main(["class", str(collected)]) == 0
    said = capsys.readouterr()
    assert "3 learners, 3 problems" in said.out and "cut.json" in said.err
    text = (collected / "class.html").read_text(encoding="utf-8")
    assert "<b>ann" not in text and "&lt;b&gt;ann" in text
    assert "✘</span> not the same<small>3 tries, 2 hints</small>" in text
    assert "2 tries, solution; now raised an error" in text and "2 of 3, median 1.5 tries" in text
    assert all(slot_id in text for slot_id in SLOTS) and "<script" not in text


@pytest.mark.skipif(browser.find() is None, reason=browser.MISSING)
def test_the_page_in_a_browser(collected):
    write_class(collected, collected / "class.html")
    with browser.browser() as page:
        assert list(check_pages.look(page, collected / "class.html", collected)) == []


def test_two_of_one_name_are_kept_apart(tmp_path):
    for folder in ("a/wei/progress.json", "wei.json", "a/wei.json"):
        (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder).write_text('{"format": 1, "slots": {}}')
    names = [x.name for x in read_class(tmp_path).learners]
    assert len(set(names)) == 3 and "wei" in names


def test_what_cannot_be_read_at_all(tmp_path, capsys):
    with pytest.raises(PortError, match="no such folder"):
        read_class(tmp_path / "none")
    with pytest.raises(PortError, match="holds no progress.json"):
        read_class(tmp_path)
    (tmp_path / "large.json").write_text(" " * 200_000)
    assert read_class(tmp_path).problems == ("large.json: too large for a progress file",)
    assert main(["class", str(tmp_path), "--out", str(tmp_path / "no" / "x" / "y.html")]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_hints_are_counted_and_older_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_started", [])
    monkeypatch.setattr(yours, "_asked", {})
    hint(FIRST.id)  # no notebook: nothing is kept
    session.start(results_dir=tmp_path)
    hint(FIRST.id)
    rows = read_progress(tmp_path / kept.FILE)
    assert rows[FIRST.id].hints == 2 and rows[FIRST.id].tries == 0
    solution(FIRST.id)
    note(tmp_path, FIRST, "wrong", "x")
    note_hint(tmp_path, FIRST, 1)
    assert read_progress(tmp_path / kept.FILE)[FIRST.id].hints == 4
    old = {"state": "right", "tries": 1, "built": True, "last": "2026-11-28T00:00:00+00:00"}
    (tmp_path / kept.FILE).write_text(json.dumps({"format": 1, "slots": {FIRST.id: old}}))
    assert read_progress(tmp_path / kept.FILE)[FIRST.id].hints == 0


def test_a_slot_that_was_only_opened_is_not_begun():
    assert cell_of(Tried("empty", 0, False, "")).state is None
    assert cell_of(Tried("empty", 0, False, "", 1)).words == "1 hint"

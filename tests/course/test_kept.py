"""A learner's progress and their functions together in one model."""

from __future__ import annotations

import json
import types
from dataclasses import replace

import pytest
import torch

from dsv3_port import PortError, PortPlan, load_model
from dsv3_port.course import session
from dsv3_port.course.kept import FILE, assemble, note, read_progress
from dsv3_port.course.yours import catalogue, fit, read, slots, your_model
from dsv3_port.paths import tiny

SLOTS = {i: s for i, s in slots().items() if s.part == 1}  # what the full port can hold
IN_STEPS = {i: s for i, s in SLOTS.items() if s.make is None}


@pytest.fixture(scope="module")
def base():
    return load_model(tiny(), PortPlan.full(), "cpu", "float32")


def test_a_verdict_is_written_down_and_what_was_right_stays(tmp_path):
    slot = SLOTS["00.last"]
    assert read_progress(tmp_path / FILE) == {}
    note(tmp_path, slot, "empty", slot.stub)
    note(tmp_path, slot, "wrong", "def last(hidden): return 0")
    assert not (tmp_path / "yours").exists()
    note(tmp_path, slot, "right", slot.solution)
    note(tmp_path, slot, "raised", "def last(hidden): 1 / 0")
    row = read_progress(tmp_path / FILE)["00.last"]
    assert (row.state, row.tries, row.built) == ("raised", 3, True)
    assert (tmp_path / "yours" / "00.last.py").read_text().strip() == slot.solution.strip()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not readable as JSON"),
        ("[]", "not a progress file of format 1"),
        ('{"format": 2, "slots": {}}', "not a progress file of format 1"),
        ('{"format": 1, "slots": {"00.last": {"state": "perfect"}}}', "00.last"),
        ('{"format": 1}', "valid dictionary"),
    ],
)
def test_another_file_is_refused_by_name(tmp_path, text, says):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(PortError, match=says) as found:
        read_progress(tmp_path / FILE)
    assert FILE in str(found.value)


def test_all_solutions_together_are_one_model(tmp_path, base):
    for slot in SLOTS.values():
        note(tmp_path, slot, "right", slot.solution)
    other = slots()["12.slots"]
    note(tmp_path, other, "right", other.solution)
    whole = assemble(tmp_path, base, slots())
    assert set(whole.yours) == set(SLOTS) and not whole.finished
    assert str(whole) == f"{len(SLOTS)} of {len(SLOTS)} functions are yours"
    ids = torch.arange(3, 19).unsqueeze(0)
    assert torch.allclose(whole.model(ids), base(ids), atol=1e-4)
    assert all(int(calls.split()[0]) > 0 for _, _, calls, _ in whole.rows)
    assert {(whose, verdict) for _, whose, _, verdict in whole.rows} == {("yours", "✔ right")}


def test_what_no_step_runs_is_not_timed_as_the_learners(tmp_path, base):
    """Loading and gathering are no part of one process's steps: a bar must not praise them."""
    for slot in SLOTS.values():
        note(tmp_path, slot, "right", slot.solution)
    whole = assemble(tmp_path, base, SLOTS, steps_only=True)
    assert set(whole.yours) == set(IN_STEPS) and set(whole.finished) == set(SLOTS) - set(IN_STEPS)
    said = {name: (whose, calls) for name, whose, calls, _ in whole.rows}
    assert said["05.pack"] == ("finished: no part of one process's steps", "–")
    for name in IN_STEPS:
        (tmp_path / "yours" / f"{name}.py").unlink()
    assert not assemble(tmp_path, base, SLOTS, steps_only=True).yours


@pytest.mark.parametrize("name", ["05.pack", "09.arrange"])
def test_a_kept_function_of_weights_or_ranks_is_judged_again(tmp_path, base, name):
    slot = SLOTS[name]
    note(
        tmp_path, slot, "right", next(w.source for w in slot.wrong.values() if w.seen_by == "model")
    )
    with pytest.raises(PortError, match=f"{name}: .* together they part at"):
        assemble(tmp_path, base, SLOTS)


def test_what_raises_by_now_is_told(tmp_path, base):
    note(tmp_path, SLOTS["01.cut"], "right", SLOTS["01.cut"].solution.replace("narrow", "carve"))
    with pytest.raises(PortError, match=r"01\.cut.* together: .*carve"):
        assemble(tmp_path, base, SLOTS)


def test_a_function_that_nothing_calls_is_no_praise(tmp_path, base):
    slot = replace(SLOTS["00.last"], attach=lambda twin, function: None)
    note(tmp_path, slot, "right", slot.solution)
    with pytest.raises(PortError, match=r"never calls 00\.last"):
        assemble(tmp_path, base, {**SLOTS, slot.id: slot})


def test_a_later_try_is_said_beside_the_kept_one(tmp_path, base):
    slot = SLOTS["00.last"]
    note(tmp_path, slot, "right", slot.solution)
    note(tmp_path, slot, "late", "def last(hidden): ...")
    note(tmp_path, SLOTS["02.absorbed"], "wrong", "def absorbed(): ...")
    verdicts = {name: verdict for name, _, _, verdict in assemble(tmp_path, base, SLOTS).rows}
    assert verdicts["00.last"] == "✔ right; tried since: did not come back"
    assert verdicts["02.absorbed"] == "✘ not the same" and verdicts["03.moe_infer_normal"] == "–"


def test_what_was_never_right_is_the_finished_code(tmp_path, base):
    note(tmp_path, SLOTS["00.last"], "right", SLOTS["00.last"].solution)
    note(tmp_path, SLOTS["02.absorbed"], "wrong", SLOTS["02.absorbed"].solution)
    whole = assemble(tmp_path, base, SLOTS)
    assert whole.yours == ("00.last",) and whole.finished["02.absorbed"] == "not written yet"


def test_a_kept_function_that_is_wrong_by_now_is_told(tmp_path, base):
    slot = SLOTS["02.absorbed"]
    note(tmp_path, slot, "right", next(iter(slot.wrong.values())).source)
    with pytest.raises(PortError, match=r"02\.absorbed: .* together they part at"):
        assemble(tmp_path, base, SLOTS)


def test_fit_writes_into_the_sessions_folder(tmp_path, base, monkeypatch):
    monkeypatch.setattr(session, "_started", [])
    with pytest.raises(PortError, match="start"):
        your_model(base)
    slot = SLOTS["00.last"]
    fit(read(slot.id, slot.solution, "cell.py"), base)  # no session: nothing is kept
    session.start(results_dir=tmp_path)
    assert fit(read(slot.id, slot.solution, "cell.py"), base).state == "right"
    assert json.loads((tmp_path / FILE).read_text())["slots"][slot.id]["built"]
    assert your_model(base).yours == (slot.id,)


def test_an_answer_of_the_catalogue_is_no_try(tmp_path, base, monkeypatch):
    """A notebook shows a wrong answer behind the learner's right one: that stays what they did."""
    here = types.SimpleNamespace(results=tmp_path / "results.json")
    monkeypatch.setattr("dsv3_port.course.yours.session.current", lambda: here)
    slot = slots()["00.last"]
    fit(read(slot.id, slot.solution, "cell.py"), base)
    assert fit(catalogue(slot.id, "mean"), base).state == "wrong"
    row = read_progress(tmp_path / FILE)[slot.id]
    assert (row.state, row.tries) == ("right", 1)

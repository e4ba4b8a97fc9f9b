"""Every solution passes, every catalogued mistake gets its own hint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dsv3_port.course.judge import EXERCISES, check, of_notebook
from dsv3_port.course.yours import slots
from dsv3_port.errors import PortError

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("0[1-9]*_*.ipynb"))
MISTAKES = [(e.id, name) for e in EXERCISES.values() for name in e.wrong]


@pytest.mark.parametrize("exercise_id", EXERCISES)
def test_solution_passes(exercise_id):
    exercise = EXERCISES[exercise_id]
    verdict = check(exercise_id, exercise.solved())
    assert verdict.ok is True, verdict.text
    assert "✔" in verdict._repr_html_() and exercise.solution.strip() in exercise.folded()


@pytest.mark.parametrize(("exercise_id", "name"), MISTAKES)
def test_mistake_gets_its_own_hint(exercise_id, name):
    example, hint = EXERCISES[exercise_id].wrong[name]
    verdict = check(exercise_id, example)
    assert verdict.ok is False and verdict.mistake == name and verdict.text == hint


@pytest.mark.parametrize("exercise_id", EXERCISES)
def test_exercise_is_complete(exercise_id):
    exercise = EXERCISES[exercise_id]
    assert exercise.id.split(".")[0] == exercise.notebook.split("_")[0]
    assert exercise.wrong and 1 <= exercise.difficulty <= 3 and 1 <= exercise.minutes <= 60
    assert len({hint for _, hint in exercise.wrong.values()}) == len(exercise.wrong)
    assert exercise in of_notebook(exercise.notebook)


@pytest.mark.parametrize("exercise_id", EXERCISES)
@pytest.mark.parametrize("nonsense", [object(), "no answer to anything", lambda *a, **k: 1 / 0])
def test_nonsense_is_no_traceback(exercise_id, nonsense):
    assert check(exercise_id, nonsense).ok is False


def test_unanswered_is_neither_right_nor_wrong():
    first = next(iter(EXERCISES))
    assert check(first, ...).ok is None and not check(first, None)


def test_unknown_exercise():
    with pytest.raises(PortError, match="unknown exercise"):
        check("99.nothing", 1)


def test_other_mask_values_that_work_are_accepted():
    assert check(
        "04.mask_value", lambda scores, keep: scores.masked_fill(~keep, float(scores.min()) - 1)
    ).ok


def test_error_of_the_answer_is_the_hint():
    assert "ZeroDivisionError" in check("04.mask_value", lambda scores, keep: 1 / 0).text


def cells_of(file: Path, tag: str) -> list[str]:
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if tag in c["metadata"].get("tags", [])]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_notebook_shows_its_exercises(file):
    """One to three, or a second slot; easier ones first, with their titles and minutes, the check's
    id, and the tested solution."""
    parts = cells_of(file, "exercise")
    asked = [EXERCISES[i] for i in re.findall(r"check\(\"([\w.]+)\"", "\n".join(parts))]
    second = sum(slot.notebook == file.stem for slot in slots().values()) > 1  # is its exercise
    assert sorted(e.id for e in asked) == [e.id for e in of_notebook(file.stem)]
    assert not asked if second else 1 <= len(asked) <= 3
    assert [e.difficulty for e in asked] == sorted(e.difficulty for e in asked)
    texts = [text for text in parts if text.startswith("##")]
    assert len(texts) == len(asked)
    for exercise, text in zip(asked, texts, strict=True):
        assert exercise.title in text and f"{exercise.minutes} minutes" in text
    assert [s.strip() for s in cells_of(file, "solution")] == [e.folded() for e in asked]
    card = cells_of(file, "card")[0]
    said = f"{sum(e.minutes for e in asked)} minutes ({len(asked)})" if asked else "none"
    assert f"| Exercises 练习 | {said} |" in card

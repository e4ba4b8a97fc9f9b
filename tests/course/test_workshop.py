"""The workshop's pages stay true: error texts are the package's, plans add up, terms are those of
the steps."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from dsv3_port.course.judge import EXERCISES
from dsv3_port.course.notebook import course_files
from dsv3_port.course.yours import slots
from dsv3_port.messages import catalogue
from dsv3_port.steps import STEPS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks" / "workshop"
MESSAGES = re.findall(
    r"```text\n(.*?)\n```", (FOLDER / "troubleshooting.md").read_text(encoding="utf-8"), re.DOTALL
)
GUIDE = (FOLDER / "instructor.md").read_text(encoding="utf-8")
GLOSSARY = (FOLDER / "glossary.md").read_text(encoding="utf-8")
NOTEBOOKS = {f.stem for f in course_files(ROOT / "notebooks")}


@cache
def literals() -> list[str]:
    """Every string of the package and of ci/, with … where an f-string puts a value in."""
    found = []
    for file in [*(ROOT / "dsv3_port").rglob("*.py"), *(ROOT / "ci").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(
                        str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def matches(message: str) -> bool:
    """The message's pieces stand in one string of the source, in order; a value may stand for … and
    next to a piece."""
    pattern = re.compile(
        ".*".join(re.escape(piece.strip()) for piece in message.split("…")), re.DOTALL
    )
    return any(pattern.search(text) for text in literals())


@pytest.mark.parametrize("message", MESSAGES)
def test_every_error_text_is_one_of_ours(message):
    assert matches(message), message


def test_an_invented_error_text_is_noticed():
    assert len(MESSAGES) > 30 and not matches("the flux … is too low")


@pytest.mark.parametrize("name", ["half-day", "full-day"])
def test_plans_add_up_and_name_what_exists(name):
    plan, total = re.search(
        rf"<!-- plan:{name} -->\n(.*?)<!-- total: (\d+) -->", GUIDE, re.DOTALL
    ).groups()
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in plan.strip().splitlines()[2:]
    ]
    assert sum(int(row[1]) for row in rows) == int(total)
    taught = [row for row in rows if row[0] not in ("break", "lunch")]
    known = EXERCISES | slots()
    assert {row[0] for row in taught} <= NOTEBOOKS
    for row in taught:
        asked = [known[i] for i in re.findall(r"\d\d[a-z]?\.\w+", row[3])]
        assert all(e.notebook == row[0] for e in asked)
        assert sum(e.minutes for e in asked) < int(row[1]), row
    built = [row for row in taught if row[3].startswith("built")]
    assert len(built) == {"half-day": 3, "full-day": 8}[name]


def test_every_usual_wrong_answer_has_its_question_in_the_guide():
    for slot in slots().values():
        assert f"`{slot.id}`" in GUIDE
        for what, wrong in slot.wrong.items():
            assert what.replace("|", "\\|") in GUIDE and wrong.hint.replace("|", "\\|") in GUIDE


def test_glossary_has_both_languages_once_and_the_words_of_the_steps():
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in GLOSSARY.splitlines()
        if line.startswith("|")
    ]
    terms = [row for row in rows if row[0] not in ("English", "---")]
    assert len({row[0] for row in terms}) == len(terms) > 70
    for english, chinese, meaning, where in terms:
        assert english and chinese and meaning and any(n.startswith(where) for n in NOTEBOOKS), (
            english
        )
    text = GLOSSARY.replace(" ", "")
    missing = [
        title
        for title in map(catalogue("zh").gettext, (s.title for s in STEPS))
        if not all(part in text for part in title.replace("GMM", "").split())
    ]
    assert not missing


def test_links_of_the_workshop_exist():
    for file in FOLDER.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8")):
            assert "://" in link or (FOLDER / link).exists(), link

"""Slots filled in before a notebook is executed: every state reaches the end, a wrong function is
never timed, and runs.json says what the judge found."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from jupyter_client.provisioning import local_provisioner
from nbformat.v4 import new_code_cell, new_notebook

from dsv3_port import PortError, PortPlan, load_model, load_tokenizer
from dsv3_port.course import tutorial
from dsv3_port.course.filled import Filling, answers, fill, states
from dsv3_port.course.tutorial import run_tutorial
from dsv3_port.course.written import load_function
from dsv3_port.course.yours import fit, slot, slots
from tests import forks

SLOT = slots()["00.last"]
ROOT = Path(__file__).parents[2]
SETTINGS = 'profile = "tiny"\ndevice = "cpu"\nresults_dir = "results"\nseed = 0'
BUILD = f"""import torch
from dsv3_port import PortPlan, load_model
from dsv3_port.lab import fit, slot
model = load_model({str(ROOT / "data" / "tiny-dsv3")!r}, PortPlan.full(), "cpu", "float32")"""


@pytest.fixture(autouse=True)
def forked_kernels(monkeypatch):
    """test_tutorial.py starts real ones."""
    monkeypatch.setattr(local_provisioner, "launch_kernel", forks.Kernel)


def notebook(after: str = "built.code") -> nbformat.NotebookNode:
    cells = [
        new_code_cell(SETTINGS, metadata={"tags": ["parameters"]}),
        new_code_cell(BUILD),
        new_code_cell(f'@slot("00.last")\n{SLOT.stub.strip()}', metadata={"tags": ["yours"]}),
        new_code_cell("built = fit(last, model)\nbuilt", metadata={"tags": ["judge"]}),
        new_code_cell(after),
    ]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": spec})


def test_words_and_folders(tmp_path):
    assert answers("empty")(SLOT) is None and answers("solution")(SLOT).text == SLOT.solution
    first = next(iter(SLOT.wrong))
    assert answers("wrong")(SLOT) == Filling(SLOT.wrong[first].source, first)
    with pytest.raises(PortError, match="neither empty, solution, wrong nor a folder"):
        answers("right")
    with pytest.raises(PortError, match=r"holds no file of a slot; they are 00.last.py"):
        answers(str(tmp_path))
    (tmp_path / "00.last.py").write_text("x = 1\n")
    answer = answers(str(tmp_path))
    assert answer(SLOT) == Filling("x = 1\n") and answer(slots()["02.absorbed"]) is None


@pytest.mark.parametrize(
    "text", [SLOT.solution, "import math\n" + SLOT.solution, '@slot("00.last")' + SLOT.solution]
)
def test_a_filled_cell_has_one_decorator_above_the_function(text):
    nb = notebook()
    fill(nb, lambda slot: Filling(text))
    source = nb.cells[2].source
    assert source.count('@slot("00.last")\ndef last(hidden)') == source.count("@slot") == 1
    assert "hidden[:, -1:]" in source and source.startswith("import math") == ("math" in text)
    compile(source, "cell", "exec")


def test_a_catalogue_answer_is_not_called_yours():
    """--yours wrong shows whose answer it is; a folder's files are the learner's own."""
    nb = notebook()
    fill(nb, answers("wrong"))
    assert '@slot("00.last", filled="first position")' in nb.cells[2].source
    base = load_model(ROOT / "data" / "tiny-dsv3", PortPlan.full(), "cpu", "float32")
    tokenizer = load_tokenizer(ROOT / "data" / "tiny-dsv3")
    function = slot("00.last", filled="first position")(
        load_function(SLOT.wrong["first position"].source, "last")
    )
    shown = fit(function, base).text(tokenizer, ["7 plus 5 is"], 8).markdown
    assert "text, first position" in shown and "your code" not in shown
    own = fit(slot("00.last")(function.written.function), base)
    assert "text, your code" in own.text(tokenizer, ["7 plus 5 is"], 8).markdown


RAISING = "def last(hidden):\n    return hidden @ hidden\n"
LATE = "def last(hidden):\n    while True:\n        pass\n"


@pytest.fixture
def checkout(tmp_path):
    for folder in ("notebooks", "ci/profiles"):
        (tmp_path / folder).mkdir(parents=True)
    profile = "profile: tiny\ndevice: cpu\nseed: 0\n"
    (tmp_path / "ci" / "profiles" / "tiny.yaml").write_text(profile)
    nbformat.write(notebook(), tmp_path / "notebooks" / "00_start_here.ipynb")
    return tmp_path


@pytest.mark.parametrize(
    ("what", "state", "code"),
    [
        ("empty", "empty", "finished"),
        ("solution", "right", "yours"),
        ("wrong", "wrong", "finished"),
        (RAISING, "raised", "finished"),
        (LATE, "late", "finished"),
    ],
    ids=lambda v: v.split("(")[0],
)
def test_every_state_reaches_the_end_in_a_kernel(checkout, what, state, code):
    """Empty, right, wrong, raised and late: the last cell runs, the record says which."""
    before = (checkout / "notebooks" / "00_start_here.ipynb").read_text()
    if "\n" in what:
        (checkout / "mine").mkdir()
        (checkout / "mine" / "00.last.py").write_text(what)
        what = str(checkout / "mine")
    (run,) = run_tutorial(checkout / "notebooks", checkout / "out", progress=False, yours=what)
    assert run.status == "ok" and run.slots == {"00.last": state}, run
    nb = nbformat.read(checkout / "out" / "executed" / "00_start_here.ipynb", as_version=4)
    assert nb.cells[-1].outputs[-1].data["text/plain"] == repr(code) and states(nb) == run.slots
    shown = next(o.data for o in nb.cells[-2].outputs if "data" in o)
    if state in ("raised", "late"):  # the line of the cell, and its text
        assert "line 3" in shown["text/plain"].replace("line 4", "line 3")
        assert "hidden @ hidden" in shown["text/plain"] or state == "late"
    rows = json.loads((checkout / "out" / "runs.json").read_text())
    assert rows[0]["slots"] == {"00.last": state}
    assert (checkout / "notebooks" / "00_start_here.ipynb").read_text() == before


COURSE = ["05"]  # the shortest notebook that times; every solution alone: test_slots.py


@pytest.fixture
def notebooks_alone(monkeypatch):
    """Without docs/ and the workshop as pages, which test_docs.py looks at."""
    monkeypatch.setattr(tutorial, "_write_texts", lambda notebooks, out: None)


@pytest.mark.usefixtures("notebooks_alone")
def test_a_notebook_of_the_course_with_its_solution(tmp_path):
    """The learner's function is timed beside the finished one, and only then."""
    (run,) = run_tutorial(
        ROOT / "notebooks", tmp_path, only=COURSE, progress=False, yours="solution"
    )
    assert run.status == "ok" and set(run.slots.values()) == {"right"}, run.error
    names = {r["name"] for r in json.loads((tmp_path / "results" / "results.json").read_text())}
    assert "yours" in names


@pytest.mark.usefixtures("notebooks_alone")
def test_a_wrong_function_is_never_timed(tmp_path):
    (run,) = run_tutorial(ROOT / "notebooks", tmp_path, only=COURSE, progress=False, yours="wrong")
    assert run.status == "ok" and set(run.slots.values()) == {"wrong"}, run.error
    results = (tmp_path / "results" / "results.json").read_text()
    assert '"merged_mlp"' in results and '"yours"' not in results

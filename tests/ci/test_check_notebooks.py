"""The rules of the notebooks: one good notebook, and one for each way to break a rule."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / "ci" / "tools"
_spec = importlib.util.spec_from_file_location("check_notebooks", CI / "check_notebooks.py")
rules = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rules)
CODE = (
    "map",
    "parameters",
    "imports",
    "yours",
    "judge",
    "measure",
    "failure",
    "plot",
    "exercise",
    "equivalence",
)
SETTINGS = 'profile = "tiny"\ndevice = "auto"\nresults_dir = "results"\nseed = 0\n'


def cell(tag: str, kind: str, text: str, name: str = "") -> dict:
    made = {
        "cell_type": kind,
        "id": name or f"x-{tag}",
        "metadata": {"tags": [tag] if tag else []},
        "source": text,
    }
    return made | ({"outputs": [], "execution_count": None} if kind == "code" else {})


def good() -> dict:
    cells = [
        cell(
            tag,
            "code" if tag in CODE else "markdown",
            SETTINGS if tag == "parameters" else f"# {tag}",
        )
        for tag in rules.ANATOMY
    ]
    cells[-1:-1] = [
        cell("exercise", "code", "check()", "x-exercise-2"),
        cell("solution", "markdown", "so", "x-solution-2"),
    ]
    cells.insert(8, cell("", "markdown", "a part of its own, see https://example.org/", "x-free"))
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3"}},
        "cells": cells,
    }


def find(nb: dict, tag: str) -> dict:
    return next(c for c in nb["cells"] if tag in c["metadata"]["tags"])


def test_a_good_notebook_has_no_findings():
    assert rules.check_notebook(good(), "02_mla_low_rank") == []


def test_sources_as_lists_of_lines():
    nb = good()
    for c in nb["cells"]:
        c["source"] = c["source"].splitlines(keepends=True)
    assert rules.check_notebook(nb, "02_mla_low_rank") == []


CARD = """| | |
|---|---|
| Reading 阅读 | 3 minutes, estimated |
| Exercises 练习 | none |
| Run 运行 | 30 seconds, measured on two CPU cores, alone (2026-11-28) |
| Difficulty 难度 | ●○○ |
| Prerequisites 前置 | 00 |
| Tiers 设备 | cpu |"""


def recorded(folder):
    """A run of one notebook, as `--record` writes it."""
    said = {"where": "two CPU cores, alone", "date": "2026-11-28"}
    file = folder / "run_seconds.json"
    file.write_text(json.dumps({**said, "seconds": {"02_mla_low_rank": 30}}))
    return file


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (("3 minutes", "30 minutes"), "30 minutes of reading, the text has"),
        ((", estimated", ""), "are estimated"),
        (("30 seconds", "20 seconds"), "Run is '20 seconds"),
        (("| Run", "| Build 动手 | 9 minutes |\n| Run"), "Build is '9 minutes', not None"),
        (("| Difficulty", "| Difficult"), "no row 'Difficulty'"),
        (("", ""), ""),
    ],
)
def test_cards_are_held_to_the_text_and_the_record(change, finding, tmp_path, monkeypatch):
    monkeypatch.setattr(rules.cards, "SECONDS", recorded(tmp_path))
    nb = good()
    find(nb, "card")["source"] = CARD.replace(*change)
    found = rules.check_notebook(nb, "02_mla_low_rank")
    assert len(found) == bool(finding) and all(finding in line for line in found), found


def test_rows_are_written_and_a_run_is_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rules.cards, "SECONDS", recorded(tmp_path))
    monkeypatch.setattr(rules.cards, "__file__", str(tmp_path / "ci" / "tools" / "cards.py"))
    nb, file = good(), tmp_path / "notebooks" / "02_mla_low_rank.ipynb"
    card = find(nb, "card")
    card["source"] = CARD.replace("30 seconds", "1 second").replace(
        "| Run", "| Build 动手 | |\n| Run"
    )
    find(nb, "yours")["source"] = '@slot("02.absorbed")\ndef absorbed(): ...'
    file.parent.mkdir()
    file.write_text(json.dumps(nb))
    assert rules.cards.main([]) == 0 and "02_mla_low_rank" in capsys.readouterr().out
    rows = rules.cards.rows_of(json.loads(file.read_text())["cells"])
    assert rows["Run"].startswith("30 seconds, measured on two CPU cores, alone")
    assert rows["Build"] == "25 minutes planned, no class has timed it: reckon with 38"
    assert rules.check_file(file) == []
    run, runs = {"name": "02_mla_low_rank", "status": "ok", "seconds": 41.2}, tmp_path / "runs.json"
    runs.write_text(json.dumps([run]))
    assert rules.cards.main(["--record", str(runs), "one core"]) == 0
    rows = rules.cards.rows_of(json.loads(file.read_text())["cells"])
    assert rows["Run"].startswith("41 seconds, measured on one core (20")
    runs.write_text(json.dumps([{**run, "status": "failed"}]))
    with pytest.raises(SystemExit, match="no run of 02_mla_low_rank"):
        rules.cards.main(["--record", str(runs), "one core"])


def test_cards_are_held_to_a_run(tmp_path):
    nb = good()
    find(nb, "card")["source"] = CARD
    (tmp_path / "02_a.ipynb").write_text(json.dumps(nb))
    for seconds, wrong in ((25, 0), (69, 0), (71, 1)):
        run = {"name": "02_a", "status": "ok", "seconds": seconds}
        (tmp_path / "runs.json").write_text(
            json.dumps([run, {"name": "03_b", "status": "failed", "seconds": 1}])
        )
        assert len(rules.cards.against_runs(tmp_path, tmp_path / "runs.json")) == wrong


def test_a_slow_machine_is_told_from_a_slow_notebook(tmp_path, monkeypatch, capsys):
    nb = good()
    find(nb, "card")["source"] = CARD  # about 30 seconds
    names = [f"0{k}_a" for k in range(2, 7)]
    for name in names:
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(json.dumps(nb))
    monkeypatch.setattr(rules.cards, "__file__", str(tmp_path / "ci" / "tools" / "cards.py"))
    for odd, warned in ((240, []), (559, []), (561, ["02_a"])):
        runs = [{"name": n, "status": "ok", "seconds": odd if n == "02_a" else 240} for n in names]
        (tmp_path / "runs.json").write_text(json.dumps(runs))
        assert rules.cards.main([str(tmp_path / "runs.json")]) == 0
        first, *lines = capsys.readouterr().out.splitlines()
        assert "8.00 times" in first and [line.split("/")[1][:4] for line in lines] == warned, lines


def _outputs(nb):
    find(nb, "plot")["outputs"] = [{"output_type": "stream"}]


def _count(nb):
    find(nb, "plot")["execution_count"] = 3


def _kernel(nb):
    nb["metadata"]["kernelspec"]["name"] = "my-env"


def _format(nb):
    nb["nbformat_minor"] = 4


def _run_metadata(nb):
    nb["metadata"]["papermill"] = {}


def _no_id(nb):
    del find(nb, "plot")["id"]


def _same_id(nb):
    find(nb, "plot")["id"] = "x-map"


def _random_id(nb):
    find(nb, "plot")["id"] = "a1b2c3d4-0123-4567-89ab-0123456789ab"


def _slideshow(nb):
    find(nb, "plot")["metadata"]["slideshow"] = {"slide_type": "slide"}


def _two_parameters(nb):
    nb["cells"].insert(5, cell("parameters", "code", SETTINGS, "x-more"))


def _no_seed(nb):
    find(nb, "parameters")["source"] = SETTINGS.replace("seed", "sead")


def _broken_parameters(nb):
    find(nb, "parameters")["source"] = "profile = = 1"


def _two_imports(nb):
    nb["cells"].insert(6, cell("imports", "code", "import os", "x-more"))


def _many_cells(nb):
    nb["cells"][8:8] = [cell("", "markdown", "more", f"x-{i}") for i in range(30)]


def _long_cell(nb):
    find(nb, "plot")["source"] = "x = 1\n" * 21


def _wide_line(nb):
    find(nb, "plot")["source"] = "x = '" + "a" * 100 + "'"


def _remote_picture(nb):
    find(nb, "card")["source"] = "![a](https://example.org/a.png)"


def _remote_tag(nb):
    find(nb, "card")["source"] = '<img alt="a" src="//example.org/a.png">'


def _missing_picture(nb):
    find(nb, "card")["source"] = "![a](figures/none.svg)"


def _home(nb):
    find(nb, "plot")["source"] = "open('/home/me/x')"


def _windows(nb):
    find(nb, "card")["source"] = "see C:\\Users\\me"


def _missing_part(nb):
    nb["cells"].remove(find(nb, "failure"))


def _wrong_order(nb):
    measure, plot = find(nb, "measure"), find(nb, "equivalence")
    i, j = nb["cells"].index(measure), nb["cells"].index(plot)
    nb["cells"][i], nb["cells"][j] = plot, measure


def _two_parts(nb):
    find(nb, "plot")["metadata"]["tags"] = ["plot", "measure"]


def _unknown_tag(nb):
    find(nb, "plot")["metadata"]["tags"].append("hid-input")


def _unsolved(nb):
    nb["cells"].remove(next(c for c in nb["cells"] if c["id"] == "x-solution-2"))


def _may_raise(nb):
    find(nb, "plot")["metadata"]["tags"].append("raises-exception")


BAD = {
    _outputs: "has outputs",
    _count: "execution count",
    _kernel: "'my-env'",
    _format: "format 4.4",
    _run_metadata: "papermill",
    _no_id: "has no id",
    _same_id: "used twice",
    _random_id: "random one",
    _slideshow: "slides are written in workshop/deck",
    _two_parameters: "2 cells tagged 'parameters'",
    _no_seed: "does not set seed",
    _broken_parameters: "does not set device",
    _two_imports: "2 code cells tagged 'imports'",
    _many_cells: "at most 42",
    _long_cell: "21 lines",
    _wide_line: "106 characters",
    _remote_picture: "picture from the net",
    _remote_tag: "picture from the net",
    _missing_picture: "figures/none.svg, which does not exist",
    _home: "/home/me",
    _windows: "C:\\Users",
    _missing_part: "no cell tagged 'failure'",
    _wrong_order: "the order is fixed",
    _two_parts: "one part only",
    _unknown_tag: "unknown tag 'hid-input'",
    _unsolved: "2 exercises and 1 solutions",
    _may_raise: "may raise",
}


@pytest.mark.parametrize("damage", BAD, ids=lambda f: f.__name__.strip("_"))
def test_each_kind_of_damage_is_found(damage):
    nb = copy.deepcopy(good())
    damage(nb)
    lines = rules.check_notebook(nb, "02_mla_low_rank")
    assert any(BAD[damage] in line for line in lines), lines
    assert all(line.startswith("02_mla_low_rank: ") for line in lines)


def test_the_frame_is_enough_where_no_step_is_taken():
    nb = good()
    nb["cells"] = [
        c
        for c in nb["cells"]
        if not c["metadata"]["tags"] or c["metadata"]["tags"][0] in rules.FRAME
    ]
    assert rules.check_notebook(nb, "10_results") == []
    assert rules.check_notebook(nb, "02_mla_low_rank")


def test_a_failing_cell_belongs_to_the_failure_part():
    nb = good()
    find(nb, "failure")["metadata"]["tags"].append("raises-exception")
    assert rules.check_notebook(nb, "02_mla_low_rank") == []


def test_pictures_beside_the_notebook_are_found(tmp_path):
    nb = good()
    find(nb, "card")["source"] = '![a](a.svg) <img src="a.svg"> ![b](attachment:b.png)'
    (tmp_path / "a.svg").write_text("<svg/>")
    assert rules.check_notebook(nb, "02_mla_low_rank", tmp_path) == []


def test_addresses_and_documented_folders_are_no_machine_paths():
    nb = good()
    find(nb, "card")["source"] = (
        "https://example.org/home/x, /usr/local/Ascend/latest, `./tmp/x`, a/data/b, "
        "{root}/data/x and 1/work"
    )
    assert rules.check_notebook(nb, "02_mla_low_rank") == []


def test_names_and_order():
    expected = rules.expected_names()
    core = [name for name in expected if name not in rules.APPENDICES]
    assert core == sorted(core) and expected[len(core) :] == [*rules.APPENDICES]
    decks = {f.stem for f in (CI.parents[1] / "notebooks" / "workshop" / "deck").glob("*.md")}
    assert {name.partition("_")[0] for name in core} == decks and {"00", "12", "14"} < decks
    assert rules.check_names(expected, expected) == []
    lines = rules.check_names([*expected[1:], "99_more"], expected)
    assert [line.split(":")[0] for line in lines] == ["00_start_here", "99_more"]


def _no_judge(nb):
    nb["cells"].remove(find(nb, "judge"))


def _two_slots(nb):
    nb["cells"].insert(9, cell("yours", "code", "x = 1", "x-yours-2"))


def _judge_first(nb):
    at = nb["cells"].index(find(nb, "yours"))
    nb["cells"][at : at + 2] = reversed(nb["cells"][at : at + 2])


def _cells_of_a_slot(nb):
    nb["cells"][8:8] = [cell("", "markdown", "more", f"x-{i}") for i in range(12)]


def _lines_of_a_slot(nb):
    find(nb, "plot")["source"] = "x = 1\n" * 13


def _many_words(nb):
    find(nb, "recap")["source"] = "word " * 951


def _many_lines(nb):
    nb["cells"][10:10] = [cell("", "code", "x = 1\n" * 12, f"x-{i}") for i in range(8)]


SLOT = {
    _no_judge: "tagged yours: each slot",
    _two_slots: "tagged yours, yours, judge: each slot",
    _judge_first: "tagged judge, yours: each slot",
    _cells_of_a_slot: "at most 26",
    _lines_of_a_slot: "13 lines, at most 12",
    _many_words: "words and",
    _many_lines: "lines of code, at most 950 and 85",
}


@pytest.mark.parametrize("damage", SLOT, ids=lambda f: f.__name__.strip("_"))
def test_a_notebook_with_a_slot_is_short_and_has_one_of_each(damage):
    nb = copy.deepcopy(good())
    damage(nb)
    lines = rules.check_notebook(nb, "02_mla_low_rank")
    assert any(SLOT[damage] in line for line in lines), lines


def test_a_second_slot_has_its_own_judge_and_is_the_exercise():
    nb = good()
    at = nb["cells"].index(find(nb, "judge")) + 1
    pair = [cell("yours", "code", "x = 1", "x-yours-2"), cell("judge", "code", "x", "x-judge-2")]
    nb["cells"][at:at] = pair
    nb["cells"] = [c for c in nb["cells"] if not rules.MORE & set(c["metadata"]["tags"])]
    assert rules.check_notebook(nb, "02_mla_low_rank") == []
    nb["cells"].remove(pair[1])
    assert rules.check_notebook(nb, "02_mla_low_rank")


def test_more_stands_behind_the_recap_and_is_not_counted():
    nb = good()
    more = [
        *(cell("exercise", "code", "check()" + "\nx = 1" * 15, f"x-more-{i}") for i in range(9)),
        cell("solution", "markdown", "so " * 2000, "x-more-solution"),
    ]
    nb["cells"] += more
    assert rules.check_notebook(nb, "02_mla_low_rank") == []


def test_an_appendix_needs_no_exercises():
    nb = good()
    nb["cells"] = [c for c in nb["cells"] if set(c["metadata"]["tags"]) & set(rules.APPENDIX)]
    assert rules.check_notebook(nb, "a2_routing_and_gating") == []
    assert rules.check_notebook(nb, "02_mla_low_rank")


def test_files_from_the_command_line(tmp_path, capsys):
    file = tmp_path / "02_mla_low_rank.ipynb"
    file.write_text(json.dumps(good()))
    assert rules.main([str(file)]) == 0
    file.write_text("{}")
    assert rules.main([str(file)]) == 1
    assert "not a notebook" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Here the step is faster.", ["faster"]),
        ("It takes 3.4 ms and gains little", ["3.4 ms", "gains"]),
        ("1.50× the time, 10 % of it, 128 times", ["1.50×", "10 %", "128 times"]),
        ("decode loses: a speed-up of none", ["loses", "speed-up"]),
        ("[7 × 128] rows, T × K of them, 4 × (192 + 128) numbers, 2 × 8", []),
        ("`time.sleep(3 ms)` and ```\n3 ms faster\n``` are code", []),
        ("<details><summary>answer</summary>\n3.0× faster</details>", []),
        ("Would a step that launches less take less time?", []),
    ],
)
def test_markdown_states_no_outcome(text, found):
    assert sorted(sys.modules["claims"].claims(text)) == sorted(found)
    lines = list(rules.check_claims([cell("", "markdown", text), cell("cited", "markdown", text)]))
    assert len(lines) == len(found) and all("lab.say" in said for _, said in lines)


def test_no_notebook_is_exempt():
    """All have been read against their runs: a claim in any of them is a finding."""
    for name in rules.expected_names():
        nb = good()
        nb["cells"].append(cell("", "markdown", "Here the step is faster.", "x-claim"))
        assert any("states an outcome" in f for f in rules.check_notebook(nb, name)), name

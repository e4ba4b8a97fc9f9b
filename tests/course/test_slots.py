"""Every slot: its stub, solution, accepted and wrong answers, and nonsense. A new module of
dsv3_port/course/slots/ is tested by being there."""

from __future__ import annotations

import functools
import inspect
import json
import re
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsv3_port import PortError, PortPlan, load_model
from dsv3_port.check.gate import Recorded, compare_recorded, record_gate
from dsv3_port.cli.main import main
from dsv3_port.course import trial, yours
from dsv3_port.course.diff import source
from dsv3_port.course.slots import continuous, function_of
from dsv3_port.course.trial import try_out
from dsv3_port.course.written import Written, is_empty, load_function, written
from dsv3_port.course.yours import Yours, fit, read, slots
from dsv3_port.engine.continuous import Request
from dsv3_port.messages import catalogue
from dsv3_port.paths import tiny

SLOTS = slots()
RIGHT = [(i, name) for i, s in SLOTS.items() for name in ("solution", *s.accepted)]
WRONG = [(i, name) for i, s in SLOTS.items() for name in s.wrong]
FILE, CHINESE = "cell.py", catalogue("zh").gettext


@functools.cache
def base_of(slot_id: str):
    return load_model(tiny(), SLOTS[slot_id].plan, "cpu", "float32")


RECORDED: dict[PortPlan, Recorded] = {}
TOKENS: dict[PortPlan, list[list[int]] | None] = {}
COUNTS: dict[tuple[object, ...], dict[str, int]] = {}
ALONE: dict[tuple[PortPlan, Request], list[int]] = {}


@pytest.fixture(autouse=True)
def finished_code_runs_once(monkeypatch):
    """Every answer is held against finished models of the same weights, and counts that are too high
    against those of the catalogue's answers: what these compute is kept."""
    finished = weakref.WeakSet()
    tokens_of, counts_of, greedy_alone = trial.tokens_of, trial.counts_of, continuous.greedy_alone

    def counts(slot, base, text=""):
        key = slot.id, slot.attach, text
        if key not in COUNTS:
            COUNTS[key] = counts_of(slot, base, text)
        return COUNTS[key]

    def alone(model, request):
        key = model.plan, request
        if key not in ALONE:
            ALONE[key] = greedy_alone(model, request)
        return ALONE[key]

    def gate(reference, candidate):
        finished.add(reference)
        if reference.plan not in RECORDED:
            RECORDED[reference.plan] = record_gate(reference)
        return compare_recorded(RECORDED[reference.plan], record_gate(candidate))

    def tokens(model):
        if model not in finished:
            return tokens_of(model)
        if model.plan not in TOKENS:
            TOKENS[model.plan] = tokens_of(model)
        return TOKENS[model.plan]

    monkeypatch.setattr(trial, "strict_gate", gate)
    monkeypatch.setattr(trial, "tokens_of", tokens)
    monkeypatch.setattr(trial, "counts_of", counts)
    monkeypatch.setattr(continuous, "greedy_alone", alone)


def judge(slot_id: str, text: str):
    return fit(read(slot_id, text, FILE), base_of(slot_id))


@pytest.mark.parametrize("slot_id", SLOTS)
def test_a_slot_is_complete(slot_id):
    s = SLOTS[slot_id]
    assert s.id == f"{s.notebook.split('_')[0]}.{s.name}"
    assert s.part == (2 if s.id >= "12" else 1)  # whose functions 10 puts together
    assert len(s.wrong) >= 3 and 1 <= s.difficulty <= 3 and 1 <= s.minutes <= 60
    hints = [w.hint for w in s.wrong.values()]
    assert len(set(hints)) == len(hints) == len({CHINESE(hint) for hint in hints})
    texts = [s.title, *s.hints, *hints]
    told = [
        text for text in texts if not re.match(r"[\w, ]+ = \w+\(", text)
    ]  # a line of code is both
    assert all(re.search("[\u4e00-\u9fff]", CHINESE(text)) for text in told)
    assert all(s.hints) and len(s.hints) == 3
    assert all(w.seen_by != "count" or s.count is not None for w in s.wrong.values())


@pytest.mark.parametrize("slot_id", SLOTS)
def test_stub_and_solution_are_equal_outside_the_body(slot_id):
    """And every answer has the stub's first line; its names are those of the finished code."""
    s = SLOTS[slot_id]
    stub = function_of(s.stub)
    docstring = stub.body[0].value.value
    assert is_empty(s.stub) and docstring
    texts = [s.solution, *s.accepted.values(), *(w.source for w in s.wrong.values())]
    for text in texts:
        found = function_of(text)
        assert inspect.cleandoc(text).splitlines()[0] == inspect.cleandoc(s.stub).splitlines()[0]
        assert found.name == stub.name and found.body[0].value.value == docstring
        assert not is_empty(text)
    lines = s.solution.strip().splitlines()
    assert len(lines) <= 15 + docstring.count("\n") + 2 and max(map(len, lines)) <= 100
    finished = source(s.finished)  # it is there, and has a name in common
    assert set(s.parameters) & set(re.findall(r"\w+", finished.text))


@pytest.mark.parametrize("slot_id", SLOTS)
def test_the_stub_is_empty_and_the_finished_code_runs(slot_id):
    fitted = judge(slot_id, SLOTS[slot_id].stub)
    assert (fitted.state, fitted.code, fitted.timed, fitted.tried) == (
        "empty",
        "finished",
        {},
        None,
    )
    assert fitted.model is fitted.finished and not fitted.on(base_of(slot_id))


def test_finished_code_that_no_plan_switches_on_runs_all_the_same():
    """The notebook's later cells use `model`: without an answer it replays by the finished code."""
    model = judge("08.replayed", SLOTS["08.replayed"].stub).model
    cache = model.new_cache(1, 8)
    for part in torch.arange(3, 9).unsqueeze(0).split([3, 1, 1, 1], dim=1):
        model(part, cache=cache)
    assert len(model.recorded) == 1


@pytest.mark.parametrize(("slot_id", "name"), RIGHT)
def test_a_right_answer_is_right(slot_id, name):
    s = SLOTS[slot_id]
    fitted = judge(slot_id, s.accepted.get(name, s.solution))
    assert fitted.state == "right", str(fitted)
    assert fitted.code == "yours" and fitted.timed == {"yours": fitted.model}
    assert fitted.model is fitted.tried and list(fitted.on(base_of(slot_id))) == ["yours"]
    if s.calls is not None:
        due = s.calls(fitted.finished, 4)
        assert f"{due} call{'s' * (due > 1)} of your function" in str(fitted)
    page = fitted._repr_html_()
    assert 'role="status"' in page and 'data-state="right"' in page and "<details>" in page


@pytest.mark.parametrize(("slot_id", "name"), WRONG)
def test_a_wrong_answer_gets_its_own_hint(slot_id, name):
    s = SLOTS[slot_id]
    wrong = s.wrong[name]
    fitted = judge(slot_id, wrong.source)
    assert fitted.verdict.mistake == name, str(fitted)
    assert wrong.hint in fitted.verdict.text
    if wrong.seen_by == "count":
        assert fitted.state == "dear" and fitted.timed and "Counted: " in str(fitted)
    else:
        assert fitted.state in ("wrong", "raised", "late") and not fitted.timed
        assert fitted.model is fitted.finished and "Nothing was timed" in str(fitted)
    if fitted.state == "raised":
        assert fitted.verdict.place.line and fitted.verdict.place.text in wrong.source


# nothing is due of what only the toy sees, and ranks are dear
SEEN = [
    (i, name) for i, name in WRONG if not (SLOTS[i].extra and SLOTS[i].wrong[name].seen_by == "toy")
]


@pytest.mark.parametrize(("slot_id", "name"), SEEN)
def test_without_the_toy_the_model_finds_what_it_can(slot_id, name):
    s = SLOTS[slot_id]
    wrong = s.wrong[name]
    mine = read(slot_id, wrong.source, FILE).written
    state = try_out(s, mine, base_of(slot_id), toy=False).verdict.state
    if wrong.seen_by == "model":
        assert state in ("wrong", "raised", "late")
    elif wrong.seen_by == "count":
        assert state == "dear"


NONSENSE = {
    "an object": object(),
    "a number": 7,
    "another signature": lambda: None,
}


@pytest.mark.parametrize("slot_id", SLOTS)
@pytest.mark.parametrize("what", NONSENSE)
def test_what_is_no_answer_gets_a_verdict(slot_id, what):
    fitted = fit(Yours(SLOTS[slot_id], written(NONSENSE[what])), base_of(slot_id))
    assert fitted.state == "wrong" and not fitted.timed


BODIES = {
    "return None": "wrong",
    "return 7": "wrong",
    "return 1 / 0": "raised",
    "raise SystemExit": "raised",
    "while True: pass": "late",
    "{0}.zero_() if hasattr({0}, 'zero_') else None": "wrong",
    "return torch.zeros(1)": "wrong",
    "pass": "empty",
    "raise NotImplementedError('later')": "empty",
}


def with_body(slot_id: str, body: str) -> str:
    s = SLOTS[slot_id]
    return f"\ndef {s.name}({', '.join(s.parameters)}):\n    {body.format(s.parameters[0])}\n"


@pytest.mark.parametrize("slot_id", SLOTS)
@pytest.mark.parametrize("body", BODIES)
def test_nonsense_is_no_traceback(slot_id, body, monkeypatch):
    monkeypatch.setattr("dsv3_port.course.trial.TOY_SECONDS", 0.3)
    fitted = judge(slot_id, with_body(slot_id, body))
    assert fitted.state == BODIES[body] or (BODIES[body], fitted.state) == ("wrong", "raised")
    assert not fitted.timed and "status" in fitted._repr_html_()
    if body in ("return 1 / 0", "while True: pass"):
        assert fitted.verdict.place.line == 3 and fitted.verdict.place.text == body


def test_the_line_and_the_shapes_there_are_shown():
    text = SLOTS["02.absorbed"].solution.replace("q_nope @ w_k, q_rope", "q_nope, q_rope")
    fitted = judge("02.absorbed", text)
    assert fitted.state == "raised" and "scores = " in fitted.verdict.place.text
    assert fitted.verdict.place.shapes["q"] == [2, 3, 5, 18] and "RuntimeError" in str(fitted)


def test_a_timer_is_put_back_and_works_in_a_thread():
    s = SLOTS["00.last"]
    found = []
    text = "\ndef last(hidden):\n    import time\n    time.sleep(0.2)\n    return hidden[:, -1:]\n"

    def there():
        mine = Written(load_function(text, "last"), text, FILE)
        found.append(try_out(s, mine, base_of("00.last"), seconds=0.3, toy=False).verdict.state)

    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    assert found == ["late"]


def test_no_calls_are_no_praise():
    """The model computes what it should, since the finished code did: nothing was judged."""
    s = replace(SLOTS["00.last"], attach=lambda twin, function: None)
    mine = written(load_function(s.solution, s.name))
    verdict = try_out(s, mine, base_of(s.id)).verdict
    assert verdict.state == "wrong" and "never called your function" in verdict.text


def test_other_calls_than_are_due_are_no_praise():
    s = SLOTS["02.absorbed"]

    def some(twin, function):
        s.attach(twin, function)
        del twin.model.layers[1].self_attn.absorbed

    mine = written(load_function(s.solution, s.name))
    verdict = try_out(replace(s, attach=some), mine, base_of(s.id)).verdict
    assert verdict.state == "wrong" and "12 times where 16 calls are due" in verdict.text


def test_an_unknown_mistake_gets_the_first_place_that_differs():
    text = SLOTS["00.last"].solution.replace("hidden[:, -1:]", "hidden[:, -1:] * 2")
    fitted = judge("00.last", text)
    assert fitted.verdict.mistake == "" and "first place that differs is [0, 0, 0]" in str(fitted)
    assert "parts first at prompt, stage lm_head" in str(fitted)


def test_the_text_of_a_wrong_function_stands_beside_the_right_one():
    from dsv3_port import load_tokenizer

    tokenizer, prompts = load_tokenizer(tiny()), ["7 plus 5 is", "One windy morning Tom went to"]
    s = SLOTS["02.absorbed"]
    wrong = judge(s.id, s.wrong["scale of R + Dr"].source).text(tokenizer, prompts, 24)
    assert "your code" in wrong.html and "<mark" in wrong.html
    right = judge(s.id, s.solution).text(tokenizer, prompts, 8)
    assert "text, your code" in right.html and "<mark" not in right.html
    empty = judge(s.id, s.stub).text(tokenizer, prompts, 8)
    assert "text, finished code" in empty.html and "your code" not in empty.html


def test_the_decorator_keeps_the_text():
    @yours.slot("00.last")
    def last(hidden):
        """[B, S, H] -> [B, 1, H]"""
        ...

    assert fit(last, base_of("00.last")).state == "empty" and "@yours.slot" in last.written.text
    with pytest.raises(PortError, match="unknown slot"):
        yours.slot("00.nothing")
    with pytest.raises(PortError, match="@slot"):
        fit(lambda hidden: hidden, base_of("00.last"))


def test_a_helper_below_the_function_is_not_judged_in_its_place():
    s = SLOTS["00.last"]
    helper = "\ndef helper(x):\n    ...\n"
    assert judge("00.last", s.solution + helper).state == "right"
    assert judge("00.last", s.stub + "\ndef helper(x):\n    return x\n").state == "empty"


def test_hints_come_one_after_the_other(monkeypatch):
    monkeypatch.setattr(yours, "_asked", {})
    s = SLOTS["00.last"]
    shown = [yours.hint("00.last").markdown for _ in range(4)]
    assert [h.split("**")[1] for h in shown] == [f"Hint {n} of 3." for n in (1, 2, 3, 3)]
    assert all(text in h for text, h in zip(s.hints, shown, strict=False))
    assert s.solution.strip() in yours.solution("00.last").markdown


def test_the_command_judges_a_file(tmp_path, capsys):
    s = SLOTS["00.last"]
    file = tmp_path / "mine.py"
    file.write_text("from __future__ import annotations\n@slot('00.last')" + s.solution)
    assert main(["judge", "00.last", str(file)]) == 0
    assert "✔" in capsys.readouterr().out
    file.write_text(s.wrong["axis gone"].source)
    assert main(["judge", "00.last", str(file)]) == 1
    assert s.wrong["axis gone"].hint in capsys.readouterr().out
    file.write_text("def last(hidden:\n")
    assert main(["judge", "00.last", str(file)]) == 1
    assert "line 1" in capsys.readouterr().out
    assert main(["judge", "00.last", str(tmp_path / "none.py")]) == 2
    assert main(["judge", "00.last"]) == 2 and main(["judge", "list"]) == 0
    assert "02.absorbed" in capsys.readouterr().out


def test_weights_and_twins_are_left_alone():
    base = base_of("02.absorbed")
    before = {n: (p.data_ptr(), p._version) for n, p in base.named_parameters()}
    for text in (SLOTS["02.absorbed"].solution, SLOTS["02.absorbed"].wrong["no mask"].source):
        judge("02.absorbed", text)
    assert before == {n: (p.data_ptr(), p._version) for n, p in base.named_parameters()}
    assert all("absorbed" not in vars(layer.self_attn) for layer in base.model.layers)
    assert not torch.is_inference_mode_enabled()


def test_notebooks_have_the_stubs_of_their_slots():
    """A notebook with a slot shows the stub as it is judged."""
    folder = Path(__file__).parents[2] / "notebooks"
    for s in SLOTS.values():
        cells = json.loads((folder / f"{s.notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
        texts = ["".join(c["source"]) for c in cells if "yours" in c["metadata"].get("tags", [])]
        assert f'@slot("{s.id}")\n{s.stub.strip()}' in texts
    for name in {s.notebook for s in SLOTS.values()}:
        cells = json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        shown = [c for c in cells if "yours" in c["metadata"].get("tags", [])]
        assert len(shown) == sum(s.notebook == name for s in SLOTS.values())


def test_an_answer_of_the_catalogue_is_shown_and_no_try(tmp_path, monkeypatch):
    from dsv3_port.course import session

    monkeypatch.setattr(session, "_started", [])
    session.start(results_dir=tmp_path)
    fitted = fit(yours.catalogue("02.absorbed", "no mask"), base_of("02.absorbed"))
    assert fitted.verdict.mistake == "no mask" and not (tmp_path / "progress.json").exists()
    judge("00.last", SLOTS["00.last"].solution)
    assert "00.last" in (tmp_path / "progress.json").read_text()
    with pytest.raises(PortError, match="has no answer 'right'; there are scale of R"):
        yours.catalogue("02.absorbed", "right")

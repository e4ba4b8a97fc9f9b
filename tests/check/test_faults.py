"""Each faulty model: what a user sees, which tools see nothing, which find it, and that only the
right accusation and a real repair are accepted."""

from __future__ import annotations

import json
import re
import types

import pytest
import torch

from dsv3_port.check import faults
from dsv3_port.check.compare import compare_models
from dsv3_port.check.fault_cases import DECOY, LAYERS, PARTS, WHYS
from dsv3_port.check.faults import CASES, PROMPTS, TOKENS, accuse, prove, reads, symptom
from dsv3_port.check.gate import strict_gate
from dsv3_port.count import compiled
from dsv3_port.count.compiled import first_break
from dsv3_port.count.syncs import host_syncs
from dsv3_port.engine.generate import generate
from dsv3_port.engine.tokenizer import encode, load_tokenizer
from dsv3_port.errors import PortError
from dsv3_port.model.attention import LowRankAttention
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.model.gate import Gate
from dsv3_port.paths import repo_root, tiny

COMPARED = {
    "one prompt",
    "one prompt, 1 cached",
    "one prompt, 4 cached",
    "padded prompts",
    "padded, 1 cached",
    "padded, 4 cached",
}
FOUR = {"one prompt, 4 cached", "padded, 4 cached"}
STEPS = FOUR | {"one prompt, 1 cached", "padded, 1 cached"}
SEEN = {  # model -> every tool that sees it
    0: {"greedy text", "median of logits", "strict gate"} | FOUR,
    1: {"greedy text", "median of logits", "strict gate", "sets of experts"} | COMPARED,
    2: {"greedy text", "median of logits", "strict gate"} | STEPS,
    3: {"greedy text", "strict gate", "padded, 1 cached", "padded, 4 cached"},
    4: {"strict gate", "sets of experts"} | COMPARED,
    5: {"host reads"},
    6: set(),
    7: {"greedy text", "median of logits", "strict gate", "sets of experts"} | COMPARED,
    8: {"median of logits", "strict gate"},
    9: {"greedy text", "strict gate"} | {t for t in COMPARED if t.startswith("padded")},
}


@pytest.fixture(scope="module")
def right():
    return faults.right_model()


@pytest.fixture(scope="module")
def batch(right):
    return faults.batch(right)


@pytest.mark.parametrize("k", CASES)
def test_what_sees_nothing_and_what_finds_it(k):
    assert {tool for tool, sees in faults.seen(k).items() if sees} == SEEN[k]


def first(right, k, batch, **how):
    ids, mask = batch
    return compare_models(right, faults.model(k, right), ids, mask, **how).first_divergence


def test_where_the_tools_point(right, batch):
    assert first(right, 0, batch) is None and first(right, 0, batch, cached=1) is None
    assert first(right, 0, batch, cached=4).stage == "model.layers.0"
    assert first(right, 1, batch).stage == "model.layers.2"
    inside = first(right, 1, batch, within="model.layers.2").stage
    assert inside == "model.layers.2.mlp.shared_experts.merge_up_gate_proj"
    assert first(right, 2, batch) is None
    assert first(right, 2, batch, cached=1).stage == "model.layers.1"
    inside = first(right, 2, batch, cached=1, within="model.layers.1").stage
    assert inside == "model.layers.1.self_attn.o_proj"
    assert first(right, 3, batch) is None
    assert first(right, 3, batch, cached=1).stage == "model.layers.0"
    assert first(right, 4, batch).stage == "model.layers.3.mlp.gate"
    assert "other experts for" in first(right, 4, batch).detail


def test_the_prompt_of_the_wrong_scale_is_bit_equal(right, batch):
    ids, mask = batch
    assert torch.equal(right(ids, mask), faults.model(2, right)(ids, mask))


@pytest.mark.parametrize("k", CASES)
def test_shapes_and_names_give_nothing_away(right, k):
    ill = faults.model(k, right)
    shapes = {n: (p.shape, p.dtype) for n, p in right.named_parameters()}
    assert {n: (p.shape, p.dtype) for n, p in ill.named_parameters()} == shapes
    for name, module in ill.named_modules():
        twin = right.get_submodule(name)
        for key, value in vars(module).items():
            if callable(value):
                assert hasattr(twin, key)
                assert value.__name__ in {key, "forward_step", "visible", "write_at_slot"} | {
                    getattr(getattr(twin, key), "__name__", "")
                }


def texts(model, prompts=PROMPTS):
    return [g.text for g in generate(model, load_tokenizer(tiny()), prompts, TOKENS)]


def parts_at(right, ill):
    """For each prompt, the first other token, counted from 1; 0 if none."""
    tokenizer = load_tokenizer(tiny())
    pairs = zip(
        *(generate(m, tokenizer, PROMPTS, TOKENS) for m in (right, ill)),
        strict=True,
    )
    return [
        next(
            (
                i
                for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False), 1)
                if x != y
            ),
            0,
        )
        for a, b in pairs
    ]


def test_symptoms_are_what_the_models_write(right):
    ill = {k: faults.model(k, right) for k in CASES}
    assert "a pink rope she kept a pink rope she kept" in texts(ill[0])[1]
    assert min(n for n in parts_at(right, ill[0]) if n) == 3
    wrong = texts(ill[1])
    assert "silver box" in texts(right)[2] and "white box" in wrong[2]
    assert len(wrong[0]) > len(texts(right)[0]) and min(filter(None, parts_at(right, ill[1]))) == 9
    assert "silver flag" in texts(right)[1] and "silver ring" in texts(ill[2])[1]
    assert parts_at(right, ill[2]) == [0, 12, 0]
    assert texts(ill[3])[0].startswith(" 12 lives in a house by the lake")
    assert parts_at(right, ill[3]) == [2, 0, 0] and texts(ill[3], PROMPTS[:1]) == texts(right)[:1]
    for same in (4, 5, DECOY, 8):
        assert texts(ill[same]) == texts(right)
    assert texts(ill[7])[0] == " 13."
    assert texts(ill[9], PROMPTS[:1]) == texts(right)[:1] and texts(ill[9])[1] != texts(right)[1]


def test_the_decoys_position_is_the_padding_of_the_shortest_prompt():
    lengths = [len(row) for row in encode(load_tokenizer(tiny()), PROMPTS)]
    assert f"position {max(lengths) - min(lengths)} and not 0" in symptom(DECOY).text


def test_the_host_reads_twice_a_step_and_the_graph_breaks_there(right, batch):
    ids, mask = batch
    ill = faults.model(5, right)
    assert reads(right) == 0 and reads(ill) == 2
    for model, line in ((right, ""), (ill, "in visible: if bool(pad.any()):")):
        cache = model.new_cache(3, 64)
        model(ids, mask, cache)
        assert first_break(model, lambda m=model, c=cache: m(ids[:, :1], cache=c)) == line


@pytest.mark.parametrize("k", CASES)
def test_only_the_truth_is_accepted(k):
    case = CASES[k]
    truth = {"layer": case.layer, "part": case.part, "why": case.why}
    assert case.layer in LAYERS and case.part in PARTS and case.why in WHYS
    said = accuse(k, **truth)
    assert said.ok is True and said.text == case.confirmed[-1]
    for name, words in (("layer", LAYERS), ("part", PARTS), ("why", WHYS)):
        for word in words:
            if word != truth[name]:
                wrong = accuse(k, **(truth | {name: word}))
                assert wrong.ok is False
                if (k, word) != (DECOY, "padding counted"):
                    assert case.tools[name] in wrong.text  # the next tool to try
        left_out = accuse(k, **(truth | {name: None}))
        if k != DECOY:
            assert left_out.ok is None and f"Not accused yet: {name}." in left_out.text
        assert case.tools[name] not in left_out.text  # choosing is part of the answer
    assert accuse(k).ok is None and accuse(k).text == "Not accused yet: layer, part, why."


def test_the_decoy_answers_the_obvious_accusation():
    said = accuse(DECOY, layer="every", part="positions", why="padding counted")
    assert said.ok is False and said.text.startswith("Suspicious, and harmless: why?")


def test_words_outside_the_lists_and_unknown_models_are_refused():
    for wrong in ({"layer": 4}, {"part": "router"}, {"why": "bad luck"}):
        with pytest.raises(PortError, match="is no word of the list; it can be"):
            accuse(1, **wrong)
    for call in (faults.model, symptom, lambda k: accuse(k), lambda k: prove(k, None)):
        with pytest.raises(PortError, match="there is no faulty model 10"):
            call(10)


# ---- the notebook ---------------------------------------------------------------------------------

NOTEBOOK = json.loads((repo_root() / "notebooks" / "11_faults.ipynb").read_text(encoding="utf-8"))
SOURCES = {c["id"]: "".join(c["source"]) for c in NOTEBOOK["cells"]}


@pytest.mark.parametrize("k", range(1, 7))
def test_a_folded_solution_finds_accuses_and_repairs(right, batch, k):
    (code,) = re.findall(r"```python\n(.*?)```", SOURCES[f"faults-solution-{k}"], re.DOTALL)
    *lines, accusation = code.strip().splitlines()
    assert accusation.startswith(f"faults.accuse({k}, ")
    space = {"torch": torch, "faults": faults, "right": right, "ids": batch[0], "mask": batch[1]}
    space |= {"ill": faults.model(k, right), "compare_models": compare_models}
    shown: list[object] = []
    space["display"] = lambda *things: shown.extend(things)
    space |= {"strict_gate": strict_gate, "host_syncs": host_syncs, "graphs": compiled}
    exec("\n".join(lines), space)
    assert eval(accusation, space).ok is True
    assert prove(k, space["repair"], right).ok is True
    if k == 5:
        assert shown == [{"__int__": 1, "__bool__": 1}, "in visible: if bool(pad.any()):"]
    else:
        assert shown[0].ok is (k == DECOY)


def test_the_notebook_names_nothing_before_the_learner_does():
    for k in range(1, 7):
        cell = SOURCES[f"faults-exercise-{k}"]
        assert "\n...  " in cell and "repair = ..." in cell
        assert f"faults.accuse({k}, layer=None, part=None, why=None)" in cell


# ---- repairs --------------------------------------------------------------------------------------


def step_again(model):
    model.forward_step = types.MethodType(DeepseekV3.forward_step, model)
    model.run_step = model.forward_step


def halves_back(model):
    weight = model.model.layers[2].mlp.shared_experts.merge_up_gate_proj.weight
    up, gate = weight.data.chunk(2)
    weight.data = torch.cat((gate, up))


def scale_back(model):
    attention = model.model.layers[1].self_attn
    attention.absorbed = types.MethodType(LowRankAttention.absorbed, attention)


def positions_back(model):
    model._step_inputs = types.MethodType(DeepseekV3._step_inputs, model)


def bias_back(model):
    gate = model.model.layers[3].mlp.gate
    gate.choose = types.MethodType(Gate.choose, gate)


def stay_on_the_device(model):
    def visible(slot, new, keys, pad):
        query = slot.view(-1, 1, 1) + torch.arange(new).view(1, -1, 1)
        key = torch.arange(keys)
        return (key <= query) & (key >= pad.view(-1, 1, 1))

    model.visible = visible


def experts_back(model):
    weight = model.model.layers[1].mlp.experts.group_w2.data
    weight[[3, 9]] = weight[[9, 3]]


def cloned(model):
    reused = model.run_step
    model.run_step = lambda *args: reused(*args).clone()


def head_back(model):
    del model.lm_head.forward


REPAIRS = {
    0: step_again,
    1: halves_back,
    2: scale_back,
    3: positions_back,
    4: bias_back,
    5: stay_on_the_device,
    7: experts_back,
    8: cloned,
    9: head_back,
}


@pytest.mark.parametrize("k", CASES)
def test_a_repair_is_proved_by_the_strict_gate(right, k):
    nothing = prove(k, lambda model: None, right)
    if k == DECOY:
        assert nothing.ok is True and nothing.text.startswith("There was nothing to repair")
        return
    assert nothing.ok is False
    said = prove(k, REPAIRS[k], right)
    assert said.ok is True and "right at 11 stages, 3 of them" in said.text, str(said)
    assert not prove(k, positions_back if k == 2 else scale_back, right)
    assert strict_gate(right, faults.model(k, right)).ok is (
        k == 5
    )  # the next model k is ill again


def test_nothing_that_a_repair_does_stops_the_notebook(right):
    assert prove(1, ..., right).ok is None and prove(1, None, right).ok is None
    said = prove(1, lambda model: model.nothing.here, right)
    assert said.ok is False and "raised AttributeError" in said.text
    assert "values more in each cached step" in prove(5, lambda model: None, right).text
    cheat = prove(1, lambda model: right, right)  # another model is no repair of this one
    assert cheat.ok is False
    assert 'role="status"' in cheat._repr_html_() and "✘ does not hold" in cheat._repr_html_()


def test_spoiling_one_twin_leaves_its_siblings(right):
    before = {n: p.data_ptr() for n, p in right.named_parameters()}
    for k in CASES:
        faults.model(k, right)
    assert {n: p.data_ptr() for n, p in right.named_parameters()} == before
    assert strict_gate(right, faults.model(DECOY, right)) and not vars(right).get("visible")

"""The judges of a learner's function, in order; the first that objects makes the verdict.

Filled; parameters; toy; called by the model, as often as it must be; strict gate; greedy tokens;
counts. The model runs a twin that has the function attached, and the function's calls are counted:
without calls there is no praise, whatever the model computed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from ..check.gate import CACHED, GateVerdict, strict_gate
from ..config import DeepseekV3Config
from ..engine.generate import generate
from ..engine.loading import with_plan
from ..engine.tokenizer import load_tokenizer
from ..errors import PortError
from ..messages import N_, sentences, told, tr, trn
from ..model.decoder import DeepseekV3
from ..paths import tiny
from .slots import Function, Slot
from .timer import Late, limit
from .verdicts import STATES, Verdict
from .written import Place, Written, is_empty, load_function, other_parameters, place_of

TOY_SECONDS, TOKENS = 2.0, 24
PROMPTS = (  # three lengths
    "7 plus 5 is",
    "Once upon a time Mira lived near the river.",
    "Wei had 4 apples. Lena gave Wei 3 more, so now he had",
)
UNTIMED = N_("Nothing was timed; the finished code runs below.")
STOPS = (Exception, SystemExit, Late)  # what the learner's code may do to us


@dataclass(frozen=True)
class Trial:
    """A verdict, and the learner's twin where it can run at all."""

    verdict: Verdict
    twin: DeepseekV3 | None = None


def finished_twin(slot: Slot, base: DeepseekV3) -> DeepseekV3:
    """The weights of `base` in its plan, with the forms that the slot needs."""
    return with_plan(base, base.plan.replace(graph="eager", **slot.needs))


def twin_of(slot: Slot, base: DeepseekV3, function: Function) -> DeepseekV3:
    """A model with the weights of `base` that calls `function` in the slot's place."""
    if slot.make is not None:
        return slot.make(base, function)
    twin = finished_twin(slot, base)
    slot.attach(twin, function)
    return twin


def try_out(
    slot: Slot, mine: Written, base: DeepseekV3, seconds: float = 30.0, toy: bool = True
) -> Trial:
    """All judges. toy=False leaves out the small inputs: what the model alone would find."""
    if mine.function is None or mine.function is ... or is_empty(mine.text, slot.name):
        text = tr("The finished code runs. Write {name}, run its cell, then this one.")
        return Trial(Verdict(slot, "empty", text.format(name=slot.name)))
    if other := other_parameters(mine.function, slot):
        return Trial(named(slot, other, "wrong"))
    if toy:
        objection = _toy(slot, mine)
        if objection is not None:
            return _shown(objection, mine, base, seconds)
    return _Model(slot, mine, base).judge(seconds)


def named(slot: Slot, mistake: str, state: str, *more: str, place: Place | None = None) -> Verdict:
    """A verdict with the hint of a wrong answer, or with a sentence; `more` sentences behind it."""
    wrong = slot.wrong.get(mistake)
    text = told(wrong.hint) if wrong else mistake
    tail = "" if STATES[state].runs else told(UNTIMED)
    name = mistake if wrong else ""
    return Verdict(slot, state, sentences(text, *more, tail), name, place)


def _toy(slot: Slot, mine: Written) -> Verdict | None:
    # what takes long the first time in a process is not the learner's
    slot.toy(load_function(slot.solution, slot.name), slot)
    try:
        with limit(TOY_SECONDS):
            said = slot.toy(mine.function, slot)
    except STOPS as error:  # the learner's code may raise anything
        return _stopped(slot, error, mine)
    if said is None or said in slot.wrong and slot.wrong[said].seen_by == "count":
        return None
    return named(slot, said, "wrong")


def _stopped(slot: Slot, error: BaseException, mine: Written) -> Verdict:
    """It raised, or its time was over. A wrong answer that raises the same names the mistake."""
    place = place_of(error, mine.file, mine.text)
    if isinstance(error, Late):
        return named(slot, tr("The function was stopped"), "late", place=place)
    for name, wrong in slot.wrong.items():
        try:
            with limit(TOY_SECONDS):
                slot.toy(load_function(wrong.source, slot.name), slot)
        except Late:
            continue
        except Exception as known:
            if place_of(known, "").error == place.error:
                return named(slot, name, "raised", place=place)
    text = "" if place.line else tr("Your function came back; what it gave could not be used")
    return named(slot, text, "raised", place=place)


def _shown(verdict: Verdict, mine: Written, base: DeepseekV3, seconds: float) -> Trial:
    """A function that failed the toy is run in the model all the same, if it can: where it parts
    there, and the twin for its text."""
    slot = verdict.slot
    if verdict.state != "wrong":
        return Trial(verdict)
    try:
        with limit(seconds):
            finished, twin = finished_twin(slot, base), twin_of(slot, base, mine.function)
            where = slot.use(finished, twin) if slot.use else _parts(strict_gate(finished, twin))
    except STOPS:
        return Trial(verdict)
    hint = told(slot.wrong[verdict.mistake].hint) if verdict.mistake else verdict.text
    text = sentences(hint.removesuffix(told(UNTIMED)).strip(), where, told(UNTIMED))
    return Trial(replace(verdict, text=text), twin)


def _parts(gate: GateVerdict) -> str:
    if gate.first is None:
        alone = tr("The trained model alone does not show it: {looked_at} agree")
        return alone.format(looked_at=gate.looked_at)
    moment, row = gate.first
    first = tr("In the model it parts first at {moment}, stage {stage}")
    return first.format(moment=told(moment), stage=row.stage)


class _Model:
    """Judges four to seven: what the model does with the function."""

    def __init__(self, slot: Slot, mine: Written, base: DeepseekV3) -> None:
        self.slot, self.mine, self.base = slot, mine, base
        self.calls = 0

    def judge(self, seconds: float) -> Trial:
        slot = self.slot
        try:
            with limit(seconds) as check:
                finished = finished_twin(slot, self.base)
                judged = twin_of(slot, self.base, self.counted(check))
                said = slot.use(finished, judged) if slot.use else ""
                gate = None if slot.use else strict_gate(finished, judged)
                due = self.calls
                objection = self.objection(finished, judged, gate) or said
                twin = twin_of(slot, self.base, self.mine.function)
                if objection:
                    return Trial(named(slot, objection, "wrong"), twin)
                dear = self.dear(twin)
        except STOPS as error:
            return Trial(_stopped(slot, error, self.mine))
        looked = self.looked(finished, gate, due)
        if dear is not None:
            mistake, over = dear
            return Trial(named(slot, mistake, "dear", over, looked), twin)
        return Trial(Verdict(slot, "right", sentences(looked)), twin)

    def looked(self, finished: DeepseekV3, gate: GateVerdict | None, calls: int) -> str:
        """What a right function was found right by."""
        slot = self.slot
        moment = told(slot.moment) or tr("in a prompt and {n} cached steps").format(n=CACHED)
        said = trn(
            "{n} call of your function {moment}", "{n} calls of your function {moment}", calls
        ).format(n=calls, moment=moment)
        if gate is None:
            return said + told(slot.looked)
        same = tr("{calls}; the same as the finished code at {looked_at}")
        found = same.format(calls=said, looked_at=gate.looked_at) + told(slot.looked)
        if tokens_of(finished) is not None:
            greedy = tr(", and the same {n} greedy tokens of {prompts} prompts")
            found += greedy.format(n=TOKENS, prompts=len(PROMPTS))
        return found

    def counted(self, check: Any) -> Function:
        @functools.wraps(self.mine.function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            check()
            return self.mine.function(*args, **kwargs)

        return call

    def objection(self, finished: DeepseekV3, judged: DeepseekV3, gate: GateVerdict | None) -> str:
        """What is wrong, as a name or a sentence; empty if nothing is."""
        if not self.calls:
            return tr("the model never called your function, so nothing was judged")
        want = self.slot.calls and self.slot.calls(finished, CACHED)
        if want and self.calls != want:
            said = tr("the model called your function {n} times where {due} calls are due")
            return said.format(n=self.calls, due=want)
        if self.slot.extra is not None:
            found = self.slot.extra(finished, self.mine.placed, self.mine.file)
            if found:
                return found
        if gate is None:
            return ""
        if not gate:
            return _parts(gate)
        right, yours = tokens_of(finished), tokens_of(judged)
        for prompt, a, b in zip(PROMPTS, right or (), yours or (), strict=True):
            if a != b:
                at = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
                other = tr("all stages agree, and token {at} after {prompt!r} is another one")
                return other.format(at=at, prompt=prompt)
        return ""

    def dear(self, twin: DeepseekV3) -> tuple[str, str] | None:
        """(name of the wrong answer or a sentence, what was counted) where a count is too high."""
        if self.slot.count is None:
            return None
        mine, right = dict(self.slot.count(twin)), counts_of(self.slot, self.base)
        over = {k: n for k, n in mine.items() if n > right.get(k, 0)}
        if not over:
            return None
        row = tr("{what}: {n}, the finished code {due}")
        counted = "; ".join(
            row.format(what=told(k), n=n, due=right.get(k, 0)) for k, n in over.items()
        )
        said = tr("Counted: {counts}").format(counts=counted)
        for name, wrong in self.slot.wrong.items():
            if wrong.seen_by == "count" and counts_of(self.slot, self.base, wrong.source) == mine:
                return name, said
        return tr("The numbers are right"), said


def counts_of(slot: Slot, base: DeepseekV3, source: str = "") -> dict[str, int]:
    """What is counted of the finished code, or of an answer of the catalogue."""
    assert slot.count is not None
    if not source:
        return dict(slot.count(finished_twin(slot, base)))
    return dict(slot.count(twin_of(slot, base, load_function(source, slot.name))))


@functools.cache
def _tiny() -> tuple[Any, int]:
    return load_tokenizer(tiny()), DeepseekV3Config.from_pretrained(tiny()).vocab_size


def tokens_of(model: DeepseekV3) -> list[list[int]] | None:
    """Greedy tokens after PROMPTS; None where the model is not of the embedded one's vocabulary."""
    try:
        tokenizer, vocabulary = _tiny()
    except PortError:
        return None
    if model.config.vocab_size != vocabulary:
        return None
    return [g.token_ids for g in generate(model, tokenizer, PROMPTS, TOKENS)]

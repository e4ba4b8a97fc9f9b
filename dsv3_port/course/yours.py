"""The learner's function in the model: `@slot(...)` over its stub, then `fit(function, model)`.

A notebook reaches its end whatever was written. After `built = fit(...)` the later cells use
`built.model`, which is the finished code until the learner's is right; `built.text(...)` and
`built.on(...)` put the learner's text and bar beside the finished ones where there are any.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from ..bench.records import YOURS
from ..errors import PortError
from ..messages import N_, told, tr
from ..model.decoder import DeepseekV3
from . import kept, session
from . import slots as _package
from .diff import beside
from .show import Shown
from .slots import Function, Slot
from .texts import text_table
from .trial import Trial, finished_twin, try_out, twin_of
from .verdicts import STATES, Verdict
from .written import Sent, Written, load_function, written


@functools.cache
def slots() -> dict[str, Slot]:
    """Every slot by its id, in order."""
    found: dict[str, Slot] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(_package.__path__)):
        for one in importlib.import_module(f"{_package.__name__}.{module}").SLOTS:
            if one.id in found:
                raise AssertionError(f"two slots are called {one.id}")
            found[one.id] = one
    return dict(sorted(found.items()))


def slot_of(slot_id: str) -> Slot:
    if slot_id not in slots():
        raise PortError(f"unknown slot {slot_id!r}; there are {', '.join(slots())}")
    return slots()[slot_id]


@dataclass(frozen=True)
class Yours:
    """What the learner wrote for a slot; can be called like the function itself."""

    slot: Slot
    written: Written
    noted: bool = True  # a verdict goes into progress.json
    filled: str = ""  # the answer of the course that it is, where no learner wrote it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.written.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"your {self.slot.name}, for the slot {self.slot.id}"


def slot(slot_id: str, filled: str = "") -> Callable[[Function], Yours]:
    """Decorator of a stub: @slot("02.absorbed"). PortError for an unknown slot. `filled`: what
    `tutorial --yours` wrote there, so that nobody takes it for a learner's."""
    place = slot_of(slot_id)

    def mark(function: Function) -> Yours:
        return Yours(place, written(function), filled=filled)

    return mark


def read(slot_id: str, text: str, file: str) -> Yours:
    """A slot's function from the text of a file, with or without the decorator. What the text raises
    is the learner's: it comes out as the function's error."""
    place = slot_of(slot_id)
    try:
        found = load_function(text, place.name, file)
    except (Exception, SystemExit) as error:
        return Yours(place, Written(_raising(place, error), text, file))
    if isinstance(found, Yours):  # the file imported the decorator
        found = found.written.function
    return Yours(place, Written(found, text, file))


def catalogue(slot_id: str, name: str) -> Yours:
    """A wrong or accepted answer of the slot's, by its name, to look at; no try of the learner's."""
    place = slot_of(slot_id)
    texts = {n: w.source for n, w in place.wrong.items()} | dict(place.accepted)
    if name not in texts:
        raise PortError(f"{slot_id} has no answer {name!r}; there are {', '.join(texts)}")
    return replace(read(slot_id, texts[name], f"<{slot_id}: {name}>"), noted=False, filled=name)


def _raising(place: Slot, error: BaseException) -> Function:
    """A function of the slot's parameters that raises `error`."""
    names: dict[str, Any] = {"error": error}
    exec(f"def {place.name}({', '.join(place.parameters)}):\n    raise error", names)
    made: Function = names[place.name]
    return made


@dataclass(frozen=True)
class Fitted:
    """A judged function. Shown by itself it is the verdict.

    state: empty, raised, late, wrong, dear or right. model: the learner's twin if right or dear,
    else the finished one; what all later cells use. tried: the learner's twin whatever its state,
    None where it cannot run. finished: the twin with the finished code.
    """

    slot: Slot
    verdict: Verdict
    model: DeepseekV3
    tried: DeepseekV3 | None
    finished: DeepseekV3
    written: Written
    filled: str = ""

    def __bool__(self) -> bool:
        """Whether the later cells run the learner's code."""
        return bool(self.verdict)

    @property
    def state(self) -> str:
        return self.verdict.state

    @property
    def code(self) -> str:
        """Whose code `model` runs: "yours" or "finished"."""
        return YOURS if self.verdict else "finished"

    @property
    def timed(self) -> dict[str, DeepseekV3]:
        """{"yours": model} where it may be timed, else {}."""
        return {YOURS: self.model} if self.verdict else {}

    @property
    def sent(self) -> Sent | None:
        """The function for other processes, or None where it is not right."""
        mine = self.written
        return Sent(mine.placed, self.slot.name, mine.file) if self.verdict else None

    def on(self, model: DeepseekV3) -> dict[str, DeepseekV3]:
        """{"yours": a twin of another model that runs the bare function}, or {} where the function
        is not right. A wrong or empty function is never timed."""
        return {YOURS: twin_of(self.slot, model, self.written.function)} if self.verdict else {}

    def text(
        self,
        tokenizer: Any,
        prompts: Sequence[str],
        max_new_tokens: int = 24,
        name: str = "",
    ) -> Shown:
        """Greedy text: of `model`; and of a wrong function that runs beside it, in a column of that
        name (default: your code, or the course's answer's) with the first other token marked."""
        name = told(name or self.filled or N_("your code"))
        wrong = self.tried if self.state == "wrong" else None
        code = name if self else tr("finished code")
        return text_table(self.model, wrong, code, tokenizer, prompts, max_new_tokens, name)

    def _repr_html_(self) -> str:
        return self.verdict._repr_html_()

    def __repr__(self) -> str:
        return str(self.verdict)


def fit(yours: Yours, base: DeepseekV3, seconds: float = 30.0) -> Fitted:
    """Judge a function in a twin of `base`, whose weights it shares. Raises nothing for whatever the
    function does; PortError where `base` has no place for it."""
    if not isinstance(yours, Yours):
        raise PortError(
            f"fit: a {type(yours).__name__} was given; write @slot(...) above your function and give "
            "the function"
        )
    finished = finished_twin(yours.slot, base)
    if yours.slot.finish is not None:
        yours.slot.finish(finished)
    trial: Trial = try_out(yours.slot, yours.written, base, seconds)
    verdict = trial.verdict
    if STATES[verdict.state].runs:
        verdict = replace(verdict, below=beside(yours.slot.finished, yours.written.text))
    model = trial.twin if verdict and trial.twin is not None else finished
    if yours.noted and (here := session.current()) is not None:
        state = cast(kept.State, verdict.state)
        kept.note(here.results.parent, yours.slot, state, yours.written.text)
    return Fitted(yours.slot, verdict, model, trial.twin, finished, yours.written, yours.filled)


def your_model(base: DeepseekV3, steps_only: bool = False) -> kept.Assembled:
    """Every function of this learner's that is right, in one twin of `base`; the rest is the finished
    code, by name. steps_only: for a model whose steps are timed, without the functions that run while
    weights are loaded or between ranks. PortError outside a notebook (`start` says where the functions
    are kept)."""
    if (here := session.current()) is None:
        raise PortError("your_model: call start(...) first, it says where your functions are kept")
    return kept.assemble(here.results.parent, base, slots(), steps_only)


_asked: dict[str, int] = {}


def _note_hint(place: Slot, asked: int) -> None:
    if (here := session.current()) is not None:
        kept.note_hint(here.results.parent, place, asked)


def hint(slot_id: str) -> Shown:
    """The next of a slot's three hints: the direction, the shapes, one line."""
    place = slot_of(slot_id)
    at = min(_asked.get(slot_id, 0), 2)
    _asked[slot_id] = at + 1
    _note_hint(place, at + 1)
    again = tr("call it again for hint {n}").format(n=at + 2)
    last = tr("the next step is {call}").format(call=f'solution("{slot_id}")')
    head = tr("Hint {n} of 3.").format(n=at + 1)
    return Shown("", f"**{head}** {told(place.hints[at])}\n\n({again if at < 2 else last})")


def solution(slot_id: str) -> Shown:
    """A slot's solution as code to paste."""
    _note_hint(slot_of(slot_id), 4)
    return Shown("", f"```python\n{slot_of(slot_id).solution.strip()}\n```")

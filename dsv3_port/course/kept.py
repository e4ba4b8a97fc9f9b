"""What a learner has built so far: `progress.json` and their right functions, beside the results of the
notebooks.

progress.json: {"format": 1, "slots": {slot id: {"state", "tries", "built", "last", "hints"}}}; `state`
is the last verdict, `built` whether the function was ever right, `tries` counts verdicts of something
written, `hints` how far the learner asked: three hints, then the solution. A function that was right
stays in `yours/SLOT.py`, whatever is tried later. Nothing is sent anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..check.gate import strict_gate
from ..engine.loading import with_plan
from ..errors import PortError
from ..files import read_json, write_atomic, write_json
from ..messages import N_, told, tr
from ..model.decoder import DeepseekV3
from .slots import Function, Slot
from .verdicts import STATES
from .written import load_function

FILE, FOLDER = "progress.json", "yours"
State = Literal["empty", "raised", "late", "wrong", "dear", "right"]


@dataclass(frozen=True)
class Tried:
    """One slot's row of progress.json."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    state: State
    tries: Annotated[int, Field(ge=0, le=10**6)]
    built: bool
    last: str  # UTC, ISO 8601, of the last verdict
    hints: Annotated[int, Field(ge=0, le=4)] = 0  # 4: the solution was asked for


_SLOTS = TypeAdapter(dict[str, Tried])


def read_progress(file: str | Path) -> dict[str, Tried]:
    """The slots of one progress.json, {} where there is none. PortError for what is no such file."""
    path = Path(file)
    if not path.is_file():
        return {}
    whole = read_json(path)
    if not isinstance(whole, dict) or whole.get("format") != 1:
        raise PortError(f"{path}: not a progress file of format 1; move it away to start anew")
    try:
        return _SLOTS.validate_python(whole.get("slots"))
    except ValidationError as error:
        first = error.errors()[0]
        where = " → ".join(map(str, first["loc"]))
        raise PortError(f"{path}: {where}: {first['msg']}; move it away to start anew") from error


def note(folder: str | Path, slot: Slot, state: State, text: str) -> dict[str, Tried]:
    """Write a verdict down; a right function's text is kept. Returns all slots' rows."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=60):
        rows = read_progress(path)
        old = rows.get(slot.id, Tried("empty", 0, False, ""))
        right = state in ("right", "dear")
        rows[slot.id] = Tried(
            state,
            old.tries + (state != "empty"),
            old.built or right,
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
            old.hints,
        )
        if right and text:
            (path.parent / FOLDER).mkdir(exist_ok=True)
            write_atomic(path.parent / FOLDER / f"{slot.id}.py", text.rstrip() + "\n")
        _write(path, rows)
    return rows


def note_hint(folder: str | Path, slot: Slot, asked: int) -> None:
    """Write down how far a learner asked for help with a slot; less than before changes nothing."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=60):
        rows = read_progress(path)
        row = rows.get(slot.id, Tried("empty", 0, False, ""))
        rows[slot.id] = replace(row, hints=max(row.hints, asked))
        _write(path, rows)


def _write(path: Path, rows: Mapping[str, Tried]) -> None:
    write_json(path, {"format": 1, "slots": {k: vars(row) for k, row in rows.items()}})


@dataclass(frozen=True)
class Assembled:
    """One model with a learner's functions in it. `yours`: slots whose function runs in `model`;
    `finished`: slots whose finished code does, with the reason; `rows`: (slot, whose code runs, calls
    of the learner's function, verdict in its notebook)."""

    model: DeepseekV3
    yours: tuple[str, ...]
    finished: Mapping[str, str]
    rows: tuple[tuple[str, str, str, str], ...]

    def __str__(self) -> str:
        total = len(self.yours) + len(self.finished)
        return tr("{n} of {total} functions are yours").format(n=len(self.yours), total=total)


def assemble(
    folder: str | Path, base: DeepseekV3, slots: Mapping[str, Slot], steps_only: bool = False
) -> Assembled:
    """Part I's functions kept in `folder` in one twin of `base`. Together they are judged once more by the
    strict gate, and their calls are counted: PortError if the whole differs from the finished model,
    or if one of them is never called. What cuts, packs or gathers runs for two ranks in this one
    process, as its judge has it. steps_only: without those, for a model whose steps are timed."""
    slots = {name: slot for name, slot in slots.items() if slot.part == 1}
    progress = read_progress(Path(folder) / FILE)
    used: dict[str, Function] = {}
    finished: dict[str, str] = {}
    for name, slot in slots.items():
        file = Path(folder) / FOLDER / f"{name}.py"
        if not (name in progress and progress[name].built and file.is_file()):
            finished[name] = N_("not written yet")
        elif steps_only and slot.make is not None:
            finished[name] = N_("no part of one process's steps")
        else:
            text = file.read_text(encoding="utf-8")
            used[name] = load_function(text, slot.name, f"<{FOLDER}/{file.name}>")
    needs = {k: v for name in used for k, v in slots[name].needs.items()}
    start = with_plan(base, base.plan.replace(graph="eager", **needs))
    calls = _judged_together(start, used, slots) if used else {}
    mine, theirs = tr("yours"), tr("finished: {why}")
    rows = tuple(
        (
            name,
            mine if name in used else theirs.format(why=told(finished[name])),
            f"{calls[name]} {told(slot.moment)}".strip() if name in used else "–",
            _verdict(progress.get(name)),
        )
        for name, slot in slots.items()
    )
    return Assembled(_together(start, used, slots), tuple(used), finished, rows)


def _together(
    start: DeepseekV3, used: Mapping[str, Function], slots: Mapping[str, Slot]
) -> DeepseekV3:
    """Other weights and ranks first: making a twin drops what is attached."""
    twin = with_plan(start, start.plan)
    for name in (n for n in used if slots[n].make is not None):
        make = slots[name].make
        assert make is not None
        twin = make(twin, used[name])
    for name in (n for n in used if slots[n].make is None):
        slots[name].attach(twin, used[name])
    return twin


def _judged_together(
    start: DeepseekV3, used: Mapping[str, Function], slots: Mapping[str, Slot]
) -> dict[str, int]:
    """Slot -> calls of its function; PortError where the whole is not the finished model."""
    calls = dict.fromkeys(used, 0)

    def counted(name: str) -> Function:
        @functools.wraps(used[name])
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return used[name](*args, **kwargs)

        return call

    try:
        verdict = strict_gate(start, _together(start, {n: counted(n) for n in used}, slots))
    except Exception as error:  # the learner's code may raise anything
        raise PortError(
            f"your functions ({', '.join(used)}) together: {type(error).__name__}: {error}; judge each "
            "of them again in its notebook"
        ) from error
    if not verdict:
        moment, row = verdict.first or ("", None)
        raise PortError(
            f"{', '.join(used)}: each was right by itself, together they part at {moment}, stage "
            f"{row.stage if row else '?'}; judge each of them again in its notebook"
        )
    if idle := [name for name, n in calls.items() if not n]:
        raise PortError(f"the model made of your functions never calls {', '.join(idle)}")
    return calls


def _verdict(row: Tried | None) -> str:
    """The last one; a function that was right stays so, whatever was tried later."""
    if row is None or not row.tries:
        return "–"
    state = STATES[row.state]
    if row.built and not state.runs:
        since = tr("right; tried since: {word}").format(word=told(state.word))
        return f"{STATES['right'].mark} {since}"
    return f"{state.mark} {told(state.word)}"

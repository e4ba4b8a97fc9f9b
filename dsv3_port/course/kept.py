"""What a learner has built so far: `progress.json` and their right functions, beside the results of the
notebooks.

progress.json: {"format": 1, "slots": {slot id: {"state", "tries", "built", "last", "hints"}}}; `state`
is the last verdict, `built` whether the function was ever right, `tries` counts verdicts of something
written, `hints` how far the learner asked: three hints, then the solution. A function that was right
stays in `yours/SLOT.py`, whatever is tried later. Nothing is sent anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..check.gate import strict_gate
from ..engine.loading import with_plan
from ..errors import PortError
from ..files import read_json, write_atomic, write_json
from ..model.decoder import DeepseekV3
from .slots import Slot
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
    """One model with all of a learner's functions in it. `yours`: slots whose function runs in
    `model`; `finished`: slots whose finished code does, with the reason."""

    model: DeepseekV3
    yours: tuple[str, ...]
    finished: Mapping[str, str]

    def __str__(self) -> str:
        total = len(self.yours) + len(self.finished)
        return f"{len(self.yours)} of {total} functions are yours"


def assemble(folder: str | Path, base: DeepseekV3, slots: Mapping[str, Slot]) -> Assembled:
    """The functions kept in `folder` in one twin of `base` (its weights are shared). Together they are
    judged once more by the strict gate: PortError if the whole differs from the finished model."""
    rows = read_progress(Path(folder) / FILE)
    used, finished = {}, {}
    for name, slot in slots.items():
        file = Path(folder) / FOLDER / f"{name}.py"
        if not (name in rows and rows[name].built and file.is_file()):
            finished[name] = "not written yet"
        elif slot.make is not None:
            finished[name] = "judged in a model of its own, which other weights or ranks need"
        else:
            used[name] = load_function(
                file.read_text(encoding="utf-8"), slot.name, f"<{FOLDER}/{file.name}>"
            )
    needs = {k: v for name in used for k, v in slots[name].needs.items()}
    plan = base.plan.replace(graph="eager", **needs)
    twin = with_plan(base, plan)
    for name, function in used.items():
        slots[name].attach(twin, function)
    if used and not (verdict := strict_gate(with_plan(base, plan), twin)):
        moment, row = verdict.first or ("", None)
        raise PortError(
            f"{', '.join(used)}: each was right by itself, together they part at {moment}, stage "
            f"{row.stage if row else '?'}; judge each of them again in its notebook"
        )
    return Assembled(twin, tuple(used), finished)

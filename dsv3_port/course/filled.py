"""Notebooks with their slots filled in: what `dsv3-port tutorial --yours` executes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode

from ..errors import PortError
from .slots import Slot
from .yours import slots

_SLOT = re.compile(r"@slot\(\"([\w.]+)\"[^)\n]*\)")
_STATE = re.compile(r'data-slot="([\w.]+)" data-state="(\w+)"')
KINDS = ("empty", "solution", "wrong")


@dataclass(frozen=True)
class Filling:
    """What goes into a slot; `name` says which answer of the course it is, "" for a person's own."""

    text: str
    name: str = ""


Answer = Callable[[Slot], Filling | None]  # None leaves the stub


def answers(word: str) -> Answer:
    """empty, solution, wrong (each slot's first wrong answer), or a folder of files 02.absorbed.py."""
    if word == "empty":
        return lambda slot: None
    if word == "solution":
        return lambda slot: Filling(slot.solution, "the solution")
    if word == "wrong":
        return _first_wrong
    folder = Path(word)
    if not folder.is_dir():
        raise PortError(f"--yours {word}: neither {', '.join(KINDS)} nor a folder")
    files = {f.stem: f for f in folder.glob("*.py") if f.stem in slots()}
    if not files:
        names = ", ".join(f"{name}.py" for name in slots())
        raise PortError(f"--yours {word}: holds no file of a slot; they are {names}")

    def read(slot: Slot) -> Filling | None:
        if slot.id not in files:
            return None
        try:
            return Filling(files[slot.id].read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PortError(f"{files[slot.id]}: cannot be read as text: {error}") from error

    return read


def _first_wrong(slot: Slot) -> Filling:
    name = next(iter(slot.wrong))
    return Filling(slot.wrong[name].source, name)


def fill(nb: NotebookNode, answer: Answer) -> None:
    """Put answers into the cells tagged `yours`, under the decorator that stands there."""
    for cell in nb.cells:
        found = _SLOT.search(cell.source) if "yours" in cell.metadata.get("tags", []) else None
        if found is None:
            continue
        filling = answer(slots()[found[1]])
        if filling is not None:
            said = f", filled={json.dumps(filling.name)}" if filling.name else ""
            mark = f'@slot("{found[1]}"{said})'
            at = re.search(r"^def ", text := _SLOT.sub("", filling.text), re.MULTILINE)
            start = at.start() if at else 0
            cell.source = f"{text[:start]}{mark}\n{text[start:]}".strip()


def states(nb: NotebookNode) -> dict[str, str]:
    """Slot -> state of the judge's cells of an executed notebook."""
    return {
        slot_id: state
        for cell in nb.cells
        if "judge" in cell.metadata.get("tags", [])
        for output in cell.get("outputs", [])
        for slot_id, state in _STATE.findall("".join(output.get("data", {}).get("text/html", "")))
    }

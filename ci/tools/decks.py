"""The written decks of notebooks/workshop/deck: one for every notebook of the core, short slides, and
cells and slots that exist. `ci/tools/check_notebooks.py` calls it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

_SLOT = re.compile(r"^\s+id=\"(\w+\.\w+)\",$", re.MULTILINE)
SLOTS = Path(__file__).resolve().parents[2] / "dsv3_port" / "course" / "slots"


def known_slots() -> list[str]:
    """Ids of all slots, from their modules' text: importing them imports torch."""
    texts = (file.read_text(encoding="utf-8") for file in sorted(SLOTS.glob("*.py")))
    return [found for text in texts for found in _SLOT.findall(text)]


def check_decks(folder: Path, core: Sequence[str]) -> list[str]:
    """Findings about the decks of the notebooks `core` in `folder`, as lines."""
    from dsv3_port.course.deck import deck_of, problems, read_deck
    from dsv3_port.course.translations import LANGUAGES, versions

    lines, known = [], set()
    for name in core:
        deck, notebook = deck_of(folder, name), folder / f"{name}.ipynb"
        known.add(deck)
        if not deck.is_file():
            lines.append(f"{name}: no deck; write {deck.relative_to(folder)}")
            continue
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        code = {c["id"]: "".join(c["source"]) for c in cells if c["cell_type"] == "code"}
        slots = [slot for slot in known_slots() if slot.partition(".")[0] == deck.stem]
        for file in versions(deck).values():  # a twin's slides are no longer than the original's
            slides, named = (
                read_deck(file.read_text(encoding="utf-8")),
                file.relative_to(deck.parent),
            )
            lines += [f"deck/{named.as_posix()}: {text}" for text in problems(slides, code, slots)]
    lines += [
        f"deck/{file.name}: belongs to no notebook of the core"
        for file in sorted((folder / "workshop" / "deck").glob("*"))
        if file not in known and file.name not in LANGUAGES
    ]
    return lines

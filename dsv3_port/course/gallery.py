"""Usual wrong answers of a slot in the embedded model: their text beside the right one's."""

from __future__ import annotations

from functools import cache

from ..engine.generate import Generation, generate
from ..engine.loading import load_model
from ..engine.tokenizer import load_tokenizer
from ..messages import told, tr
from ..paths import tiny
from .show import Shown
from .slots import Slot
from .texts import parted, table_of
from .timer import limit
from .trial import PROMPTS, STOPS, finished_twin, twin_of
from .written import load_function
from .yours import slots

SHOWN, TOKENS = 3, 20


def gallery(slot: Slot) -> Shown:
    """Three wrong answers, first those that the trained model shows: for each the prompt whose text
    parts first, the finished code's text, and theirs with the first other token marked."""
    tokenizer, rows = load_tokenizer(tiny()), []
    for name, (a, found) in _texts(slot.id).items():
        if isinstance(found, str):
            theirs = ("", tr("(no text: {error})").format(error=found[:90]))
        elif a.token_ids == found.token_ids:
            theirs = (tr("the same text"), "")
        else:
            theirs = parted(a, found, tokenizer)
        rows.append([(told(name), ""), (a.text, ""), theirs])
    heads = [tr("they write"), tr("text, finished code"), tr("text, theirs")]
    return table_of(heads, rows)


@cache
def _texts(slot_id: str) -> dict[str, tuple[Generation, Generation | str]]:
    """Wrong answer -> the finished code's text and theirs, or what stopped it. Kept: slides in each
    language show them."""
    slot = slots()[slot_id]
    base = load_model(tiny(), slot.plan, "cpu", "float32")
    tokenizer = load_tokenizer(tiny())
    right = generate(finished_twin(slot, base), tokenizer, PROMPTS, TOKENS)
    ranked = sorted(slot.wrong, key=lambda name: slot.wrong[name].seen_by != "model")
    rows: dict[str, tuple[Generation, Generation | str]] = {}
    for name in ranked[:SHOWN]:
        try:
            with limit(60.0):
                function = load_function(slot.wrong[name].source, slot.name)
                other = generate(twin_of(slot, base, function), tokenizer, PROMPTS, TOKENS)
        except STOPS as error:
            rows[name] = right[0], next(iter(str(error).splitlines()), type(error).__name__)
        else:
            rows[name] = min(zip(right, other, strict=True), key=lambda pair: _parts_at(*pair))
    return rows


def _parts_at(a: Generation, b: Generation) -> int:
    pairs = enumerate(zip(a.token_ids, b.token_ids, strict=False))
    return next((at for at, (x, y) in pairs if x != y), TOKENS)

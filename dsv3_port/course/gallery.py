"""Usual wrong answers of a slot in the embedded model: their text beside the right one's."""

from __future__ import annotations

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

SHOWN, TOKENS = 3, 20


def gallery(slot: Slot) -> Shown:
    """Three wrong answers, first those that the trained model shows: for each the prompt whose text
    parts first, the finished code's text, and theirs with the first other token marked."""
    base = load_model(tiny(), slot.plan, "cpu", "float32")
    tokenizer = load_tokenizer(tiny())
    right = generate(finished_twin(slot, base), tokenizer, PROMPTS, TOKENS)
    ranked = sorted(slot.wrong, key=lambda name: slot.wrong[name].seen_by != "model")
    rows = []
    for name in ranked[:SHOWN]:
        try:
            with limit(60.0):
                function = load_function(slot.wrong[name].source, slot.name)
                other = generate(twin_of(slot, base, function), tokenizer, PROMPTS, TOKENS)
        except STOPS as error:
            said = next(iter(str(error).splitlines()), type(error).__name__)
            none = tr("(no text: {error})").format(error=said[:90])
            rows.append([(told(name), ""), (right[0].text, ""), ("", none)])
            continue
        a, b = min(zip(right, other, strict=True), key=lambda pair: _parts_at(*pair))
        theirs = (
            parted(a, b, tokenizer) if a.token_ids != b.token_ids else (tr("the same text"), "")
        )
        rows.append([(told(name), ""), (a.text, ""), theirs])
    heads = [tr("they write"), tr("text, finished code"), tr("text, theirs")]
    return table_of(heads, rows)


def _parts_at(a: Generation, b: Generation) -> int:
    pairs = enumerate(zip(a.token_ids, b.token_ids, strict=False))
    return next((at for at, (x, y) in pairs if x != y), TOKENS)

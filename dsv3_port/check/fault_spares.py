"""Three more cases for check/faults.py, for a second group."""

from __future__ import annotations

from functools import partial

from . import faulty
from .fault_cases import Case

SPARES: dict[int, Case] = {
    7: Case(
        spoil=partial(faulty.experts_swapped, layer=1),
        symptom="'7 plus 5 is' is 13. Names and colours are exchanged from the first token on.",
        layer=1,
        part="routed experts",
        why="experts swapped",
        tools={
            "layer": "compare_models on the prompt.",
            "part": 'within="model.layers.1": are the chosen experts the right ones?',
            "why": "compare group_w2 with the right model's, expert by expert.",
        },
        confirmed=("In layer 1 two experts have each other's down projection.",),
    ),
    8: Case(
        spoil=faulty.output_reused,
        symptom="Text is right. A script that keeps the logits of all steps finds them all alike.",
        layer="outside",
        part="step",
        why="output reused",
        tools={
            "layer": (
                "stages agree, one after the other. Keep what a step hands out, uncopied, until the next: "
                "strict_gate does."
            ),
            "part": "data_ptr() of the logits of three steps.",
            "why": "who writes into that memory next?",
        },
        confirmed=(
            "Every cached step hands out the same tensor: it must be cloned, or used before the next.",
        ),
    ),
    9: Case(
        spoil=faulty.rows_mixed,
        symptom="One prompt alone is answered well. Three at once are babble from the second token on.",
        layer="outside",
        part="LM head",
        why="rows mixed",
        tools={
            "layer": "compare_models on the prompt, with three rows: does any layer part?",
            "part": "the last stage that agrees, and the first that does not.",
            "why": (
                "put the right logits of row 0 beside those of all rows: where do their halves stand?"
            ),
        },
        confirmed=(
            "The parts of two ranks were put together without moving the ranks' axis behind the rows'.",
        ),
    ),
}

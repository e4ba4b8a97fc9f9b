"""The cases of check/faults.py as data: how each twin is spoiled, what a user saw, what is true, and
which tool comes next where an accusation is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from ..model.decoder import DeepseekV3
from . import faulty

# "every": what all layers share; "outside": before or behind them
LAYERS: tuple[int | str, ...] = (0, 1, 2, 3, "every", "outside")
PARTS = (
    "attention",
    "gate",
    "routed experts",
    "shared expert",
    "norm",
    "cache",
    "positions",
    "mask",
    "LM head",
    "step",
)
WHYS = (
    "slot stands still",
    "halves swapped",
    "wrong scale",
    "padding counted",
    "bias forgotten",
    "host reads",
    "experts swapped",
    "output reused",
    "rows mixed",
    "harmless",
)
DECOY = 6


@dataclass(frozen=True, kw_only=True)
class Case:
    """layer, part, why: the truth, in words of the lists. tools: what to try next where one of them
    is wrong. confirmed: what is said in the end (of the decoy: first what the obvious accusation
    gets). Sentences are shown in the reader's language: their Chinese is in locale/zh.po."""

    spoil: Callable[[DeepseekV3], None]
    symptom: str
    layer: int | str
    part: str
    why: str
    tools: Mapping[str, str]
    confirmed: tuple[str, ...]


HUNT: dict[int, Case] = {
    0: Case(
        spoil=faulty.standing_slot,
        symptom="The text begins well and then repeats itself: 'a pink rope she kept a pink rope she kept'.",
        layer="every",
        part="cache",
        why="slot stands still",
        tools={
            "layer": (
                "a prompt and one cached step agree, so take more of them: compare_models(…, cached=4). "
                "If layer 0 parts already, all layers share the cause."
            ),
            "part": (
                "weights and the first step are right. Look at what one step leaves to the next: "
                "cache.slot and cache.length."
            ),
            "why": "print cache.slot after three cached steps, beside the right model's.",
        },
        confirmed=(
            "Only the prompt moved the slot: every later token was written over the first one.",
        ),
    ),
    1: Case(
        spoil=partial(faulty.halves_swapped, layer=2),
        symptom="Fluent, and wrong in places: a silver box is white, and a finished text goes on.",
        layer=2,
        part="shared expert",
        why="halves swapped",
        tools={
            "layer": (
                "the wrong token comes late, the numbers part early: compare_models on the prompt."
            ),
            "part": (
                'compare_models(…, within="model.layers.2") lists the modules in the order of their outputs.'
            ),
            "why": (
                "the shape is right: compare the weight's two halves with the right model's, crosswise too."
            ),
        },
        confirmed=("Layer 2's shared expert was packed [up | gate]: SiLU went to the wrong half.",),
    ),
    2: Case(
        spoil=partial(faulty.wide_scale, layer=1),
        symptom="Fluent. One text of three changes late: a silver ring where a silver flag belongs.",
        layer=1,
        part="attention",
        why="wrong scale",
        tools={
            "layer": (
                "the prompt agrees bit for bit, so what is wrong runs later: compare_models(…, cached=1)."
            ),
            "part": (
                'compare_models(…, cached=1, within="model.layers.1"): what goes into o_proj, and is what '
                "goes before it clean?"
            ),
            "why": (
                "call both layers' absorbed(…) with the same tensors, once with q_nope and q_rope times "
                "sqrt((R + Dr) / (Dn + Dr)): which call agrees?"
            ),
        },
        confirmed=(
            "Layer 1's absorbed path scales by the row's width, R + Dr; the head's width, Dn + Dr, "
            "belongs there.",
        ),
    ),
    3: Case(
        spoil=faulty.padding_counted,
        symptom="'7 plus 5 is' is answered '12 lives in a house by the lake', but only in a batch with longer "
        "prompts.",
        layer="every",
        part="positions",
        why="padding counted",
        tools={
            "layer": (
                "alone, the prompt is answered well: compare with the padded mask, and behind the prompt, "
                "cached=1."
            ),
            "part": (
                "layer 0 parts, in the padded rows only, its weights are right, and the prompt is right. What "
                "does a row get per step that depends on its padding?"
            ),
            "why": (
                "a prompt alone, and behind three pads: which position has its next token in each?"
            ),
        },
        confirmed=(
            "Cached steps counted the padding as positions, the prompt did not: the row is torn apart "
            "between them.",
        ),
    ),
    4: Case(
        spoil=partial(faulty.bias_forgotten, layer=3),
        symptom="None: the greedy text of all three prompts is the same. A load balancer's log looks odd.",
        layer=3,
        part="gate",
        why="bias forgotten",
        tools={
            "layer": (
                "logits may look well in most rows: let strict_gate, or compare_models, compare the sets of "
                "experts."
            ),
            "part": (
                "what goes into that layer is equal to the last bit, and other experts are chosen."
            ),
            "why": (
                "the gate's parameters are the right ones. Which of them steers the choice and not the "
                "weights?"
            ),
        },
        confirmed=(
            "Layer 3 chooses by the scores alone: the correction bias is loaded and never added.",
        ),
    ),
    5: Case(
        spoil=faulty.host_reads,
        symptom="Text and every stage are right. 'It is slow on the card, and it will not compile.'",
        layer="every",
        part="mask",
        why="host reads",
        tools={
            "layer": (
                "no comparison of numbers can see it. Count instead: host_syncs(step), beside the right "
                "model's; it happens once a step, not once a layer."
            ),
            "part": (
                "graphs.first_break(model, step) names the line at which a graph of the step breaks."
            ),
            "why": "what must the host know to go on at that line?",
        },
        confirmed=(
            "The mask is made from numbers that the host reads in every step: the queue runs empty, and no "
            "graph can hold it.",
        ),
    ),
    DECOY: Case(
        spoil=partial(faulty.padding_counted, prompt_too=True),
        symptom="A reviewer found that the first token of a padded row gets position 11 and not 0. The text?",
        layer="every",
        part="positions",
        why="harmless",
        tools={
            "layer": (
                "strict_gate: at which stage does it show? Positions are made once for all layers."
            ),
            "part": "what did the reviewer look at? Layers get it ready-made.",
            "why": (
                "strict_gate(right, ill), and compare with model 3: what is shifted there, and what here?"
            ),
        },
        confirmed=(
            "Suspicious, and harmless: why? Compare what model 3 shifts with what this one shifts.",
            "Nothing differs: prompt and steps of a row are shifted alike, and rotary positions enter a score "
            "as a difference only.",
        ),
    ),
}

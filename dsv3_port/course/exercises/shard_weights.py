"""Exercise of 01_shard_weights: which axis is cut."""

from __future__ import annotations

from typing import Any

from . import Exercise

_AXES: dict[str, int | str] = {
    "embed_tokens": 0,
    "kv_a_proj_with_mqa": "whole",
    "kv_b_proj": 0,
    "o_proj": 1,
    "gate": "whole",
    "gate_proj": 0,
    "down_proj": 1,
}
_WHY = {
    "o_proj cut by outputs": (
        {"o_proj": 0},
        "o_proj takes the heads' values as inputs, and a rank has only its own heads: cut by outputs every rank would "
        "need the values of all heads first. Cut its inputs; the all-reduce adds the partial sums.",
    ),
    "down_proj cut by outputs": (
        {"down_proj": 0},
        "down_proj's inputs are the MLP's width, of which a rank computed I/W columns. Cut by outputs it would need "
        "the others' columns, one more gather in every MLP. Its inputs are cut where gate_proj's outputs were.",
    ),
    "gate_proj cut by inputs": (
        {"gate_proj": 1},
        "Cut by inputs, gate_proj gives partial sums, and SiLU of a partial sum is not part of SiLU of the sum: an "
        "all-reduce would have to stand before it. By outputs each rank finishes its own I/W columns alone.",
    ),
    "kv_b_proj cut by inputs": (
        {"kv_b_proj": 1},
        "kv_b_proj's outputs are the heads (Dn keys and Dv values each), and a rank wants some heads entirely. Cutting "
        "the inputs cuts the latent row of R numbers, which every head needs whole.",
    ),
    "latent row cut": (
        {"kv_a_proj_with_mqa": 0},
        "kv_a_proj_with_mqa makes one row of R + Dr numbers that all heads share. Cut it, and every rank must collect "
        "the row before it can use it; it is a small matrix, so every rank holds it whole.",
    ),
    "router cut": (
        {"gate": 0},
        "The router's top-k compares the scores of all E experts: with E/W of them a rank chooses other experts than "
        "its neighbours. Every rank holds the router whole and chooses the same.",
    ),
    "embedding cut by width": (
        {"embed_tokens": 1},
        "[V, H] cut over H would make every rank's rows H/W wide, and the first norm needs all H numbers. It is cut "
        "over the vocabulary: a rank looks up what it has, zeros elsewhere, and the all-reduce adds them.",
    ),
}


def _check_axes(answer: Any) -> str | None:
    if not isinstance(answer, dict):
        return f'Give a dict: {", ".join(_AXES)} -> 0 (outputs cut), 1 (inputs cut) or "whole".'
    if missing := [name for name in _AXES if name not in answer]:
        return f"Your answer says nothing about {', '.join(missing)}."
    if odd := [name for name in _AXES if answer[name] not in (0, 1, "whole")]:
        return (
            f'{odd[0]} is {answer[odd[0]]!r}; it can be 0 (outputs cut), 1 (inputs cut) or "whole".'
        )
    for mistake, (part, _) in _WHY.items():
        if all(answer[name] == value for name, value in part.items()):
            return mistake
    wrong = next((name for name in _AXES if answer[name] != _AXES[name]), None)
    return (
        None
        if wrong is None
        else (
            f"{wrong} as {answer[wrong]!r} gives the right numbers only with more memory or more communication: which "
            "of its two sides is already divided over ranks when it runs?"
        )
    )


EXERCISES = (
    Exercise(
        id="01.which_axis",
        notebook="01_shard_weights",
        title="Which axis is cut?",
        minutes=8,
        difficulty=1,
        check=_check_axes,
        wrong={name: (_AXES | part, hint) for name, (part, hint) in _WHY.items()},
        solution="""
answer = {
    "embed_tokens": 0,              # [V, H]: vocabulary rows; zeros elsewhere, all-reduce
    "kv_a_proj_with_mqa": "whole",  # one latent row for all heads
    "kv_b_proj": 0,                 # outputs are heads
    "o_proj": 1,                    # inputs are heads; all-reduce
    "gate": "whole",                # top-k needs the scores of all experts
    "gate_proj": 0,                 # outputs are the width I
    "down_proj": 1,                 # inputs are the width I; all-reduce
}
""",
    ),
)

"""Exercises of 01_shard_weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import Exercise

# ---- which axis ----------------------------------------------------------------------------------

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


# ---- cut or refuse -------------------------------------------------------------------------------

_HEADS, _UNIT, _COLUMNS = 6, 3, 36


def _weight() -> Tensor:
    return torch.arange(_HEADS * _UNIT * _COLUMNS, dtype=torch.float32).view(
        _HEADS * _UNIT, _COLUMNS
    )


def _slice(weight: Tensor, rank: int, world: int, unit: int) -> Tensor:
    rows = weight.shape[0] // world
    return weight[rank * rows : (rank + 1) * rows]


def _rounded_up(weight: Tensor, rank: int, world: int, unit: int) -> Tensor:
    rows = -(-weight.shape[0] // unit // world) * unit
    return weight[rank * rows : (rank + 1) * rows]


def _rest_to_last(weight: Tensor, rank: int, world: int, unit: int) -> Tensor:
    rows = weight.shape[0] // unit // world * unit
    return weight[rank * rows :] if rank == world - 1 else weight[rank * rows : (rank + 1) * rows]


def _narrow_only(weight: Tensor, rank: int, world: int, unit: int) -> Tensor:
    rows = weight.shape[0] // unit // world * unit
    return weight.narrow(0, rank * rows, rows)


def _chunk(weight: Tensor, rank: int, world: int, unit: int) -> Tensor:
    return weight.unflatten(0, (-1, unit)).chunk(world)[rank].flatten(0, 1)


def _through_heads(weight: Tensor, rank: int, world: int, unit: int) -> Tensor:
    if weight.shape[0] % world:
        raise ValueError
    return _slice(weight, rank, world, unit)


def _inputs(weight: Tensor, rank: int, world: int, unit: int) -> Tensor:
    return weight.chunk(world, 1)[rank]


_CUTS = {
    "slice": (
        _slice,
        "With 4 ranks your cut keeps 16 of 18 rows and says nothing: // rounds down and a slice takes what there "
        "is. Refuse a world size that does not divide the heads.",
    ),
    "rounded up": (
        _rounded_up,
        "You round up, so with 4 ranks the last one gets nothing and no error: a slice past the end is "
        "empty. Refuse a world size that does not divide the heads.",
    ),
    "rest to the last": (
        _rest_to_last,
        "You give the rest to the last rank: then ranks hold different shapes, and nothing in the "
        "model expects that. Refuse instead; the message can name the world sizes that fit.",
    ),
    "narrow only": (
        _narrow_only,
        "narrow raises past the end, but 4 ranks of one head each do not reach the end: two heads are lost "
        "in silence. Check the division before you cut.",
    ),
    "chunk": (
        _chunk,
        "Of 4 ranks only the last one fails: chunk rounds up, ranks 0 to 2 take all heads, and wait for rank 3 "
        "in the first all-reduce. Every rank must refuse, so check the division before you cut.",
    ),
    "through a head": (
        _through_heads,
        "9 ranks divide 18 rows but not 6 heads: your cut goes through a head. Count in heads of `unit` "
        "rows, not in rows.",
    ),
    "inputs": (
        _inputs,
        "You cut the columns (inputs, dimension 1). Heads are outputs: cut the rows, dimension 0.",
    ),
}


def _check_cut(answer: Any) -> str | None:
    weight = _weight()
    got: dict[int, list[Any]] = {}
    for world in (1, 2, 3, 4, 9):
        got[world] = _parts(answer, world)
        if world <= 3 and (
            error := next((p for p in got[world] if isinstance(p, Exception)), None)
        ):
            return (
                f"{world} ranks divide 6 heads, yet your cut raised {type(error).__name__}: {error}"
            )
    if not all(isinstance(part, (Tensor, Exception)) for parts in got.values() for part in parts):
        return "cut must return a tensor."
    for name, (form, _) in _CUTS.items():
        if _same(got, form):
            return name
    for world, parts in got.items():
        if world > 3:
            if kept := [rank for rank, part in enumerate(parts) if isinstance(part, Tensor)]:
                return (
                    f"{world} ranks do not divide 6 heads of {_UNIT} rows: cut must raise on each of them, and "
                    f"rank {kept[0]} got a tensor."
                )
            continue
        for rank, (part, want) in enumerate(zip(parts, weight.chunk(world, 0), strict=True)):
            if not torch.equal(part, want):
                held = (
                    (part.flatten(1)[:, 0] // _COLUMNS).int().tolist()
                    if part.ndim > 1
                    else list(part.shape)
                )
                return (
                    f"Of {world} ranks rank {rank} should hold rows {rank * len(want)} to "
                    f"{(rank + 1) * len(want) - 1}; yours holds {held}. Ranks follow each other in whole heads."
                )
    return None


def _parts(cut: Any, world: int) -> list[Any]:
    """What each rank gets; an error is what some of these should meet, and its kind is the
    learner's choice."""

    def part(rank: int) -> Any:
        try:
            return cut(_weight(), rank, world, _UNIT)
        except Exception as error:
            return error

    return [part(rank) for rank in range(world)]


def _same(got: dict[int, list[Any]], form: Any) -> bool:
    """Whether an answer did what a usual mistake does, refusals included."""

    def alike(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return torch.equal(a, b)
        return isinstance(a, Exception) and isinstance(b, Exception)

    return all(
        alike(a, b)
        for world, parts in got.items()
        for a, b in zip(parts, _parts(form, world), strict=True)
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
    Exercise(
        id="01.cut_or_refuse",
        notebook="01_shard_weights",
        title="Cut whole heads, or refuse",
        minutes=10,
        difficulty=2,
        check=_check_cut,
        function="cut(weight, rank, world, unit) that returns this rank's rows.",
        wrong=dict(_CUTS),
        solution="""
def cut(weight, rank, world, unit):
    heads = weight.shape[0] // unit
    if heads % world:
        raise ValueError(f"{heads} heads cannot be cut over {world} ranks")
    rows = heads // world * unit
    return weight.narrow(0, rank * rows, rows)

answer = cut
""",
    ),
)

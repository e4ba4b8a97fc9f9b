"""Exercises of 02_mla_low_rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...config import DeepseekV3Config
from ...weights.layout import kv_b_to_w_k, kv_b_to_w_v
from . import Exercise

HEADS, NOPE, VALUE, RANK = 3, 4, 2, 5
Split = Callable[[Tensor, int, int, int], tuple[Tensor, Tensor]]


def _right(weight: Tensor, heads: int, nope: int, value: int) -> tuple[Tensor, Tensor]:
    return kv_b_to_w_k(weight, nope, value), kv_b_to_w_v(weight, nope, value)


def _halves(weight: Tensor, heads: int, nope: int, value: int) -> tuple[Tensor, Tensor]:
    k, v = weight.split([heads * nope, heads * value])
    return k.unflatten(0, (heads, nope)), v.unflatten(0, (heads, value)).transpose(1, 2)


def _values_first(weight: Tensor, heads: int, nope: int, value: int) -> tuple[Tensor, Tensor]:
    v, k = weight.unflatten(0, (heads, -1)).split([value, nope], 1)
    return k, v.transpose(1, 2)


def _value_not_turned(weight: Tensor, heads: int, nope: int, value: int) -> tuple[Tensor, Tensor]:
    k, v = weight.unflatten(0, (heads, -1)).split([nope, value], 1)
    return k, v


def _both_turned(weight: Tensor, heads: int, nope: int, value: int) -> tuple[Tensor, Tensor]:
    k, v = _right(weight, heads, nope, value)
    return k.transpose(1, 2), v


def _turned_by_view(weight: Tensor, heads: int, nope: int, value: int) -> tuple[Tensor, Tensor]:
    k, v = _value_not_turned(weight, heads, nope, value)
    return k, v.reshape(heads, -1, value)


_SPLITS: dict[str, tuple[Split, str]] = {
    "halves": (
        _halves,
        "You took all key rows from the top and all value rows from below. Shapes fit, values do not: "
        "kv_b_proj keeps each head's rows together, Dn for its keys, then Dv for its values. Separate the "
        "heads first.",
    ),
    "values first": (
        _values_first,
        "Within a head the key rows come first: rows 0 to Dn-1 make k_nope, the Dv rows behind them "
        "make the value.",
    ),
    "w_v not turned": (
        _value_not_turned,
        "w_v is [N, Dv, R] here. The product is latent [.., R] · w_v, so that its rows must be the "
        "R: [N, R, Dv].",
    ),
    "w_k turned": (
        _both_turned,
        "w_k is [N, R, Dn] here. The query is multiplied with it, q_nope [.., Dn] · w_k, so that the rows "
        "of kv_b_proj stay as they are: [N, Dn, R].",
    ),
    "turned by view": (
        _turned_by_view,
        "The shape [N, R, Dv] is right, but view and reshape only count elements off in another "
        "rhythm. Rows become columns by transpose(1, 2).",
    ),
}


def _check_split(answer: Any) -> str | None:
    weight = torch.arange(HEADS * (NOPE + VALUE) * RANK, dtype=torch.float32).view(-1, RANK)
    got = answer(weight.clone(), HEADS, NOPE, VALUE)
    if not (
        isinstance(got, (tuple, list)) and len(got) == 2 and all(isinstance(g, Tensor) for g in got)
    ):
        return "split must return two tensors, (w_k, w_v)."

    def same_as(form: Split) -> bool:
        return all(
            torch.equal(g, want)
            for g, want in zip(got, form(weight, HEADS, NOPE, VALUE), strict=True)
        )

    if same_as(_right):
        return None
    for name, (form, _) in _SPLITS.items():
        if same_as(form):
            return name
    if all(
        g.shape == want.shape
        for g, want in zip(got, _right(weight, HEADS, NOPE, VALUE), strict=True)
    ):
        return (
            "Shapes are right, rows are not: kv_b_proj holds head after head, of each Dn key rows, then Dv value "
            "rows. Row h·(Dn+Dv)+i is w_k[h, i] for i < Dn."
        )
    return (
        f"For N={HEADS}, Dn={NOPE}, Dv={VALUE}, R={RANK} w_k must be [{HEADS}, {NOPE}, {RANK}] and w_v "
        f"[{HEADS}, {RANK}, {VALUE}]; yours are {list(got[0].shape)} and {list(got[1].shape)}. Row h·(Dn+Dv)+i of "
        "kv_b_proj is w_k[h, i] for i < Dn."
    )


CONTEXT = 4096


def _crossover() -> int:
    """Smallest S with 2SR(Dn+Dv) + 2SL(2R+Dr) > 2LR(Dn+Dv) + 2SL(Dn+Dr+Dv), for the 671B config."""
    c = DeepseekV3Config.preset("v3-671b")
    turn = c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)
    more = 2 * c.kv_lora_rank - c.qk_nope_head_dim - c.v_head_dim
    return math.floor(CONTEXT * turn / (turn + CONTEXT * more)) + 1


_NUMBERS: dict[str, tuple[int, str]] = {
    "one too few": (
        _crossover() - 1,
        "At this size absorbing still costs fewer operations, by a hair. The question is for the first S "
        "at which expanding costs fewer.",
    ),
    "turning is free": (
        171,
        "You forgot that queries and outputs have to be turned as well, 2·S·R·(Dn+Dv) for each head, "
        "or let the context go to infinity, where that no longer counts. Here L is finite.",
    ),
    "scores only": (
        4,
        "You compared only what one query costs against one position, 2R+Dr against Dn+Dr+Dv. The other "
        "side also has to make the keys and values of all L positions first, 2·L·R·(Dn+Dv).",
    ),
    "rank": (
        512,
        "S does not have to reach R. Write down both sides, operations of one head: what is done once for each "
        "position, once for each query, and once for each pair of them?",
    ),
    "always": (
        1,
        "With one query the expansion of all L rows serves that query alone: this is the decode step of a "
        "model that caches latents and does not absorb. Compare the two with attention_cost.",
    ),
    "never": (
        CONTEXT,
        "With S = L the queries pay for every row they use, and expanding has been cheaper for long: look for "
        "the place where the two sides meet.",
    ),
}


def _check_crossover(answer: Any) -> str | None:
    if isinstance(answer, bool) or not isinstance(answer, (int, float)) or answer != int(answer):
        return "Give a whole number: the smallest S."
    if answer == _crossover():
        return None
    for name, (number, _) in _NUMBERS.items():
        if answer == number:
            return name
    side = (
        "absorbing still costs fewer"
        if answer < _crossover()
        else "expanding already costs fewer at a smaller S"
    )
    return f"S = {int(answer)} is not the first such S: {side}. Compare attention_cost of both latent forms there."


EXERCISES = (
    Exercise(
        id="02.split_kv_b",
        notebook="02_mla_low_rank",
        title="Split kv_b_proj",
        minutes=8,
        difficulty=2,
        check=_check_split,
        function="split(weight, heads, nope, value) that returns (w_k, w_v).",
        wrong=dict(_SPLITS),
        solution="""
def split(weight, heads, nope, value):
    per_head = weight.unflatten(0, (heads, nope + value))  # [N, Dn + Dv, R]
    w_k, w_v = per_head.split([nope, value], dim=1)
    return w_k, w_v.transpose(1, 2)                        # [N, Dn, R], [N, R, Dv]

answer = split
""",
    ),
    Exercise(
        id="02.crossover",
        notebook="02_mla_low_rank",
        title="When absorbing costs more",
        minutes=12,
        difficulty=3,
        check=_check_crossover,
        wrong=dict(_NUMBERS),
        solution="""
R, Dn, Dr, Dv, L = 512, 128, 64, 128, 4096
# operations of one head / 2: absorbed S·R(Dn+Dv) + S·L(2R+Dr), expanded again L·R(Dn+Dv) + S·L(Dn+Dr+Dv)
turn, more = R * (Dn + Dv), 2 * R - Dn - Dv
answer = L * turn // (turn + L * more) + 1   # the first whole S behind L·turn / (turn + L·more)
""",
    ),
)

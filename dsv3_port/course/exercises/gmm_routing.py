"""Exercises of 03_gmm_routing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import Exercise

# ---- 03.row_idx ----------------------------------------------------------------------------------

CASES = ((3, 2), (1, 4), (5, 3))  # tokens, choices


def _column_major(tokens: int, top: int) -> Tensor:
    return torch.arange(tokens * top, dtype=torch.int32).view(top, tokens).t().contiguous()


def _row_major(tokens: int, top: int) -> Tensor:
    return torch.arange(tokens * top, dtype=torch.int32).view(tokens, top)


def _view_only(tokens: int, top: int) -> Tensor:
    return torch.arange(tokens * top, dtype=torch.int32).view(top, tokens).t()


def _not_turned(tokens: int, top: int) -> Tensor:
    return torch.arange(tokens * top, dtype=torch.int32).view(top, tokens)


def _int64(tokens: int, top: int) -> Tensor:
    return _column_major(tokens, top).long()


def _token_only(tokens: int, top: int) -> Tensor:
    return torch.arange(tokens, dtype=torch.int32).view(-1, 1).repeat(1, top)


def _check_row_idx(answer: Any) -> str | None:
    for tokens, top in CASES:
        got = answer(tokens, top)
        if not isinstance(got, Tensor):
            return f"row_idx must return a tensor, not {type(got).__name__}."
        want = _column_major(tokens, top)
        if got.shape != want.shape:
            return (
                "not turned"
                if got.shape == want.t().shape
                else (
                    f"With {tokens} tokens and {top} choices row_idx is {list(want.shape)}, yours {list(got.shape)}."
                )
            )
        if not torch.equal(got.long(), want.long()):
            for name, form in (("row major", _row_major), ("token only", _token_only)):
                if torch.equal(got.long(), form(tokens, top).long()):
                    return name
            return (
                f"With {tokens} tokens and {top} choices, choice j of token t has the number j*{tokens} + t; token "
                f"0 should have {want[0].tolist()}, yours {got[0].tolist()}."
            )
        if got.dtype != torch.int32:
            return (
                "int64"
                if got.dtype == torch.int64
                else f"The operator takes int32, yours is {got.dtype}."
            )
        if not got.is_contiguous():
            return "view only"
    return None


# ---- 03.group_list -------------------------------------------------------------------------------

FORMS = ("type 0", "type 1", "type 2", "npu_gmm", "npu_gmm_v2")
COUNTS = ((2, 1, 2, 1), (2, 2, 3, 5), (1, 0, 4, 0, 2))


def _pairs(counts: Tensor) -> Tensor:
    """[expert, count] of the experts that have rows, closed by [0, 0]; what follows is free."""
    busy = counts.nonzero().flatten()
    pairs = torch.zeros(len(counts), 2, dtype=torch.int64)
    pairs[: len(busy)] = torch.stack((busy, counts[busy]), 1)
    return pairs


def _lists(counts: Tensor) -> dict[str, Tensor]:
    ends = counts.cumsum(0)
    return {
        "type 0": ends,
        "type 1": counts,
        "type 2": _pairs(counts),
        "npu_gmm": ends,
        "npu_gmm_v2": counts,
    }


def _counts_as_ends(counts: Tensor) -> dict[str, Tensor]:
    return _lists(counts) | {"type 0": counts, "npu_gmm": counts}


def _starts(counts: Tensor) -> dict[str, Tensor]:
    starts = counts.cumsum(0) - counts
    return _lists(counts) | {"type 0": starts, "npu_gmm": starts}


def _swapped_gmm(counts: Tensor) -> dict[str, Tensor]:
    return _lists(counts) | {"npu_gmm": counts, "npu_gmm_v2": counts.cumsum(0)}


def _swapped_pairs(counts: Tensor) -> dict[str, Tensor]:
    return _lists(counts) | {"type 2": _pairs(counts).flip(1)}


def _idle_pairs(counts: Tensor) -> dict[str, Tensor]:
    return _lists(counts) | {"type 2": torch.stack((torch.arange(len(counts)), counts), 1)}


def _int32_lists(counts: Tensor) -> dict[str, Tensor]:
    return {name: value.int() for name, value in _lists(counts).items()}


_WRONG_LISTS: dict[str, tuple[Callable[[Tensor], dict[str, Tensor]], str]] = {
    "counts as ends": (
        _counts_as_ends,
        "Type 0 and npu_gmm read row ends. Given counts, the operator takes 2, 2, 3, 5 for ends: expert "
        "1 then has no row and the rows after the fifth are never written. Add up first: cumsum(0).",
    ),
    "starts": (
        _starts,
        "You gave where each expert's rows begin (0, 2, 3, 5). The cumulative form is inclusive: where they "
        "end, so the last entry is the number of rows.",
    ),
    "swapped gmm": (
        _swapped_gmm,
        "MindSpeed's two functions are the other way round: npu_gmm takes cumulative ends, npu_gmm_v2 "
        "takes counts.",
    ),
    "swapped pairs": (
        _swapped_pairs,
        "The pairs of type 2 are [expert, count], yours are [count, expert].",
    ),
    "idle pairs": (
        _idle_pairs,
        "A pair with the count 0 ends the list of type 2, so an expert without rows hides all after it. "
        "List only the experts that have rows, then [0, 0].",
    ),
    "int32": (
        _int32_lists,
        "Values are right, the dtype is not: group_list is int64 (npu_moe_compute_expert_tokens returns int32, "
        "hence the cast in the port).",
    ),
}


def _same_lists(got: Mapping[str, Any], want: Mapping[str, Tensor]) -> bool:
    return all(_same_list(got[name], want[name], name) for name in FORMS)


def _same_list(got: Tensor, want: Tensor, name: str) -> bool:
    if got.dtype != want.dtype or got.shape != want.shape:
        return False
    if name != "type 2":
        return torch.equal(got, want)
    stop = (
        int((want[:, 1] > 0).long().cumprod(0).sum()) + 1
    )  # what follows the closing pair is not specified
    return torch.equal(got[:stop], want[:stop])


def _check_group_list(answer: Any) -> str | None:
    cases = [torch.tensor(c) for c in COUNTS]
    got = [answer(c.clone()) for c in cases]
    if not all(isinstance(g, Mapping) and set(FORMS) <= set(g) for g in got):
        return f"group_lists must return a dict with the keys {', '.join(FORMS)}."
    if not all(isinstance(g[name], Tensor) for g in got for name in FORMS):
        return (
            "Every form is a tensor (npu_gmm would take a list of int too; make it a tensor here)."
        )
    if all(_same_lists(g, _lists(c)) for g, c in zip(got, cases, strict=True)):
        return None
    for mistake, (form, _) in _WRONG_LISTS.items():
        if all(_same_lists(g, form(c)) for g, c in zip(got, cases, strict=True)):
            return mistake
    for g, c in zip(got, cases, strict=True):
        for name, want in _lists(c).items():
            if not _same_list(g[name], want, name):
                return (
                    f"For counts {c.tolist()} the form {name!r} should be {want.tolist()} ({want.dtype}), yours is "
                    f"{g[name].tolist()} ({g[name].dtype})."
                )
    return None


EXERCISES = (
    Exercise(
        id="03.row_idx",
        notebook="03_gmm_routing",
        title="Number the choices the way the operator reads them",
        minutes=8,
        difficulty=1,
        check=_check_row_idx,
        function="row_idx(tokens, top) that returns the tensor for npu_moe_init_routing.",
        wrong={
            "row major": (
                _row_major,
                "You counted along each token (row-major). The operator finds the token as row_idx % T, so "
                "choice j of token t must be j*T + t. With one token both are the same, which is why "
                "decode at batch 1 hides the mistake.",
            ),
            "not turned": (
                _not_turned,
                "The numbers run the right way, but your tensor is [K, T]; the operator wants one row for "
                "each token, [T, K]. Transpose it.",
            ),
            "view only": (
                _view_only,
                "Numbers, shape and dtype are right. A transposed view keeps its memory order, though, and "
                "the operator reads memory: make it contiguous.",
            ),
            "int64": (
                _int64,
                "The values are right, but the routing operators take int32; arange gives int64.",
            ),
            "token only": (
                _token_only,
                "You repeated the token's number for each choice. Every one of the T*K choices needs a "
                "number of its own, j*T + t: the operator keeps them to find the way back.",
            ),
        },
        solution="""
import torch

def row_idx(tokens, top):
    return torch.arange(tokens * top, dtype=torch.int32).view(top, tokens).t().contiguous()

answer = row_idx
""",
    ),
    Exercise(
        id="03.group_list",
        notebook="03_gmm_routing",
        title="One routing, five group lists",
        minutes=12,
        difficulty=2,
        check=_check_group_list,
        function="group_lists(counts) that returns a dict with the five forms.",
        wrong=dict(_WRONG_LISTS),
        solution="""
import torch

def group_lists(counts):
    ends = counts.cumsum(0)
    busy = counts.nonzero().flatten()
    pairs = torch.zeros(len(counts), 2, dtype=torch.int64)
    pairs[: len(busy)] = torch.stack((busy, counts[busy]), 1)
    return {"type 0": ends, "type 1": counts, "type 2": pairs, "npu_gmm": ends, "npu_gmm_v2": counts}

answer = group_lists
""",
    ),
)

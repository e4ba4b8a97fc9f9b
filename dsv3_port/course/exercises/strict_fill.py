"""Exercise of 05_merged_mlp: a fill that leaves no parameter as it was.

A defect of the old sample (Ascend/torchair, npu_tuned_model/llm/deepseek_v3): it loaded through
ignore_mismatched_sizes=True, which initialises anew whatever does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Exercise

Fill = Callable[[dict[str, Tensor], dict[str, Tensor]], Any]


def _strict(params: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    if params.keys() != given.keys():
        raise ValueError(f"names differ: {sorted(params.keys() ^ given.keys())}")
    for name, param in params.items():
        if param.shape != given[name].shape:
            raise ValueError(f"{name}: {list(given[name].shape)} into {list(param.shape)}")
        param.copy_(given[name])


def _missing(params: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    if given.keys() - params.keys():
        raise ValueError
    _strict({n: params[n] for n in given}, given)


def _extra(params: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    _strict(params, {n: given[n] for n in params})


def _mismatch(params: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    fits = {n for n in given if n in params and given[n].shape == params[n].shape}
    if params.keys() != given.keys():
        raise ValueError
    _strict({n: params[n] for n in fits}, {n: given[n] for n in fits})


def _broadcast(params: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    if params.keys() != given.keys():
        raise ValueError
    for name, param in params.items():
        param.copy_(given[name])


def _reshaped(params: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    _strict(params, {n: t.reshape(params[n].shape) if n in params else t for n, t in given.items()})


def _rebound(params: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    if {n: p.shape for n, p in params.items()} != {n: t.shape for n, t in given.items()}:
        raise ValueError
    params.update(given)


_FILLS: dict[str, tuple[Fill, str]] = {
    "missing": (
        _missing,
        "A parameter that the checkpoint does not hold kept its random numbers, and nothing was said: the "
        "model runs and talks nonsense. Refuse when a name is missing.",
    ),
    "mismatch skipped": (
        _mismatch,
        "A tensor of another shape was passed over; that is ignore_mismatched_sizes=True, by which "
        "the old sample ran on weights that were never loaded. Refuse.",
    ),
    "extra": (
        _extra,
        "The checkpoint held a tensor that no parameter took, and you did not say so: mostly its name is "
        "misspelt on one side. Refuse what is left over.",
    ),
    "broadcast": (
        _broadcast,
        "copy_ broadcasts: [1, 4] fills [3, 4] with three equal rows and no error. Compare shapes before you "
        "copy.",
    ),
    "reshaped": (
        _reshaped,
        "reshape makes [4, 3] fit [3, 4] with every number in the wrong place. A matrix of another shape is "
        "an error, not a layout.",
    ),
    "rebound": (
        _rebound,
        "The dict holds new tensors, the model still its old ones: a forward pass reads the parameter that was "
        "there before. Copy into it, param.copy_(tensor).",
    ),
}
_BAD_GIFTS: dict[str, dict[str, Tensor | None]] = {
    "missing": {"b": None},
    "extra": {"c": torch.ones(2)},
    "mismatch skipped": {"a": torch.ones(2, 4)},
    "broadcast": {"a": torch.ones(1, 4)},
    "reshaped": {"a": torch.arange(12.0).view(4, 3)},
}


def _gift() -> dict[str, Tensor]:
    return {"a": torch.arange(12.0).view(3, 4), "b": torch.arange(3.0)}


def _check_fill(answer: Any) -> str | None:
    params = {name: torch.full_like(t, -1.0) for name, t in _gift().items()}
    kept = dict(params)
    answer(params, _gift())
    if any(not torch.equal(kept[name], t) for name, t in _gift().items()):
        same = all(torch.equal(params.get(name, kept[name]), t) for name, t in _gift().items())
        return (
            "rebound"
            if same
            else "With names and shapes that fit, each parameter must hold its tensor afterwards."
        )
    accepted = [name for name, change in _BAD_GIFTS.items() if not _refused(answer, change)]
    if not accepted:
        return None
    # who takes any shape of the right size, or any that broadcasts, has one mistake with its own
    # name
    return accepted[0]


def _refused(answer: Fill, change: dict[str, Tensor | None]) -> bool:
    params = {name: torch.full_like(t, -1.0) for name, t in _gift().items()}
    try:
        answer(params, {n: t for n, t in (_gift() | change).items() if t is not None})
    except Exception:  # refusing is right, by whatever error
        return True
    return False


EXERCISES = (
    Exercise(
        id="05.strict_fill",
        notebook="05_merged_mlp",
        title="Fill everything, or refuse",
        minutes=12,
        difficulty=3,
        check=_check_fill,
        function="fill(params, given): copies every tensor of `given`, raises where one does not fit.",
        wrong=dict(_FILLS),
        solution="""
def fill(params, given):
    if params.keys() != given.keys():
        raise ValueError(f"names differ: {sorted(params.keys() ^ given.keys())}")
    for name, param in params.items():
        if param.shape != given[name].shape:
            raise ValueError(f"{name}: {list(given[name].shape)} into {list(param.shape)}")
    for name, param in params.items():                   # only now: a refused fill changes nothing
        param.copy_(given[name])

answer = fill
""",
    ),
)

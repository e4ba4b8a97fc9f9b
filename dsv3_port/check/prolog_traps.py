"""Calls of npu_mla_prolog_v3 that nothing refuses, and that are wrong: every shape and dtype fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from .. import ops
from ..engine.loading import with_plan
from ..errors import PortError
from ..messages import N_
from ..model.decoder import DeepseekV3
from ..model.mla_prolog import PrologAttention

SIN = 7  # of the operator's tensors; cos follows
Call = tuple[list[Tensor], dict[str, Any]]


def _exchanged(tensors: list[Tensor], given: dict[str, Any]) -> Call:
    tensors[SIN : SIN + 2] = reversed(tensors[SIN : SIN + 2])
    return tensors, given


def _behind(tensors: list[Tensor], given: dict[str, Any]) -> Call:
    return tensors, given | {"cache_index": given["cache_index"] - 1}


def _default_epsilons(tensors: list[Tensor], given: dict[str, Any]) -> Call:
    return tensors, {name: v for name, v in given.items() if "epsilon" not in name}


TRAPS: dict[str, Callable[[list[Tensor], dict[str, Any]], Call]] = {
    N_("cos before sin"): _exchanged,
    N_("a slot one behind"): _behind,
    N_("the operator's own epsilons"): _default_epsilons,
}
PROLOG_TRAPS = tuple(TRAPS)


def prolog_trap(model: DeepseekV3, name: str) -> DeepseekV3:
    """A twin whose attentions call the operator so. PortError where it calls none, or for another name."""
    if name not in TRAPS or not model.plan.mla_prolog:
        raise PortError(
            f"prolog_trap: {name!r} in a plan with mla_prolog {model.plan.mla_prolog}; it takes "
            f"{', '.join(TRAPS)}, and a plan with mla_prolog"
        )
    twin = with_plan(model, model.plan)
    for module in twin.modules():
        if isinstance(module, PrologAttention):
            module.mla_prolog = partial(_called, TRAPS[name])
    return twin


def _called(change: Callable[..., Call], *tensors: Tensor, **given: Any) -> tuple[Tensor, ...]:
    changed, rest = change([*tensors], dict(given))
    return ops.npu_mla_prolog_v3(*changed, **rest)

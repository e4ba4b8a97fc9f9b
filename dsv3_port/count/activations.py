"""What the parts of a model see while the whole model reads a prompt: inputs of modules, load of
experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..engine.graph import eagerly
from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..model.gate import Gate


def _read(
    model: DeepseekV3, ids: Tensor, mask: Tensor | None, hooks: list[RemovableHandle]
) -> None:
    """One uncached eager pass with the hooks in place, which are gone afterwards."""
    try:
        with eagerly(model):  # a compiled step would not call them
            model(ids.to(model.device), None if mask is None else mask.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()


def module_args(model: DeepseekV3, ids: Tensor, name: str) -> tuple[Any, ...]:
    """What the module `name` (as in named_modules) gets while `model` reads ids [B, S] without a
    cache.

    "model.layers.1.mlp" gets (hidden [B, S, H],), its "gate" ([T, H],), its "experts" (x [T, H],
    chosen [T, K], weights [T, K], shared [T, H] or None).
    """
    modules = dict(model.named_modules())
    if name not in modules:
        raise PortError(
            f"the model has no module {name!r}; modules are named as in model.named_modules()"
        )
    seen: list[Any] = []

    def keep(module: Any, args: tuple[Any, ...]) -> None:
        seen[:] = (a.detach().clone() if isinstance(a, Tensor) else a for a in args)

    _read(model, ids, None, [modules[name].register_forward_pre_hook(keep)])
    return tuple(seen)


def module_call(model: DeepseekV3, ids: Tensor, name: str) -> Callable[[], Any]:
    """A function that runs only this module, on what it gets while `model` reads ids: to count, or
    to time."""
    args = module_args(model, ids, name)
    module = model.get_submodule(name)

    def call() -> Any:
        with torch.no_grad():
            return module(*args)

    return call


def expert_load(model: DeepseekV3, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """[MoE layers, E]: choices of each expert while `model` reads ids [B, S]; padding (0 in mask)
    is not counted."""
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(torch.bool)
    loads: list[Tensor] = []

    def count(module: Any, args: Any, output: tuple[Tensor, Tensor]) -> None:
        chosen = output[0][real.flatten().to(output[0].device)]
        loads.append(
            torch.bincount(chosen.flatten(), minlength=model.config.n_routed_experts).cpu()
        )

    gates = [m for m in model.modules() if isinstance(m, Gate)]
    if not gates:
        raise PortError("expert_load: this model has no MoE layer")
    _read(model, ids, mask, [g.register_forward_hook(count) for g in gates])
    return torch.stack(loads)

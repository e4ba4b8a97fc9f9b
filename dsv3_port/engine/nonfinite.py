"""Logits that are not finite: which layer had them first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model.decoder import DeepseekV3


def first_nonfinite(model: DeepseekV3, ids: list[int]) -> str:
    """One sentence: the first module, in the order of their calls, whose output on `ids` holds an
    infinite value or a NaN. Runs one uncached eager pass, on every rank alike."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            parts = output if isinstance(output, tuple) else (output,)
            tensors = [t for t in parts if isinstance(t, Tensor) and t.is_floating_point()]
            if not found and not all(bool(t.isfinite().all()) for t in tensors):
                found.append(name)

        return hook

    # parts of a layer end before the layer does; a parameter-free module has nothing to blame
    hooks = [
        module.register_forward_hook(look(name))
        for name, module in model.named_modules()
        if name and next(module.parameters(), None) is not None
    ]
    compiled, model.run_step = (
        model.run_step,
        model.forward_step,
    )  # a compiled step would not call them
    try:
        model(torch.tensor([ids], device=model.device))
    finally:
        model.run_step = compiled
        for one in hooks:
            one.remove()
    says = f"the logits after {len(ids)} tokens are not finite"
    if not found:
        return f"{says}, those of an eager pass over the same tokens are: is the graph right?"
    kind = (
        f"{'.'.join(found[0].split('.')[:3])}, in {found[0]}"
        if ".layers." in found[0]
        else found[0]
    )
    return (
        f"{says}; the first layer with infinite or NaN values is {kind}: "
        "its weights may be damaged, or a narrower dtype overflows"
    )

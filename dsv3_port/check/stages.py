"""What every stage of a model computed: recorded by hooks, for a prompt alone or for the last of
some cached steps.

Stages are the embedding, each layer, each gate, the final norm and the LM head; `within` a module
they are all modules below it, in the order in which their outputs were made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.graph import eagerly
from ..errors import PortError
from ..model.decoder import DeepseekV3

_STAGE = re.compile(
    r"model\.embed_tokens|model\.layers\.\d+|model\.layers\.\d+\.mlp\.gate|model\.norm|lm_head"
)
EXPERTS = "mlp.gate"
LOGITS = "logits"  # as the model hands them out, compiled or replayed
SPARE = 9  # positions of a cache that stay empty: what is read behind the slot must not count


def order(stage: str) -> tuple[int, int, int]:
    """Sorts stages as they run."""
    parts = stage.split(".")
    if parts[:2] == ["model", "layers"]:  # a layer's gate runs before the layer is done
        return 1, int(parts[2]), 0 if len(parts) > 3 else 1
    return {"model.embed_tokens": 0, "model.norm": 2, "lm_head": 3, LOGITS: 4}[stage], 0, 0


def stages(model: nn.Module, within: str = "") -> list[str]:
    """Names of the modules whose outputs are compared: in the order they run, or all below
    `within`."""
    names = [name for name, _ in model.named_modules()]
    if not within:
        return sorted((n for n in names if _STAGE.fullmatch(n)), key=order)
    found = [n for n in names if n == within or n.startswith(within + ".")]
    if not found:
        raise PortError(
            f"within={within!r}: the model has no module of that name; one is "
            f"{stages(model)[1]!r}, and named_modules() lists them all"
        )
    return found


def _stage_output(name: str, output: Any) -> Tensor | None:
    """What is compared at a stage, from what its module returned in any of the forms."""
    parts = output if isinstance(output, tuple) else (output,)
    tensors = [p for p in parts if isinstance(p, Tensor)]
    if name.endswith(EXPERTS):
        chosen = next((t for t in tensors if not t.is_floating_point()), None)
        if chosen is None:
            raise PortError(
                f"{name} returned no expert indices (shapes {[list(t.shape) for t in tensors]})"
            )
        return chosen.sort(-1)[0]  # topk does not promise an order
    if re.fullmatch(r"model\.layers\.\d+", name) and len(tensors) == 2:
        return (tensors[0] + tensors[1]).float()  # (delta, residual): the stream is their sum
    return tensors[0].float() if tensors else None


def record_stages(
    model: nn.Module, run: Callable[[], Any], within: str = "", only: str = ""
) -> tuple[Any, dict[str, Tensor]]:
    """What `run()` gives, and stage -> its output during it: the last call of each, in the order of
    these calls; of stages whose name ends with `only`. Hooks are gone afterwards."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            value = _stage_output(name, output)
            if value is not None:
                seen.pop(name, None)  # to the end: the last call's place
                seen[name] = value.detach().cpu().clone()

        return hook

    modules = dict(model.named_modules())
    chosen = [name for name in stages(model, within) if name.endswith(only)]
    handles = [modules[name].register_forward_hook(keep(name)) for name in chosen]
    try:
        with torch.no_grad():
            return run(), seen
    finally:
        for handle in handles:
            handle.remove()


def check_split(ids: Tensor, mask: Tensor | None, cached: int) -> None:
    """PortError where ids [B, S] are no batch, or `cached` of their columns leave a row without
    prompt."""
    if ids.dim() != 2:
        raise PortError(f"input_ids must be [batch, sequence], not {list(ids.shape)}")
    length = ids.shape[1] - cached
    if cached < 0 or length < 1 or (mask is not None and not bool(mask[:, :length].any(1).all())):
        raise PortError(
            f"cached={cached}: the last {cached} of {ids.shape[1]} tokens are cached steps, and every "
            "row needs a token of the prompt before them"
        )


def feed(
    model: DeepseekV3,
    ids: Tensor,
    mask: Tensor | None,
    cached: int,
    room: int | None = None,
) -> Iterator[Callable[[], Tensor]]:
    """The calls that run ids [B, S] as a prompt and `cached` steps of one token, in a cache of `room`
    positions, by default with SPARE ones: each gives logits. Without steps and `room` nothing is
    cached."""
    where = model.device
    ids, mask = ids.to(where), None if mask is None else mask.to(where)
    if not cached and room is None:
        yield partial(model, ids, mask)
        return
    length = ids.shape[1] - cached
    cache = model.new_cache(ids.shape[0], max(room or ids.shape[1] + SPARE, ids.shape[1]))
    # contiguous: a graph is compiled for strides as well, hand over what generation does
    prompt, padding = ids[:, :length].contiguous(), None if mask is None else mask[:, :length]
    yield partial(model, prompt, padding, cache)
    for at in range(length, ids.shape[1]):
        token = ids[:, at : at + 1].contiguous()
        yield partial(model, token, cache=cache)


def stages_of(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    cached: int = 0,
    within: str = "",
    only: str = "",
) -> dict[str, Tensor]:
    """Stage -> its output for input_ids [B, S], by the eager step, on the CPU.

    cached: so many of the last tokens are cached steps, and the last one's stages are given. A
    transformers model reads all of them at once, without a cache, and its last position is given.
    """
    check_split(input_ids, attention_mask, cached)
    if isinstance(model, DeepseekV3):
        calls = feed(model, input_ids, attention_mask, cached)
        with eagerly(model):  # a compiled step would not call the hooks
            return record_stages(model, lambda: [call() for call in calls], within, only)[1]
    _, seen = record_stages(
        model, lambda: peer_logits(model, input_ids, attention_mask), within, only
    )
    if not cached:
        return seen
    return {
        name: columns(value, input_ids.shape, input_ids.shape[1] - 1, input_ids.shape[1])
        for name, value in seen.items()
    }


def peer_logits(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """transformers' logits [B, S, V] of ids in one pass, positions counted from the first token."""
    where = next(model.parameters()).device
    ids, mask = ids.to(where), None if mask is None else mask.to(where)
    positions = None if mask is None else (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits: Tensor = model(
            ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).logits
    return logits


def columns(value: Tensor, shape: tuple[int, ...], start: int, stop: int) -> Tensor:
    """Positions start..stop of a stage's output for `shape` [B, S]; of [B*S, ...] too, which
    becomes [B, ...]."""
    batch, length = shape
    if value.shape[:2] != (batch, length) and value.shape[0] == batch * length:
        value = value.view(batch, length, *value.shape[1:])
    return value[:, start:stop]

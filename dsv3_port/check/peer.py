"""transformers' own DeepSeek-V3 with the weights of one of our models: the second opinion beside
every plan."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..plan import PortPlan


def peer_weights(model: DeepseekV3) -> dict[str, Tensor]:
    """Our upstream parameters under transformers' names: experts stacked as gate_up_proj [E, 2I,
    H], down_proj."""
    state: dict[str, Tensor] = dict(model.named_parameters())
    for layer in range(model.config.num_hidden_layers):
        at = f"model.layers.{layer}.mlp.experts"
        if f"{at}.0.gate_proj.weight" not in state:
            continue
        parts = {
            kind: [
                state.pop(f"{at}.{e}.{kind}_proj.weight")
                for e in range(model.config.n_routed_experts)
            ]
            for kind in ("gate", "up", "down")
        }
        state[f"{at}.gate_up_proj"] = torch.stack(
            [torch.cat(p) for p in zip(parts["gate"], parts["up"], strict=True)]
        )
        state[f"{at}.down_proj"] = torch.stack(parts["down"])
    return {name: tensor.detach() for name, tensor in state.items()}


def cache_argument(peer: Any) -> str:
    """What the forward of transformers' model calls its cache: "cache" from 5.24 on,
    "past_key_values" before.

    By signature: the new name would vanish in the **kwargs of an older one, and every step would
    see its own token only.
    """
    known = inspect.signature(peer.forward).parameters
    for word in ("cache", "past_key_values"):
        if word in known:
            return word
    raise PortError(
        "this transformers takes its cache under a name that is not known here: use the pinned version"
    )


def peer_model(model: DeepseekV3) -> Any:
    """`DeepseekV3ForCausalLM` that shares the weights of `model`, which must have the upstream
    forms.

    The weights come from our reader, because transformers 5.23 misreads FP8 blocks whose rows are
    not a multiple of the block. Experts are copied (they are stacked there), everything else is
    shared.
    """
    if (
        model.plan != PortPlan.upstream().replace(cache=model.plan.cache)
        or model.parallel.world_size > 1
    ):
        raise PortError(
            "the transformers model takes the weights of an upstream model on one rank: load it with "
            "PortPlan.upstream()"
        )
    if not model.config.n_shared_experts:
        raise PortError(
            "transformers always builds a shared expert, this model has none: there is no peer for it"
        )
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    values = model.config.to_dict()
    values.pop("quantization_config", None)
    values.pop("torch_dtype", None)
    quiet = logging.getLogger("transformers")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # it warns about rope settings that it then reads correctly
    try:
        config = DeepseekV3Config(**values)
        with torch.device("meta"):
            peer = DeepseekV3ForCausalLM(config)
    finally:
        quiet.setLevel(level)
    missing, unexpected = peer.load_state_dict(peer_weights(model), strict=False, assign=True)
    if missing or unexpected:
        raise PortError(
            f"this transformers names its weights differently (missing {missing[:2]}, unexpected "
            f"{unexpected[:2]}): use the pinned version (ci/pins.txt)"
        )
    rotary = type(peer.model.rotary_emb)(
        config=config
    )  # its buffers are not persistent: made anew off the meta device
    peer.model.rotary_emb = rotary.to(model.device)
    return peer.requires_grad_(False).eval()

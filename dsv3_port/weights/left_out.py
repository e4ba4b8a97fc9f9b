"""Published tensors that are deliberately not read, and why."""

from __future__ import annotations

from ..config import DeepseekV3Config


def left_out(config: DeepseekV3Config, name: str, mtp: bool = False) -> str | None:
    """Why a published tensor is deliberately not part of the model, or None if it should have been
    used. mtp: the first MTP layer is part of it."""
    parts = name.split(".")
    if parts[:2] == ["model", "layers"] and len(parts) > 2 and parts[2].isdigit():
        layer = int(parts[2])
        if (
            config.num_hidden_layers
            <= layer
            < config.num_hidden_layers + config.num_nextn_predict_layers
        ):
            if not mtp or layer > config.num_hidden_layers:
                return "multi-token prediction (MTP) layer"
            if parts[3:] in (["embed_tokens", "weight"], ["shared_head", "head", "weight"]):
                return "copy of the model's own"
        if parts[3:] == ["self_attn", "rotary_emb", "inv_freq"]:
            return "computed from the config"
    if config.tie_word_embeddings and name == "lm_head.weight":
        return "tied to the embedding"
    return None

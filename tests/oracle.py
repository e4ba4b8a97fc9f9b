"""The oracle of the whole suite: transformers' DeepseekV3ForCausalLM with weights dequantised by
the plain definition.

transformers 5.23 cannot read the published FP8 layout by itself (576 rows with 5 scale rows are
refused, 192 rows with 2 are misread), so the definition is applied here, in float64, block by
block, independently of dsv3_port.weights.fp8.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import DeepseekV3Config as HFConfig
from transformers import DeepseekV3ForCausalLM


def plain_dequantize(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """value = code * scale of its 128 x 128 block, in float64."""
    out = weight.to(torch.float64)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            out[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)] *= scale[i, j].to(torch.float64)
    return out


def plain_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every value of a checkpoint folder, FP8 blocks dequantised."""
    stored: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored |= load_file(file)
    return {
        name: plain_dequantize(t, stored[name + "_scale_inv"])
        if t.dtype == torch.float8_e4m3fn
        else t
        for name, t in stored.items()
        if not name.endswith("_scale_inv")
    }


@lru_cache(maxsize=4)
def hf_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> DeepseekV3ForCausalLM:
    """transformers' model of a published-format folder, every key of its state set; it has no MTP
    layers."""
    folder = Path(folder)
    values = json.loads((folder / "config.json").read_text())
    values.pop("quantization_config", None)
    values |= {"torch_dtype": None, "attn_implementation": "eager"}
    config = HFConfig(**values)
    model = DeepseekV3ForCausalLM(config).to(dtype).eval()
    model.set_experts_implementation(
        "eager"
    )  # grouped_mm wants widths that are multiples of 16 bytes
    tensors = plain_tensors(folder)
    state = model.state_dict()
    for name, target in state.items():
        head, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            parts = [
                torch.cat(
                    [tensors[f"{head}.{e}.gate_proj.weight"], tensors[f"{head}.{e}.up_proj.weight"]]
                )
                for e in range(target.shape[0])
            ]
            value = torch.stack(parts)
        elif last == "down_proj":
            value = torch.stack(
                [tensors[f"{head}.{e}.down_proj.weight"] for e in range(target.shape[0])]
            )
        else:
            value = tensors[name]
        assert value.shape == target.shape, name
        target.copy_(value)
    for (
        module
    ) in model.modules():  # the bias steers the choice in float32 whatever the model's dtype
        if hasattr(module, "e_score_correction_bias"):
            module.e_score_correction_bias.data = module.e_score_correction_bias.data.float()
    return model

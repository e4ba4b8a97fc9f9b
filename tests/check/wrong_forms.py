"""Wrong forms that are attached to a twin, for tests of the gates: six absorbed attentions, a
forgotten bias, padding counted as position."""

from __future__ import annotations

import types
from collections.abc import Callable

import torch
from torch import Tensor

from dsv3_port import ops
from dsv3_port.engine.loading import with_plan
from dsv3_port.model.attention import LowRankAttention
from dsv3_port.model.decoder import DeepseekV3

Absorbed = Callable[[LowRankAttention, Tensor, Tensor, Tensor, Tensor], Tensor]


def absorbed(
    *,
    wide_scale: bool = False,
    rotary: bool = True,
    swapped: bool = False,
    masked: bool = True,
    axis: int = -1,
    first_values: bool = True,
) -> Absorbed:
    """The absorbed attention with one mistake; without any it is right."""

    def inner(self, q_nope, q_rope, rows, mask):
        c = self.config
        parts = [ops.head_matmul(q_nope, self.kv_b_proj_w_k), q_rope]
        if not rotary:
            parts[1] = torch.zeros_like(q_rope)
        q = torch.cat(parts[::-1] if swapped else parts, -1)
        scale = self.scale
        if wide_scale:
            scale = (c.kv_lora_rank + c.qk_rope_head_dim) ** -0.5
        scores = (q @ rows.transpose(-1, -2)).float() * scale
        weights = (scores + mask if masked else scores).softmax(axis).to(q.dtype)
        values = rows[..., : c.kv_lora_rank] if first_values else rows[..., -c.kv_lora_rank :]
        return ops.head_matmul(weights @ values, self.kv_b_proj_w_v)

    return inner


RIGHT = absorbed()
WRONG = {
    "scale of the row's width": absorbed(wide_scale=True),
    "rotary part left out": absorbed(rotary=False),
    "parts swapped": absorbed(swapped=True),
    "no mask": absorbed(masked=False),
    "softmax over the queries": absorbed(axis=-2),
    "last numbers as values": absorbed(first_values=False),
}


def with_absorbed(model: DeepseekV3, function: Absorbed) -> DeepseekV3:
    twin = with_plan(model, model.plan)
    for layer in twin.model.layers:
        layer.self_attn.absorbed = types.MethodType(function, layer.self_attn)
    return twin


def without_bias(model: DeepseekV3, layer: int) -> DeepseekV3:
    """One layer's gate chooses by its scores alone."""
    twin = with_plan(model, model.plan)
    bias = twin.model.layers[layer].mlp.gate.e_score_correction_bias
    bias.data = torch.zeros_like(bias)  # other data: the tensor is shared
    return twin


def padding_as_position(model: DeepseekV3) -> DeepseekV3:
    """Cached steps count a row's padding as positions."""
    twin = with_plan(model, model.plan)
    right = twin._step_inputs

    def step_inputs(ids, pad, cache, first):
        inputs = right(ids, pad, cache, first)
        if not first:
            inputs.positions = inputs.positions + pad.unsqueeze(1)
            if twin.rotary_emb is not None:
                inputs.cos, inputs.sin = twin.rotary_emb(inputs.positions, twin.dtype)
        return inputs

    twin._step_inputs = step_inputs
    return twin


def replaying_one_output(model: DeepseekV3) -> DeepseekV3:
    """A decode step that writes its logits into the same tensor each time, as a replay does."""
    twin = with_plan(model, model.plan)
    out: dict[torch.Size, Tensor] = {}

    def run_step(ids, pad, cache, first):
        logits = twin.forward_step(ids, pad, cache, first)
        if first:
            return logits
        return out.setdefault(logits.shape, torch.empty_like(logits)).copy_(logits)

    twin.run_step = run_step
    return twin

"""Ways to spoil one twin, by its attributes: what a port gets wrong and no operator reports.

Names inside are those of the right code, so that a look at the model gives nothing away.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..model.attention import LowRankAttention, StepInputs
from ..model.cache import Cache
from ..model.decoder import DeepseekV3
from ..model.gate import Gate
from .defects import gathered_without_move


def standing_slot(model: DeepseekV3) -> None:
    """Only the prompt moves the cache's slot: every cached step writes where the first one wrote."""
    right = model.forward_step

    def forward_step(input_ids: Tensor, pad: Tensor, cache: Cache | None, first: bool) -> Tensor:
        logits = right(input_ids, pad, cache, first)
        if cache is not None and not first:
            cache.slot.sub_(input_ids.shape[1])
        return logits

    _step(model, forward_step)


def halves_swapped(model: DeepseekV3, layer: int) -> None:
    """The shared expert's merged weight as [up | gate]."""
    merged = _layer(model, layer).mlp.shared_experts.merge_up_gate_proj
    rows = merged.weight.shape[0]
    merged.weight = nn.Parameter(merged.weight.roll(rows // 2, 0), requires_grad=False)


def wide_scale(model: DeepseekV3, layer: int) -> None:
    """One layer's absorbed attention scales by the width of a cached row, R + Dr."""
    attention: LowRankAttention = _layer(model, layer).self_attn
    c = attention.config
    factor = (c.kv_lora_rank + c.qk_rope_head_dim) ** -0.5 / attention.scale

    def absorbed(
        self: LowRankAttention, q_nope: Tensor, q_rope: Tensor, rows: Tensor, mask: Tensor
    ) -> Tensor:
        return LowRankAttention.absorbed(self, q_nope * factor, q_rope * factor, rows, mask)

    attention.absorbed = types.MethodType(absorbed, attention)  # type: ignore[method-assign]


def padding_counted(model: DeepseekV3, *, prompt_too: bool = False) -> None:
    """Positions of cached steps count the padding; `prompt_too`: those of the prompt as well."""
    right = model._step_inputs

    def _step_inputs(
        input_ids: Tensor, pad: Tensor, cache: Cache | None, first: bool
    ) -> StepInputs:
        inputs = right(input_ids, pad, cache, first)
        if prompt_too or not first:
            inputs.positions = inputs.positions + pad.unsqueeze(1)
            if model.rotary_emb is not None:
                inputs.cos, inputs.sin = model.rotary_emb(inputs.positions, model.dtype)
        return inputs

    model._step_inputs = _step_inputs  # type: ignore[method-assign]


def bias_forgotten(model: DeepseekV3, layer: int) -> None:
    """One layer's gate chooses by the scores alone; the parameter is there, and right."""
    gate: Gate = _layer(model, layer).mlp.gate
    without: Any = types.SimpleNamespace(
        config=gate.config,
        e_score_correction_bias=0.0,
        group_mask=gate.group_mask,
        mask_value=gate.mask_value,
    )

    def choose(scores: Tensor) -> Tensor:
        return Gate.choose(without, scores)

    gate.choose = choose  # type: ignore[method-assign]


def host_reads(model: DeepseekV3) -> None:
    """Which keys a query sees is computed from numbers that the host reads."""

    def visible(slot: Tensor, new: int, keys: int, pad: Tensor) -> Tensor:
        start = int(slot[0])
        query = torch.arange(start, start + new, device=slot.device)
        key = torch.arange(keys, device=slot.device)
        seen = (key <= query.unsqueeze(-1)).expand(pad.shape[0], new, keys)
        if bool(pad.any()):
            seen = seen & (key >= pad.view(-1, 1, 1))
        return seen

    model.visible = visible


def experts_swapped(model: DeepseekV3, layer: int, a: int = 3, b: int = 9) -> None:
    """Two experts' down projections stand in each other's place."""
    experts = _layer(model, layer).mlp.experts
    weight = experts.group_w2.clone()
    weight[[a, b]] = weight[[b, a]]
    experts.group_w2 = nn.Parameter(weight, requires_grad=False)


def output_reused(model: DeepseekV3) -> None:
    """Every cached step hands out the same tensor, as a replay does that nobody clones."""
    kept: dict[torch.Size, Tensor] = {}

    def run_step(input_ids: Tensor, pad: Tensor, cache: Cache | None, first: bool) -> Tensor:
        logits = model.forward_step(input_ids, pad, cache, first)
        if first:
            return logits
        return kept.setdefault(logits.shape, torch.empty_like(logits)).copy_(logits)

    model.run_step = run_step


def rows_mixed(model: DeepseekV3) -> None:
    """The LM head's output as two ranks leave it whose gather forgets to move the rank's axis."""
    head = model.lm_head

    def forward(x: Tensor) -> Tensor:
        parts = ops.linear(x, head.weight).float().chunk(2, -1)
        return gathered_without_move(torch.cat(parts), parts[0].shape)

    head.forward = forward  # type: ignore[method-assign]


def _layer(model: DeepseekV3, layer: int) -> Any:
    return model.model.layers[layer]


def _step(model: DeepseekV3, forward_step: Any) -> None:
    model.forward_step = forward_step  # type: ignore[method-assign]
    model.run_step = forward_step

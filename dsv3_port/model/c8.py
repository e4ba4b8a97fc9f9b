"""C8: the latent part of a cached row as int8, by one scale a layer.

    c8 = rint(c / kv_scale)    q8 = rint(q / s), s = max |q| / 127 of each query and head
    score = (q8 c8 + q_rope' k_rope) s kv_scale softmax_scale,    q_rope' = q_rope / (s kv_scale)

kv_scale is static: the largest |normalised latent| over a calibration text, / 127
(engine/calibrate.py). The operators that write take its reciprocal, the attention that
reads takes the scale itself. The rotary part stays as it is: 512 + 2 * 64 bytes a token
and layer in place of 2 * 576.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PortError
from .attention import (
    ExpandedAttention,
    LowRankAttention,
    StepInputs,
    attentions,
)
from .context import BuildContext
from .mla_prolog import PrologAttention
from .paged_attention import LATENT, make_paged_attention
from .paged_cache import PagedCache, PagedStep


class C8Attention(PrologAttention):
    """Ported: PrologAttention over int8 latents. Prompts attend over their rows as they
    were before they were stored; a prompt's later chunks take the earlier rows back from
    int8."""

    kv_scale: Tensor  # [1] float32
    quant_scale: Tensor  # [1] its reciprocal
    quant_scales: Tensor  # [512] the same for each channel

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__(ctx)
        for name, count in (
            ("kv_scale", 1),
            ("quant_scale", 1),
            ("quant_scales", LATENT),
        ):
            nothing = torch.full(
                (count,), math.nan, device=ctx.device, dtype=torch.float32
            )
            self.register_buffer(name, nothing, persistent=False)

    def cached(
        self, hidden: Tensor, inputs: StepInputs, buffers: list[Tensor]
    ) -> Tensor:
        query, query_rope, of_query = self.launch(
            hidden,
            inputs,
            buffers,
            quant_scale_ckv=self.quant_scale,
            kv_cache_quant_mode=1,
            query_quant_mode=1,
        )
        scales = of_query.view(query.shape[:3]), self.kv_scale
        return self.over_blocks(query, query_rope, inputs, buffers, scales)

    def store_scales(self) -> dict[str, Any]:
        return {"c_kv_scale": self.quant_scales}

    def gathered(
        self, cache: PagedCache, layer: int, step: PagedStep
    ) -> tuple[Tensor, Tensor]:
        k_rope, codes = super().gathered(cache, layer, step)
        wide = torch.promote_types(k_rope.dtype, torch.float32)
        return k_rope, (codes.to(wide) * self.kv_scale).to(k_rope.dtype)

    def lay_out(self, name: str = "") -> None:
        """The scale's reciprocals too; PortError where it is none."""
        if self.made_of == self.marks():
            return
        if not self.kv_scale.is_meta:
            check_scale(name, float(self.kv_scale))
            self.quant_scale.copy_(1 / self.kv_scale)
            self.quant_scales.copy_(self.quant_scale.expand(LATENT))
        super().lay_out(name)

    def marks(self) -> list[tuple[int, int]]:
        return [*super().marks(), (self.kv_scale.data_ptr(), self.kv_scale._version)]


def check_scale(name: str, scale: float) -> None:
    """PortError where an attention's scale is not a positive number."""
    if not 0 < scale < math.inf:
        found = "no kv_scale" if math.isnan(scale) else f"a kv_scale of {scale:g}"
        raise PortError(
            f"{name} has {found}: an int8 cache needs a positive number for each layer, which "
            "`dsv3-port calibrate` finds; or leave +c8 (PortPlan.kv_cache_dtype) out"
        )


def int8_attentions(model: nn.Module) -> dict[str, C8Attention]:
    """Those with an int8 cache, by their published names."""
    found = attentions(model).items()
    return {name: m for name, m in found if isinstance(m, C8Attention)}


@torch.no_grad()
def set_kv_scales(model: nn.Module, scales: Mapping[str, Any]) -> None:
    """Give every attention its scale: name as `model.layers.0.self_attn` -> a positive
    number. That of an MTP layer which this model has not built may be there; PortError
    where one is missing, is no positive number, or names nothing."""
    layers = int8_attentions(model)
    if not layers:
        raise PortError(
            "this model's cache is not int8: load it with PortPlan.kv_cache_dtype 'int8' (+c8)"
        )
    for name in layers:
        check_scale(name, float(scales.get(name, math.nan)))
    spare = f"model.layers.{len(layers)}.self_attn"
    if strays := sorted(scales.keys() - layers.keys() - {spare}):
        raise PortError(
            f"a kv_scale is given for {strays[0]}, and this model's attentions are {next(iter(layers))} to "
            f"{list(layers)[-1]}"
        )
    for name, layer in layers.items():
        layer.kv_scale.fill_(float(scales[name]))


@torch.no_grad()
def share_kv_scales(model: nn.Module, twin: nn.Module) -> None:
    """A twin over the same weights has the same scales, where both have an int8 cache."""
    mine = int8_attentions(model)
    for name, layer in int8_attentions(twin).items():
        if name in mine:
            layer.kv_scale.copy_(mine[name].kv_scale)


def make_attention(ctx: BuildContext) -> ExpandedAttention | LowRankAttention:
    """The attention of the plan."""
    if ctx.plan.kv_cache_dtype == "int8":
        return C8Attention(ctx)
    return PrologAttention(ctx) if ctx.plan.mla_prolog else make_paged_attention(ctx)

"""What absorbed attention does before its scores, in one launch: npu_mla_prolog_v3 stands
for both down-projections, their norms, the queries' up-projection with W_UK behind it,
both rotations and the writes into the paged cache.

The operator has matrices as [in, out], on an NPU in FRACTAL_NZ, rotary channels in pairs,
and DeepSeek-V3's sizes. `lay_out` makes them of the parameters before the first cache:
a matrix of those sizes keeps one memory, of which its parameter becomes a view; a smaller
model gets wider copies, as paged_attention.py explains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..errors import PortError
from .attention import StepInputs, attentions
from .cache import Cache
from .context import BuildContext
from .linear import Linear
from .paged_attention import LATENT, ROTARY, PagedAttention
from .paged_cache import PagedCache


class PrologAttention(PagedAttention):
    """Ported: PagedAttention whose cached steps begin with one operator. Prompts go the way
    they went: npu_kv_rmsnorm_rope_cache_v2 writes their rows."""

    dq: Tensor  # [H, Rq]
    uq_qr: Tensor  # [Rq, N (Dn + 64)]
    uk: Tensor  # [N, Dn, 512]
    dkv_kr: Tensor  # [H, 512 + 64]
    gamma: Tensor  # [512]
    dq_scale: Tensor | None  # of int8 each [1, out]
    uq_qr_scale: Tensor | None
    dkv_kr_scale: Tensor | None

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__(ctx)
        require_prolog(
            self.config.q_lora_rank, torch.device(ctx.device).type, ctx.dtype
        )
        scales = "dq_scale", "uq_qr_scale", "dkv_kr_scale"
        for name in ("dq", "uq_qr", "uk", "dkv_kr", "gamma", *scales):
            self.register_buffer(name, None, persistent=False)
        self.made_of: list[tuple[int, int]] = []
        self.mla_prolog: Callable[..., Any] | None = None  # in place of the operator

    def forward(
        self, hidden: Tensor, inputs: StepInputs, cache: Cache | None, layer: int
    ) -> Tensor:
        """hidden [B, S, H] -> [B, S, H]; the new positions are added to the cache."""
        if cache is None or not (hidden.shape[1] == 1 or inputs.verify):
            return super().forward(hidden, inputs, cache, layer)
        assert isinstance(cache, PagedCache)
        return self.cached(hidden, inputs, cache.buffers[layer])

    def cached(
        self, hidden: Tensor, inputs: StepInputs, buffers: list[Tensor]
    ) -> Tensor:
        """A cached step: hidden [B, S, H] -> [B, S, H]."""
        query, query_rope = self.prolog(hidden, inputs, buffers)
        return self.over_blocks(query, query_rope, inputs, buffers)

    def prolog(
        self, hidden: Tensor, inputs: StepInputs, buffers: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """hidden [B, S, H] -> queries over the latents [B, S, N, 512] and their rotary parts
        [B, S, N, 64]; the new rows are written at their slots."""
        query, query_rope, _ = self.launch(hidden, inputs, buffers)
        return query, query_rope

    def launch(
        self,
        hidden: Tensor,
        inputs: StepInputs,
        buffers: list[Tensor],
        **quantised: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`prolog`, and the scale of an int8 query [B S, N, 1]; quantised: arguments of the
        operator for the cache and the query."""
        assert inputs.paged is not None
        cos, sin = (
            self.widened(x).flatten(0, 2).contiguous()
            for x in self.angles(inputs, hidden.dtype)
        )
        tokens, of_tokens = hidden.flatten(0, 1).contiguous(), None
        if self.dq_scale is not None:
            tokens, scale = ops.npu_dynamic_quant(tokens)
            of_tokens = scale[:, None]
        k_cache, ckv_cache = buffers
        query, query_rope, of_query, *_ = (self.mla_prolog or ops.npu_mla_prolog_v3)(
            tokens,
            self.dq,
            self.uq_qr,
            self.uk,
            self.dkv_kr,
            self.q_a_layernorm.weight,
            self.gamma,
            sin,
            cos,
            ckv_cache,
            k_cache,
            cache_index=inputs.paged.index,
            dequant_scale_x=of_tokens,
            dequant_scale_w_dq=self.dq_scale,
            dequant_scale_w_uq_qr=self.uq_qr_scale,
            dequant_scale_w_dkv_kr=self.dkv_kr_scale,
            rmsnorm_epsilon_cq=self.q_a_layernorm.eps,
            rmsnorm_epsilon_ckv=self.kv_a_layernorm.eps,
            cache_mode="PA_BSND",
            weight_quant_mode=0 if of_tokens is None else 2,
            **quantised,
        )
        shape = hidden.shape[:2]
        return query.unflatten(0, shape), query_rope.unflatten(0, shape), of_query

    # ---- the operator's matrices -----------------------------------------------------

    @torch.no_grad()
    def lay_out(self, name: str = "") -> None:
        """Make them, unless they are made of these very parameters; `name`: of this
        attention, for errors."""
        if self.made_of == self.marks():
            return
        c = self.config
        turns = c.rope_interleave and c.qk_rope_head_dim == ROTARY
        fits = turns and c.kv_lora_rank == LATENT
        for name, layer, widen in (
            ("dq", self.q_a_proj, None),
            ("uq_qr", self.q_b_proj, None if turns else self.queries_widened),
            ("dkv_kr", self.kv_a_proj_with_mqa, None if fits else self.rows_widened),
        ):
            setattr(self, name, _in_out(layer, widen))
            if layer.weight_scale is not None:
                scale = layer.weight_scale.data
                wide = scale if widen is None else widen(scale)
                setattr(self, f"{name}_scale", wide.t().contiguous())
        fill = LATENT - self.config.kv_lora_rank
        w_k, gamma = self.kv_b_proj_w_k, self.kv_a_layernorm.weight
        self.uk = F.pad(w_k, (0, fill)) if fill else w_k.data
        self.gamma = F.pad(gamma, (0, fill)) if fill else gamma.data
        self.made_of = self.marks()

    def marks(self) -> list[tuple[int, int]]:
        """Of what they are made of: other values have others, and the same ones in other
        memory."""
        kept = self.kv_a_proj_with_mqa, self.kv_a_layernorm
        layers = self.q_a_proj, self.q_b_proj, *kept
        held = [p for layer in layers for p in layer.parameters()]
        return [(p.data_ptr(), p._version) for p in (self.kv_b_proj_w_k, *held)]

    def queries_widened(self, rows: Tensor) -> Tensor:
        """Outputs of q_b_proj [N (Dn + Dr), *] -> [N (Dn + 64), *], rotary channels in pairs."""
        c = self.config
        heads = rows.unflatten(0, (self.heads, -1))
        nope, rotary = heads.split([c.qk_nope_head_dim, c.qk_rope_head_dim], 1)
        return torch.cat((nope, self.pairs_widened(rotary, 1)), 1).flatten(0, 1)

    def rows_widened(self, rows: Tensor) -> Tensor:
        """Outputs of kv_a_proj_with_mqa [R + Dr, *] -> [512 + 64, *]."""
        c = self.config
        latent, rotary = rows.split([c.kv_lora_rank, c.qk_rope_head_dim], 0)
        repeated = (latent,) * (LATENT // c.kv_lora_rank)
        return torch.cat((*repeated, self.pairs_widened(rotary, 0)), 0)

    def pairs_widened(self, rotary: Tensor, dim: int) -> Tensor:
        """Rotary channels along `dim`, as pairs and filled with zeros to 64."""
        if not self.config.rope_interleave:
            halves = rotary.unflatten(dim, (2, -1))
            rotary = halves.transpose(dim, dim + 1).flatten(dim, dim + 1)
        fill = [*rotary.shape]
        fill[dim] = ROTARY - fill[dim]
        return torch.cat((rotary, rotary.new_zeros(fill)), dim)


def _in_out(layer: Linear, widen: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The operator's matrix [in, out] of a layer, in FRACTAL_NZ on an NPU. Where nothing is
    widened it has the parameter's memory: the parameter becomes a view of it, and the layer
    multiplies by it; with weight_format 'nz' it is the parameter."""
    weight = layer.weight
    if layer.nz and widen is None:
        return weight.data
    rows = ops.npu_format_cast(weight.data, ops.ND).t() if layer.nz else weight.data
    laid = (rows if widen is None else widen(rows)).t().contiguous()
    made = ops.fractal_nz(laid, "mla_prolog's matrices")
    if widen is None:
        layer.laid, weight.data = made, made.t()
    return made


def lay_out(model: nn.Module) -> None:
    """What the operator wants of every attention's weights, when they are there."""
    for name, module in attentions(model).items():
        if isinstance(module, PrologAttention):
            module.lay_out(name)


def require_prolog(rank: int | None, device: str, dtype: torch.dtype) -> None:
    """PortError where the operator does not exist for this model."""
    if rank is None:
        raise PortError(
            "mla_prolog: npu_mla_prolog_v3 takes queries of low rank, and config.json has no q_lora_rank: "
            "leave +mla_prolog (PortPlan.mla_prolog) out"
        )
    if device == "npu" and dtype != torch.bfloat16:
        raise PortError(
            f"mla_prolog: npu_mla_prolog_v3 computes in bfloat16, not {str(dtype).removeprefix('torch.')}: "
            "choose bfloat16, or leave +mla_prolog (PortPlan.mla_prolog) out"
        )

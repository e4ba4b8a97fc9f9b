"""Arithmetic and bytes of a piece of work, counted without doing it: shapes alone decide them.

Everything runs on torch's meta device, so that the published sizes (128 heads, 128k positions) cost
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..config import DeepseekV3Config
from ..errors import PortError
from ..model.attention import ATTENTION, ExpandedAttention, LowRankAttention, attend
from ..model.context import BuildContext
from ..ops.cpu import plain_products
from ..plan import PortPlan

# what the cache holds, and how the queries meet it
FORMS = ("expanded", "latent, absorbed", "latent, expanded again")


def _fused_attention(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


# torch counts the fused kernels of GPUs, and left the CPU's out
_LEFT_OUT = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused_attention}


def count_flops(fn: Callable[[], object]) -> dict[str, int]:
    """Floating-point operations of the matrix products that `fn` does, by operator; 2 for a
    multiply and an add. Fused attention counts every pair of positions, causal or not."""
    counting = FlopCounterMode(display=False, custom_mapping=_LEFT_OUT)
    with torch.no_grad(), plain_products(), counting as counter:
        fn()
    return {
        str(op).removeprefix("aten."): n for op, n in counter.get_flop_counts()["Global"].items()
    }


@dataclass(frozen=True)
class AttentionCost:
    """One layer's attention between the projections: scores, softmax and values, with what expands
    or absorbs."""

    form: str
    queries: int
    context: int
    flops: int
    cache_bytes: int  # keys and values, or latent rows, read for one sequence
    weight_bytes: int  # kv_b_proj, or its two halves

    @property
    def intensity(self) -> float:
        """FLOPs for each byte that must be read."""
        return self.flops / (self.cache_bytes + self.weight_bytes)


def attention_cost(
    config: DeepseekV3Config,
    form: str,
    queries: int = 1,
    context: int = 4096,
    dtype: torch.dtype = torch.bfloat16,
) -> AttentionCost:
    """Cost of `queries` new tokens against `context` positions, themselves among them, for one
    sequence.

    form, one of FORMS: "expanded" caches every head's keys and values and expands the new rows only
    (upstream), "latent, absorbed" caches latent rows and turns queries and outputs, "latent,
    expanded again" caches latent rows and makes keys and values of all of them at every call. The
    causal mask is not used to save anything.
    """
    if form not in FORMS:
        raise PortError(f"unknown form {form!r}; it can be {', '.join(FORMS)}")
    if not 1 <= queries <= context:
        raise PortError(f"queries must lie between 1 and the context {context}, not {queries}")
    c = config
    plan = PortPlan.upstream() if form == "expanded" else PortPlan.with_steps("mla_low_rank")
    module = ATTENTION[plan.attention](BuildContext(c, plan, device="meta", dtype=dtype))

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    heads = c.num_attention_heads
    q_nope, q_rope = (
        empty(1, heads, queries, c.qk_nope_head_dim),
        empty(1, heads, queries, c.qk_rope_head_dim),
    )
    mask = torch.empty(1, 1, queries, context, device="meta")
    if isinstance(module, ExpandedAttention):
        k, v = empty(1, heads, context, c.qk_head_dim), empty(1, heads, context, c.v_head_dim)
        cached, weights, new = (
            k.nbytes + v.nbytes,
            [module.kv_b_proj.weight],
            empty(1, queries, c.kv_lora_rank),
        )
        counts = count_flops(
            lambda: (
                module.kv_b_proj(new),
                attend(torch.cat((q_nope, q_rope), -1), k, v, mask, module.scale),
            )
        )
    else:
        assert isinstance(module, LowRankAttention)
        rows = empty(1, 1, context, c.kv_lora_rank + c.qk_rope_head_dim)
        inner = module.absorbed if form == "latent, absorbed" else module.expanded
        cached, weights = rows.nbytes, [module.kv_b_proj_w_k, module.kv_b_proj_w_v]
        counts = count_flops(lambda: inner(q_nope, q_rope, rows, mask))
    return AttentionCost(
        form, queries, context, sum(counts.values()), cached, sum(w.nbytes for w in weights)
    )

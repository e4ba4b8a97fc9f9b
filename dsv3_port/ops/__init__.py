"""NPU operators under torch_npu's names, called as `ops.npu_rms_norm(...)`: one file a family, an
operator's check and meaning side by side (`table` says what each is). `products` has the products
that are no NPU operator of their own, and says which form of them runs on which device."""

from .activation import npu_silu, npu_silu_, npu_swiglu
from .block_attention import lengths_may_be_a_tensor, paged_attention, write_slots
from .cache import (
    npu_kv_rmsnorm_rope_cache,
    npu_scatter_nd_update,
    npu_scatter_nd_update_,
    scatter_update,
    scatter_update_,
)
from .fused_attention import npu_fused_infer_attention_score
from .fused_attention_v2 import npu_fused_infer_attention_score_v2
from .grouped_matmul import npu_grouped_matmul
from .kv_cache_v2 import (
    npu_kv_rmsnorm_rope_cache_v2,
    npu_kv_rmsnorm_rope_cache_v2_functional,
)
from .matmul import npu_transpose_batchmatmul
from .memory import ND, fractal_nz, npu_format_cast, npu_prefetch, storage_format
from .mindspeed import npu_gmm, npu_gmm_v2
from .mla_prolog import npu_mla_prolog_v3, npu_mla_prolog_v3_functional
from .moe_combine import npu_moe_finalize_routing
from .moe_dispatch import (
    npu_moe_compute_expert_tokens,
    npu_moe_init_routing,
    npu_moe_init_routing_v2,
)
from .moe_gating import npu_moe_gating_top_k
from .norm import npu_add_rms_norm, npu_add_rms_norm_cast, npu_rms_norm
from .paged_cache import npu_scatter_pa_kv_cache, npu_scatter_pa_kv_cache_functional
from .products import (
    attention,
    causal_attention,
    decode_attention,
    head_matmul,
    linear,
    prompt_without_mask,
    shared_scores,
)
from .quant_fusions import npu_add_rms_norm_dynamic_quant, npu_dequant_swiglu_quant
from .quant_matmul import npu_quant_matmul
from .quantise import npu_dynamic_quant, npu_quantize, npu_trans_quant_param
from .rope import npu_apply_rotary_pos_emb, npu_interleave_rope, npu_rotary_mul
from .split_attention import require_split_attention
from .table import OPERATORS
from .token_permute import (
    npu_moe_gating_top_k_softmax,
    npu_moe_token_permute,
    npu_moe_token_unpermute,
)

__all__ = [
    "ND",
    "OPERATORS",
    "attention",
    "causal_attention",
    "decode_attention",
    "fractal_nz",
    "head_matmul",
    "lengths_may_be_a_tensor",
    "linear",
    "npu_add_rms_norm",
    "npu_add_rms_norm_cast",
    "npu_add_rms_norm_dynamic_quant",
    "npu_apply_rotary_pos_emb",
    "npu_dequant_swiglu_quant",
    "npu_dynamic_quant",
    "npu_format_cast",
    "npu_fused_infer_attention_score",
    "npu_fused_infer_attention_score_v2",
    "npu_gmm",
    "npu_gmm_v2",
    "npu_grouped_matmul",
    "npu_interleave_rope",
    "npu_kv_rmsnorm_rope_cache",
    "npu_kv_rmsnorm_rope_cache_v2",
    "npu_kv_rmsnorm_rope_cache_v2_functional",
    "npu_mla_prolog_v3",
    "npu_mla_prolog_v3_functional",
    "npu_moe_compute_expert_tokens",
    "npu_moe_finalize_routing",
    "npu_moe_gating_top_k",
    "npu_moe_gating_top_k_softmax",
    "npu_moe_init_routing",
    "npu_moe_init_routing_v2",
    "npu_moe_token_permute",
    "npu_moe_token_unpermute",
    "npu_prefetch",
    "npu_quant_matmul",
    "npu_quantize",
    "npu_rms_norm",
    "npu_rotary_mul",
    "npu_scatter_nd_update",
    "npu_scatter_nd_update_",
    "npu_scatter_pa_kv_cache",
    "npu_scatter_pa_kv_cache_functional",
    "npu_silu",
    "npu_silu_",
    "npu_swiglu",
    "npu_trans_quant_param",
    "npu_transpose_batchmatmul",
    "paged_attention",
    "require_split_attention",
    "scatter_update",
    "scatter_update_",
    "prompt_without_mask",
    "shared_scores",
    "storage_format",
    "write_slots",
]

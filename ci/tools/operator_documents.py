"""The Chinese documents of each NPU operator: torch_npu's page, and CANN's of the aclnn function below it.

Paths as they were in Ascend/op-plugin 517f2e7d (2026-08-21) and, of CANN, in ops-transformer and ops-nn in
November 2026; links lead to the newest state of each. An operator without a page of its own has none here.
"""

from __future__ import annotations

from urllib.parse import quote

TORCH_NPU = "https://gitcode.com/Ascend/op-plugin/blob/master/docs/zh/custom_APIs/torch_npu/{}.md"
CANN = "https://gitcode.com/cann/{}/blob/master/{}.md"
# pages that are not called torch_npu-OPERATOR
PAGES = {
    "npu_apply_rotary_pos_emb": "torch_npu-apply_rotary_pos_emb",
    "npu_format_cast": "（beta）torch_npu-npu_format_cast",
    "npu_rms_norm": "（beta）torch_npu-npu_rms_norm",
    "npu_silu": "（beta）torch_npu-npu_silu",
    "npu_silu_": "（beta）torch_npu-npu_silu",
    "npu_swiglu": "（beta）torch_npu-npu_swiglu",
}
# in that state of op-plugin without a page
NO_PAGE = {
    *("npu_add_rms_norm_cast", "npu_gmm", "npu_gmm_v2", "npu_moe_token_permute"),
    *("npu_moe_token_unpermute", "npu_kv_rmsnorm_rope_cache_v2"),
    *("npu_kv_rmsnorm_rope_cache_v2_functional", "npu_scatter_pa_kv_cache_functional"),
    "npu_mla_prolog_v3_functional",
}
# operator -> repository, place of its aclnn page
ACLNN = {
    "npu_add_rms_norm": ("ops-nn", "norm/add_rms_norm/docs/aclnnAddRmsNorm"),
    "npu_add_rms_norm_cast": ("ops-nn", "norm/add_rms_norm_cast/docs/aclnnAddRmsNormCast"),
    "npu_add_rms_norm_dynamic_quant": (
        "ops-nn",
        "norm/add_rms_norm_dynamic_quant/docs/aclnnAddRmsNormDynamicQuant",
    ),
    "npu_apply_rotary_pos_emb": (
        "ops-transformer",
        "posembedding/apply_rotary_pos_emb/docs/aclnnApplyRotaryPosEmb",
    ),
    "npu_dequant_swiglu_quant": (
        "ops-nn",
        "quant/dequant_swiglu_quant/docs/aclnnDequantSwigluQuant",
    ),
    "npu_dynamic_quant": ("ops-nn", "quant/dynamic_quant/docs/aclnnDynamicQuant"),
    "npu_fused_infer_attention_score": (
        "ops-transformer",
        "attention/fused_infer_attention_score/docs/aclnnFusedInferAttentionScore",
    ),
    "npu_grouped_matmul": ("ops-transformer", "gmm/grouped_matmul/docs/aclnnGroupedMatmulV5"),
    "npu_interleave_rope": (
        "ops-transformer",
        "posembedding/interleave_rope/docs/aclnnInterleaveRope",
    ),
    "npu_kv_rmsnorm_rope_cache": (
        "ops-transformer",
        "posembedding/kv_rms_norm_rope_cache/docs/aclnnKvRmsNormRopeCache",
    ),
    "npu_kv_rmsnorm_rope_cache_v2": (
        "ops-transformer",
        "posembedding/kv_rms_norm_rope_cache/docs/aclnnKvRmsNormRopeCacheV2",
    ),
    "npu_mla_prolog_v3": (
        "ops-transformer",
        "attention/mla_prolog_v3/docs/aclnnMlaPrologV3WeightNz",
    ),
    "npu_moe_compute_expert_tokens": (
        "ops-transformer",
        "moe/moe_compute_expert_tokens/docs/aclnnMoeComputeExpertTokens",
    ),
    "npu_moe_finalize_routing": (
        "ops-transformer",
        "moe/moe_finalize_routing_v2/docs/aclnnMoeFinalizeRoutingV4",
    ),
    "npu_moe_gating_top_k": (
        "ops-transformer",
        "moe/moe_gating_top_k/docs/aclnnMoeGatingTopK",
    ),
    "npu_moe_gating_top_k_softmax": (
        "ops-transformer",
        "moe/moe_gating_top_k_softmax/docs/aclnnMoeGatingTopKSoftmax",
    ),
    "npu_moe_init_routing": (
        "ops-transformer",
        "moe/moe_init_routing/docs/aclnnMoeInitRouting",
    ),
    "npu_moe_token_permute": (
        "ops-transformer",
        "moe/moe_token_permute/docs/aclnnMoeTokenPermute",
    ),
    "npu_moe_token_unpermute": (
        "ops-transformer",
        "moe/moe_token_unpermute/docs/aclnnMoeTokenUnpermute",
    ),
    "npu_quantize": ("ops-nn", "quant/quantize/docs/aclnnQuantize"),
    "npu_rms_norm": ("ops-nn", "norm/rms_norm/docs/aclnnRmsNorm"),
    "npu_rotary_mul": (
        "ops-transformer",
        "posembedding/rotary_position_embedding/docs/aclnnRotaryPositionEmbedding",
    ),
    "npu_swiglu": ("ops-nn", "activation/swi_glu/docs/aclnnSwiGlu"),
    "npu_transpose_batchmatmul": (
        "ops-nn",
        "matmul/transpose_batch_mat_mul/docs/aclnnTransposeBatchMatMul",
    ),
}


def page(operator: str) -> str:
    """The address of torch_npu's page of an operator; "" if it has none."""
    if operator in NO_PAGE:
        return ""
    return TORCH_NPU.format(quote(PAGES.get(operator, f"torch_npu-{operator}")))


def table(operators: list[str]) -> str:
    """The table of docs/ascend.md."""
    rows = ["| torch_npu | CANN |", "|---|---|"]
    for name in operators:
        ours, (repository, place) = page(name), ACLNN.get(name, ("", ""))
        if not ours and not place:
            continue
        first = f"[`{name}`]({ours})" if ours else f"`{name}`"
        function = place.rpartition("/")[2]
        second = f"[{function}]({CANN.format(repository, place)})" if place else "–"
        rows.append(f"| {first} | {second} |")
    return "\n".join(rows)

"""What GE's operators of the paged cache mean: the cache's update, the MLA prologue, the fused attention with lengths
as tensors, the batched matmul with permutations, and padding."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from .ge_table import GraphError, Results, ints, operator
from .operators import checked, host_kernel


@operator(
    "KvRmsNormRopeCache",
    "kv gamma cos sin index k_cache ckv_cache k_rope_scale? c_kv_scale? k_rope_offset? "
    "c_kv_offset? v?",
    writes="k_cache ckv_cache",
    epsilon=1e-5,
    cache_mode="Norm",
    is_output_kv=False,
)
def kv_rms_norm_rope_cache(*given: Any, **attributes: Any) -> Results:
    """Outputs k_cache and ckv_cache are the inputs of these names, written in place."""
    *tensors, k_scale, c_scale, k_offset, c_offset, v = given
    return list(
        checked("npu_kv_rmsnorm_rope_cache")(
            *tensors,
            k_rope_scale=k_scale,
            c_kv_scale=c_scale,
            k_rope_offset=k_offset,
            c_kv_offset=c_offset,
            v=v,
            **attributes,
        )
    )


@operator(
    "TransposeBatchMatMul",
    "x1 x2 bias? scale?",
    free=("enable_hf32",),
    perm_x1=[],
    perm_x2=[],
    perm_y=[],
    batch_split_factor=1,
)
def transpose_batch_matmul(
    x1: Tensor, x2: Tensor, bias: Tensor | None, scale: Tensor | None, **attributes: Any
) -> Tensor:
    given = {name: value if value != [] else None for name, value in attributes.items()}
    return checked("npu_transpose_batchmatmul")(x1, x2, bias=bias, scale=scale, **given)


@operator(
    "PadV3",
    "x paddings constant_values?",
    {"mode": "constant", "paddings_contiguous": True},
)
def pad(x: Tensor, paddings: Tensor, value: Tensor | None) -> Tensor:
    """paddings: before and after each dimension, the first dimension's first."""
    pairs = paddings.reshape(-1, 2).flip(0)
    return functional.pad(x, ints(pairs), value=0 if value is None else value.item())


# between the lengths and the rope inputs, in the definition's order
_FIRST = (
    "dequant_scale1? quant_scale1? dequant_scale2? quant_scale2? quant_offset2? antiquant_scale? "
    "antiquant_offset? block_table? query_padding_size? kv_padding_size? key_antiquant_scale? "
    "key_antiquant_offset? value_antiquant_scale? value_antiquant_offset? key_shared_prefix? "
    "value_shared_prefix? actual_shared_prefix_len?"
).split()
_LAST = (
    "key_rope_antiquant_scale? dequant_scale_query? learnable_sink? q_start_idx? kv_start_idx?"
).split()
# those that are known here, by PyTorch's names: of an int8 query over an int8 cache (absorbed MLA), or of a
# cache alone. PyTorch's scales of key and value are GE's "antiquant" ones, and the other ones are older
_KNOWN = {
    "block_table?": "block_table",
    "query_rope?": "query_rope",
    "key_rope?": "key_rope",
    "dequant_scale_query?": "dequant_scale_query",
    "key_antiquant_scale?": "dequant_scale_key",
    "key_antiquant_offset?": "dequant_offset_key",
    "value_antiquant_scale?": "dequant_scale_value",
    "value_antiquant_offset?": "dequant_offset_value",
}
_OTHERS = (*_FIRST, "query_rope?", "key_rope?", *_LAST)


@operator(
    "FusedInferAttentionScore",
    " ".join(
        (
            *("query", "key*", "value*", "pse_shift?", "atten_mask?"),
            *("actual_seq_lengths?", "actual_seq_lengths_kv?"),
            *_OTHERS,
        )
    ),
    {"antiquant_mode": 0, "pse_type": 0, "out_dtype": 0},
    key_antiquant_mode=0,
    value_antiquant_mode=0,
    query_quant_mode=0,
    num_heads=...,
    scale=1.0,
    pre_tokens=2147483647,
    next_tokens=2147483647,
    input_layout="BSH",
    num_key_value_heads=0,
    sparse_mode=0,
    inner_precise=0,
    block_size=0,
    softmax_lse_flag=False,
)
def fused_infer_attention_score(
    query: Tensor,
    key: list[Tensor],
    value: list[Tensor],
    pse_shift: Tensor | None,
    atten_mask: Tensor | None,
    q_lengths: Tensor | None,
    kv_lengths: Tensor | None,
    *others: Tensor | None,
    num_heads: int,
    scale: float,
    softmax_lse_flag: bool,
    key_antiquant_mode: int,
    value_antiquant_mode: int,
    **attributes: Any,
) -> Results:
    """Without sinks, shared prefixes and scales of the result. Lengths are read when the graph runs."""
    given = dict(zip(_OTHERS, others, strict=True))
    if any(x is not None for name, x in given.items() if name not in _KNOWN):
        raise GraphError("sinks, shared prefixes and scales of the result are not known here")
    if len(key) != 1 or len(value) != 1:
        raise GraphError("lists of keys are not known here")
    return list(
        checked("npu_fused_infer_attention_score_v2")(
            query,
            key[0],
            value[0],
            pse_shift=pse_shift,
            atten_mask=atten_mask,
            actual_seq_qlen=None if q_lengths is None else ints(q_lengths),
            actual_seq_kvlen=None if kv_lengths is None else ints(kv_lengths),
            num_query_heads=num_heads,
            softmax_scale=scale,
            return_softmax_lse=softmax_lse_flag,
            key_quant_mode=key_antiquant_mode,
            value_quant_mode=value_antiquant_mode,
            **{torch_name: given[name] for name, torch_name in _KNOWN.items()},
            **attributes,
        )
    )


@operator(
    "MlaPrologV3",
    "token_x weight_dq weight_uq_qr weight_uk weight_dkv_kr rmsnorm_gamma_cq rmsnorm_gamma_ckv rope_sin "
    "rope_cos kv_cache kr_cache cache_index? dequant_scale_x? dequant_scale_w_dq? dequant_scale_w_uq_qr? "
    "dequant_scale_w_dkv_kr? quant_scale_ckv? quant_scale_ckr? smooth_scales_cq? actual_seq_len? "
    "k_nope_clip_alpha?",
    writes="kv_cache kr_cache",
    written_at=2,
    rmsnorm_epsilon_cq=1e-5,
    rmsnorm_epsilon_ckv=1e-5,
    cache_mode="PA_BSND",
    query_norm_flag=False,
    tile_size=128,
    qc_qr_scale=1.0,
    kc_scale=1.0,
    weight_quant_mode=0,
    kv_cache_quant_mode=0,
    query_quant_mode=0,
    ckvkr_repo_mode=0,
    quant_scale_repo_mode=0,
)
def mla_prolog(*given: Tensor | None, **attributes: Any) -> Results:
    """Seven outputs, the caches among them as the third and fourth: PyTorch's third is GE's fifth."""
    inputs = [None if x is None else x.contiguous() for x in given[:9]]
    kv_cache, kr_cache = given[9:11]
    names = (
        "cache_index dequant_scale_x dequant_scale_w_dq dequant_scale_w_uq_qr dequant_scale_w_dkv_kr "
        "quant_scale_ckv quant_scale_ckr smooth_scales_cq actual_seq_len k_nope_clip_alpha"
    ).split()
    optional = dict(zip(names, given[11:], strict=True))
    operator = host_kernel("npu_mla_prolog_v3")
    assert operator is not None and kv_cache is not None and kr_cache is not None
    query, query_rope, *rest = operator(*inputs, kv_cache, kr_cache, **optional, **attributes)
    return [query, query_rope, kv_cache, kr_cache, *rest]

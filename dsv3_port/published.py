"""What a config.json of this family may say: keys that change the arithmetic, keys that do not, and
the two forms of its rope settings.

A key that this package does not compute is refused by name, one that it does not know is handed
back to be warned of. What a file leaves out is what transformers 5.23 takes there
(models/deepseek_v3/configuration_deepseek_v3.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .errors import PortError

FP8_BLOCK = (128, 128)
COMPRESSED_TENSORS = "compressed-tensors"
DEFAULTS: dict[str, Any] = {
    "q_lora_rank": 1536,
    "n_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 3,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
# what other members of the family compute and this package does not: the values that leave it out
_ONLY: dict[str, tuple[Any, ...]] = {
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "moe_layer_freq": (1,),
    "ep_size": (1,),
    "index_topk": (),  # DeepSeek-V3.2's sparse attention
    "index_n_heads": (),
    "index_head_dim": (),
    "sliding_window": (),
    "use_sliding_window": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logit_scale": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "attention_multiplier": (),
    "partial_rotary_factor": (1, 1.0),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "alibi": (False,),
    "n_hash_layers": (0,),
    "hc_mult": (1,),
    "compress_ratios": (),
    "pruned_heads": ({},),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
}
# nothing here changes a forward pass
_HARMLESS = frozenset(
    """architectures auto_map model_type transformers_version torch_dtype dtype _name_or_path
    name_or_path use_cache initializer_range attention_dropout aux_loss_alpha seq_aux pretraining_tp
    router_aux_loss_coef output_router_logits output_attentions output_hidden_states return_dict
    return_dict_in_generate chunk_size_feed_forward id2label label2id num_labels problem_type
    classifier_dropout torchscript tokenizer_class prefix finetuning_task task_specific_params
    sep_token_id decoder_start_token_id cross_attention_hidden_size is_decoder tie_encoder_decoder
    use_bfloat16 tf_legacy_loss experts_implementation base_model_tp_plan base_model_pp_plan
    base_model_ep_plan unsloth_version unsloth_fixed quantization_config attn_implementation
    _attn_implementation _attn_implementation_autoset num_mtp_layers""".split()
)
_ROPE = {
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "truncate",
}
_QUANTIZATION = {
    "quant_method",
    "fmt",
    "weight_block_size",
    "activation_scheme",
    "scale_fmt",
    "modules_to_not_convert",
    "ignored_layers",
    "dequantize",
}


def keywords(values: dict[str, Any], own: set[str]) -> tuple[dict[str, Any], list[str]]:
    """The keywords of a DeepseekV3Config, whose fields are `own`, and the keys nobody knows."""
    kind = values.get("model_type", "deepseek_v3")
    if kind != "deepseek_v3":
        raise PortError(f"model_type is {kind!r}; this package ports 'deepseek_v3' only")
    for name, allowed in _ONLY.items():
        _refuse_other(values, name, partial(_among, allowed))
    _refuse_other(values, "layer_types", lambda v: _all(v, "full_attention"))
    heads = values.get("num_attention_heads")
    for name, want in (
        ("num_key_value_heads", heads),  # latent attention has one kv_b_proj row block a head
        ("head_dim", values.get("qk_rope_head_dim")),
        ("qk_head_dim", _sum(values.get("qk_nope_head_dim"), values.get("qk_rope_head_dim"))),
        ("num_local_experts", values.get("n_routed_experts", values.get("num_local_experts"))),
    ):
        _refuse_other(values, name, partial(_is_or_unknown, want), f"here {want!r}")
    checked = {*_ONLY, "layer_types", "num_key_value_heads", "head_dim", "qk_head_dim"}
    checked |= {"num_local_experts", "rope_scaling", "rope_parameters", "rope_theta"}
    found = DEFAULTS | {k: v for k, v in values.items() if k in own}
    found |= _rope(values) | _quantization(values.get("quantization_config"))
    dtype = values.get("torch_dtype") or values.get("dtype") or "bfloat16"
    found["torch_dtype"] = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype
    if isinstance(found.get("eos_token_id"), list):
        found["eos_token_id"] = tuple(found["eos_token_id"])
    if "num_local_experts" in values and "n_routed_experts" not in values:
        found["n_routed_experts"] = values["num_local_experts"]
    return found, sorted(set(values) - own - checked - _HARMLESS)


def _same(value: Any, want: Any) -> bool:
    """Equal, and of one kind: 1 is not True, "false" is not False."""
    return bool(value == want) and isinstance(value, bool) == isinstance(want, bool)


def _among(allowed: tuple[Any, ...], value: Any) -> bool:
    return any(_same(value, x) for x in allowed)


def _is_or_unknown(want: Any, value: Any) -> bool:
    return want is None or _same(value, want)


def _all(value: Any, want: Any) -> bool:
    return isinstance(value, list) and all(_same(v, want) for v in value)


def _sum(a: Any, b: Any) -> Any:
    return a + b if isinstance(a, int) and isinstance(b, int) else None


def _refuse_other(
    values: dict[str, Any], name: str, right: Callable[[Any], bool], what: str = ""
) -> None:
    value = values.get(name)
    if value is None or right(value):
        return
    only = _ONLY.get(name, ())
    says = what or (f"{only[0]!r}" if only else "no such thing")
    raise PortError(f"{name} is {value!r}; DeepSeek-V3 has {says} and nothing else is supported")


def _rope(values: dict[str, Any]) -> dict[str, Any]:
    """rope_theta and yarn settings, from `rope_scaling` (published) or `rope_parameters`
    (transformers 5), which wins."""
    found: dict[str, Any] = {}
    rope = values.get("rope_parameters")
    rope = values.get("rope_scaling") if rope is None else rope
    if rope is not None and not isinstance(rope, dict):
        raise PortError(f"rope_scaling is {rope!r}, not an object")
    settings = dict(rope or {})
    theta = settings.pop("rope_theta", None)
    theta = values.get("rope_theta") if theta is None else theta
    if theta is not None:
        found["rope_theta"] = theta
    kinds = {settings.pop(k) for k in ("rope_type", "type") if isinstance(settings.get(k), str)}
    kind = kinds.pop() if len(kinds) == 1 else ("default" if not kinds else kinds)
    if kind not in ("default", "yarn"):
        raise PortError(f"rope type {kind!r}; DeepSeek-V3 uses 'yarn' or none")
    _refuse_other(settings, "partial_rotary_factor", lambda v: _same(v, 1) or _same(v, 1.0))
    settings.pop("partial_rotary_factor", None)
    if kind == "default":
        if {k for k, v in settings.items() if v is not None}:
            raise PortError(
                f"rope_scaling has {sorted(settings)} and no type; 'yarn' or none is read"
            )
        return found
    unknown = sorted(set(settings) - _ROPE)
    if unknown:
        raise PortError(f"rope_scaling has {unknown[0]!r}, which YaRN does not")
    chosen = {k: v for k, v in settings.items() if v is not None}
    if "original_max_position_embeddings" not in chosen:
        raise PortError("rope_scaling lacks original_max_position_embeddings")
    if "factor" not in chosen:
        raise PortError("rope_scaling lacks factor")
    return found | {"rope_scaling": chosen}


# of compressed-tensors, what this package computes: W8A8 with a scale a channel and a token
_EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
_W8A8: dict[str, dict[str, Any]] = {
    "weights": _EIGHT_BITS | {"strategy": "channel", "dynamic": False},
    "input_activations": _EIGHT_BITS | {"strategy": "token", "dynamic": True},
}


def _check_w8a8(q: dict[str, Any]) -> None:
    """PortError, with its place, for a setting of compressed-tensors that is not W8A8."""

    def require(place: str, found: Any, want: Any) -> None:
        if not _same(found, want):
            raise PortError(f"quantization_config.{place} is {found!r}; {want!r} is read")

    require("format", q.get("format"), "int-quantized")
    require("kv_cache_scheme", q.get("kv_cache_scheme"), None)
    groups = q.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise PortError(f"quantization_config.config_groups is {groups!r}; one group is read")
    ignore = q.get("ignore") or []
    if not isinstance(ignore, list) or not all(isinstance(word, str) for word in ignore):
        raise PortError(f"quantization_config.ignore is {ignore!r}, not a list of modules")
    ((name, group),) = groups.items()
    at = f"config_groups.{name}"
    if not isinstance(group, dict):
        raise PortError(f"quantization_config.{at} is {group!r}, not an object")
    require(f"{at}.targets", group.get("targets"), ["Linear"])
    require(f"{at}.output_activations", group.get("output_activations"), None)
    for kind, wanted in _W8A8.items():
        settings = group.get(kind)
        if not isinstance(settings, dict):
            raise PortError(f"quantization_config.{at}.{kind} is {settings!r}, not an object")
        for key, want in wanted.items():
            require(f"{at}.{kind}.{key}", settings.get(key), want)
        for key in ("group_size", "block_structure", "actorder"):
            require(f"{at}.{kind}.{key}", settings.get(key), None)


def _quantization(q: Any) -> dict[str, Any]:
    if q is None or q == {}:
        return {}
    if not isinstance(q, dict):
        raise PortError(f"quantization_config is {q!r}, not an object")
    if q.get("quant_method") == COMPRESSED_TENSORS:
        _check_w8a8(q)
        return {}  # which tensors are of int8 is read where they are (weights/int8_formats.py)
    block = q.get("weight_block_size") or list(FP8_BLOCK)
    method, form = q.get("quant_method"), q.get("fmt", "e4m3")
    if method != "fp8" or form != "e4m3" or block != list(FP8_BLOCK):
        raise PortError(
            f"quantization_config {method!r}/{form!r} with blocks {block}: only the published form is "
            f"read (fp8, e4m3, blocks of {FP8_BLOCK})"
        )
    if q.get("activation_scheme", "dynamic") != "dynamic":
        raise PortError(f"activation_scheme is {q['activation_scheme']!r}; only 'dynamic' is read")
    unknown = sorted(set(q) - _QUANTIZATION)
    if unknown:
        raise PortError(f"quantization_config has {unknown[0]!r}, which is not known")
    kept = [*(q.get("modules_to_not_convert") or []), *(q.get("ignored_layers") or [])]
    return {"fp8": True, "unconverted": tuple(kept)}

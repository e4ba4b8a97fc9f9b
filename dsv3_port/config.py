"""DeepSeek-V3's configuration: read from a published config.json, from transformers 5's form, or
from a preset.

Letters used in shape comments everywhere in this package:
B batch, S sequence, L cache length, T tokens (B*S), H hidden, N heads, D head dim (Dn without
position, Dr rotary, Dv value), E experts, K experts per token, G expert groups, I intermediate
width, R rank (low-rank width), V vocabulary, W world size.

Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 4.2, and the published config.json.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import PortError
from .presets import SIZES

FP8_BLOCK = (128, 128)


@dataclass(frozen=True)
class RopeScaling:
    """YaRN, as in config.json's `rope_scaling` (arXiv 2309.00071; DeepSeek-V2 report, section
    3.1.4)."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    @property
    def softmax_mscale(self) -> float:
        """Factor on the attention scale: (0.1 * mscale_all_dim * ln(factor) + 1) squared."""
        return yarn_mscale(self.factor, self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    @property
    def cos_sin_scale(self) -> float:
        """Factor on cos and sin; 1 for the published model, where both mscales are equal."""
        if self.mscale and self.mscale_all_dim:
            return yarn_mscale(self.factor, self.mscale) / yarn_mscale(
                self.factor, self.mscale_all_dim
            )
        return yarn_mscale(self.factor, 1.0)


def yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


@dataclass(frozen=True)
class DeepseekV3Config:
    """What the model code needs to know; field names are those of the published config.json."""

    vocab_size: int
    hidden_size: int  # H
    intermediate_size: int  # I of the dense layers
    moe_intermediate_size: int  # I of one routed expert
    num_hidden_layers: int
    num_attention_heads: int  # N
    kv_lora_rank: int  # R
    qk_nope_head_dim: int  # Dn
    qk_rope_head_dim: int  # Dr
    v_head_dim: int  # Dv
    n_routed_experts: int  # E
    num_experts_per_tok: int  # K
    q_lora_rank: int | None = None
    n_shared_experts: int = 1
    n_group: int = 1  # G
    topk_group: int = 1
    first_k_dense_replace: int = 0
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = True
    num_nextn_predict_layers: int = 0
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_interleave: bool = True
    max_position_embeddings: int = 4096
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    torch_dtype: str = "bfloat16"
    fp8: bool = False  # weights stored as e4m3 blocks with weight_scale_inv
    extra: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # unused keys

    def __post_init__(self) -> None:
        def check(ok: bool, what: str) -> None:
            if not ok:
                raise PortError(f"config: {what}")

        for name in (*_required(), "n_group", "topk_group"):
            value = getattr(self, name)
            check(
                isinstance(value, int) and value > 0,
                f"{name} must be a positive integer, not {value!r}",
            )
        check(
            self.qk_rope_head_dim % 2 == 0,
            f"qk_rope_head_dim must be even, not {self.qk_rope_head_dim}",
        )
        check(
            self.n_routed_experts % self.n_group == 0,
            f"n_routed_experts {self.n_routed_experts} is not a multiple of n_group {self.n_group}",
        )
        check(
            self.topk_group <= self.n_group,
            f"topk_group {self.topk_group} exceeds n_group {self.n_group}",
        )
        per_group = self.n_routed_experts // self.n_group
        check(
            self.num_experts_per_tok <= per_group * self.topk_group,
            f"num_experts_per_tok {self.num_experts_per_tok} exceeds the {per_group * self.topk_group} experts "
            f"that {self.topk_group} groups of {per_group} offer",
        )
        check(
            per_group >= 2,
            "a group needs two experts at least: its score is the sum of its two best",
        )
        check(
            0 <= self.first_k_dense_replace <= self.num_hidden_layers,
            f"first_k_dense_replace {self.first_k_dense_replace} is outside 0..{self.num_hidden_layers}",
        )

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """Scale of the attention scores; it stays this value after the low-rank absorb (D is not R
        + Dr)."""
        factor = self.rope_scaling.softmax_mscale if self.rope_scaling else 1.0
        return self.qk_head_dim**-0.5 * factor

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        ids = self.eos_token_id
        return () if ids is None else tuple(ids) if isinstance(ids, (tuple, list)) else (ids,)

    def is_moe(self, layer: int) -> bool:
        return layer >= self.first_k_dense_replace

    @classmethod
    def from_pretrained(cls, path: str | Path) -> DeepseekV3Config:
        """Read `config.json` of a checkpoint folder, in the published form or as transformers 5
        writes it."""
        file = Path(path) / "config.json"
        if not file.is_file():
            raise PortError(
                f"{file}: no such file; give the folder of a DeepSeek-V3 checkpoint (it holds config.json "
                "and *.safetensors)"
            )
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PortError(f"{file}: not readable as JSON: {error}") from error
        if not isinstance(values, dict):
            raise PortError(f"{file}: holds a {type(values).__name__}, not an object")
        try:
            return cls.from_dict(values)
        except PortError as error:
            raise PortError(f"{file}: {error}") from error

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DeepseekV3Config:
        values = dict(values)
        kind = values.get("model_type", "deepseek_v3")
        if kind != "deepseek_v3":
            raise PortError(f"model_type is {kind!r}; this package ports 'deepseek_v3' only")
        for name, only in (
            ("scoring_func", "sigmoid"),
            ("topk_method", "noaux_tc"),
            ("hidden_act", "silu"),
            ("attention_bias", False),
            ("moe_layer_freq", 1),
            ("ep_size", 1),
        ):
            if values.get(name, only) not in (only, None):
                raise PortError(
                    f"{name} is {values[name]!r}; DeepSeek-V3 has {only!r} and nothing else is supported"
                )
        theta, scaling, interleave = _rope(values)
        quantization = values.pop("quantization_config", None)
        fp8 = _check_quantization(quantization)
        dtype = values.pop("torch_dtype", None) or values.get("dtype") or "bfloat16"
        if isinstance(values.get("eos_token_id"), list):
            values["eos_token_id"] = tuple(values["eos_token_id"])
        apart = {"extra", "fp8", "rope_theta", "rope_scaling", "rope_interleave", "torch_dtype"}
        own = {f.name for f in dataclasses.fields(cls)} - apart
        missing = sorted(set(_required()) - set(values))
        if missing:
            raise PortError(f"missing {', '.join(missing)}")
        extra = {k: v for k, v in values.items() if k not in own}
        return cls(
            **{k: v for k, v in values.items() if k in own},
            rope_theta=theta,
            rope_scaling=scaling,
            rope_interleave=interleave,
            torch_dtype=str(dtype).removeprefix("torch."),
            fp8=fp8,
            extra=extra,
        )

    def to_dict(self) -> dict[str, Any]:
        """The published form of config.json (the names DeepSeek's own file uses)."""
        skip = ("extra", "fp8", "rope_scaling")
        values = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in skip
        }
        values |= {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "hidden_act": "silu",
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "attention_bias": False,
            "moe_layer_freq": 1,
            "num_key_value_heads": self.num_attention_heads,
            "rope_scaling": None,
        }
        if self.rope_scaling:
            values["rope_scaling"] = {"type": "yarn", **dataclasses.asdict(self.rope_scaling)}
        if self.fp8:
            values["quantization_config"] = {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": list(FP8_BLOCK),
            }
        return values

    def replace(self, **changes: Any) -> DeepseekV3Config:
        return dataclasses.replace(self, **changes)

    @classmethod
    def preset(cls, name: str) -> DeepseekV3Config:
        """One of PRESETS: `tiny` (the embedded model), `small`, `w1`, `w2`, `l`, `v3-671b`."""
        if name not in PRESETS:
            raise PortError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
        return PRESETS[name]


def _required() -> list[str]:
    """The sizes that have no default."""
    return [
        f.name
        for f in dataclasses.fields(DeepseekV3Config)
        if f.default is f.default_factory is dataclasses.MISSING
    ]


def _rope(values: dict[str, Any]) -> tuple[float, RopeScaling | None, bool]:
    """rope_theta, yarn settings and layout, from `rope_scaling` (published) or `rope_parameters`
    (transformers 5)."""
    rope = values.pop("rope_parameters", None)
    old = values.pop("rope_scaling", None)
    theta = values.pop("rope_theta", None)
    interleave = values.pop("rope_interleave", True)
    settings = dict(rope if rope is not None else old or {})
    theta = settings.get("rope_theta", theta if theta is not None else 10000.0)
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind == "default":
        return float(theta), None, bool(interleave)
    if kind != "yarn":
        raise PortError(f"rope type {kind!r}; DeepSeek-V3 uses 'yarn' or none")
    names = {f.name for f in dataclasses.fields(RopeScaling)}
    chosen = {k: v for k, v in settings.items() if k in names and v is not None}
    for needed in ("factor", "original_max_position_embeddings"):
        if needed not in chosen:
            raise PortError(f"rope_scaling lacks {needed}")
    return float(theta), RopeScaling(**chosen), bool(interleave)


def _check_quantization(q: dict[str, Any] | None) -> bool:
    if not q:
        return False
    block = tuple(q.get("weight_block_size") or FP8_BLOCK)
    if q.get("quant_method") != "fp8" or q.get("fmt", "e4m3") != "e4m3" or block != FP8_BLOCK:
        raise PortError(
            f"quantization_config {q.get('quant_method')!r}/{q.get('fmt')!r} with blocks {block}: only the "
            f"published form is read (fp8, e4m3, blocks of {FP8_BLOCK})"
        )
    return True


PRESETS = {
    name: DeepseekV3Config(**{**sizes, "rope_scaling": RopeScaling(**sizes["rope_scaling"])})
    for name, sizes in SIZES.items()
}

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
import math
import multiprocessing
import warnings
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from .errors import PortError
from .files import read_json
from .presets import SIZES
from .published import FP8_BLOCK, keywords
from .typed import told

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
# no model comes near the upper ends: they keep a damaged file from filling the memory
_Width = Annotated[int, Field(gt=0, le=1 << 20)]
_Count = Annotated[int, Field(gt=0, le=1 << 14)]
_Positive = Annotated[float, Field(gt=0, le=1e6)]
_Token = Annotated[int, Field(ge=0, le=1 << 24)]


@told
@dataclass(frozen=True, config=_STRICT)
class RopeScaling:
    """YaRN, as in config.json's `rope_scaling` (arXiv 2309.00071; DeepSeek-V2 report, section
    3.1.4), with the defaults that transformers takes for what is left out."""

    factor: Annotated[float, Field(ge=1, le=1e6)]
    original_max_position_embeddings: Annotated[int, Field(gt=0, le=1 << 30)]
    beta_fast: Annotated[float, Field(ge=0, le=1e6)] = 32.0
    beta_slow: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    mscale: Annotated[float, Field(ge=0, le=1e3)] | None = None
    mscale_all_dim: Annotated[float, Field(ge=0, le=1e3)] | None = None
    attention_factor: Annotated[float, Field(gt=0, le=1e3)] | None = None
    truncate: bool = True  # of the range between the two betas to whole pairs

    def __post_init__(self) -> None:
        for name in ("beta_fast", "beta_slow"):
            if 0 < getattr(self, name) < 1e-6:
                raise PortError(
                    f"config: {name} must be 0 or above 1e-6, not {getattr(self, name)}"
                )

    @property
    def softmax_mscale(self) -> float:
        """Factor on the attention scale: (0.1 * mscale_all_dim * ln(factor) + 1) squared."""
        return yarn_mscale(self.factor, self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    @property
    def cos_sin_scale(self) -> float:
        """Factor on cos and sin: attention_factor, or the ratio of the mscales where both are given;
        1 for the published model, where they are equal."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return yarn_mscale(self.factor, self.mscale) / yarn_mscale(
                self.factor, self.mscale_all_dim
            )
        return yarn_mscale(self.factor, 1.0)

    @property
    def rotations(self) -> tuple[float, float]:
        """(fast, slow): pairs that turn more often over the trained length keep their frequency,
        those that turn less often are stretched by the factor. 0 stands for the default."""
        return self.beta_fast or 32.0, self.beta_slow or 1.0


def yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


@told
@dataclass(frozen=True, config=_STRICT)
class DeepseekV3Config:
    """What the model code needs to know; field names are those of the published config.json."""

    vocab_size: Annotated[int, Field(gt=0, le=1 << 24)]
    hidden_size: _Width  # H
    intermediate_size: _Width  # I of the dense layers
    moe_intermediate_size: _Width  # I of one routed expert
    num_hidden_layers: Annotated[int, Field(gt=0, le=1000)]
    num_attention_heads: _Count  # N
    kv_lora_rank: _Width  # R
    qk_nope_head_dim: _Count  # Dn
    qk_rope_head_dim: _Count  # Dr
    v_head_dim: _Count  # Dv
    n_routed_experts: _Count  # E
    num_experts_per_tok: _Count  # K
    q_lora_rank: _Width | None = None
    n_shared_experts: Annotated[int, Field(ge=0, le=1024)] = 1
    n_group: _Count = 1  # G
    topk_group: _Count = 1
    first_k_dense_replace: Annotated[int, Field(ge=0)] = 0
    routed_scaling_factor: _Positive = 1.0
    norm_topk_prob: bool = True
    num_nextn_predict_layers: Annotated[int, Field(ge=0, le=100)] = 0
    rms_norm_eps: Annotated[float, Field(gt=0, le=0.1)] = 1e-6
    rope_theta: Annotated[float, Field(gt=1, le=1e12)] = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_interleave: bool = True
    max_position_embeddings: Annotated[int, Field(gt=0, le=1 << 30)] = 4096
    tie_word_embeddings: bool = False
    bos_token_id: _Token | None = None
    eos_token_id: _Token | tuple[_Token, ...] | None = None
    pad_token_id: _Token | None = None
    torch_dtype: str = "bfloat16"
    fp8: bool = False  # weights stored as e4m3 blocks with weight_scale_inv
    unconverted: tuple[str, ...] = ()  # modules that are not, in a checkpoint whose others are
    extra: dict[str, Any] = field(
        default_factory=dict, compare=False, repr=False
    )  # keys kept but not used

    def __post_init__(self) -> None:
        def check(ok: bool, what: str) -> None:
            if not ok:
                raise PortError(f"config: {what}")

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
        check(
            self.num_hidden_layers * self.n_routed_experts <= 1 << 18,
            f"num_hidden_layers {self.num_hidden_layers} times n_routed_experts {self.n_routed_experts} are "
            f"more than {1 << 18} experts",
        )

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """Scale of the attention scores; it stays this value after the low-rank absorb (D is not R
        + Dr)."""
        factor = self.rope_scaling.softmax_mscale if self.rope_scaling else 1.0
        return float(self.qk_head_dim**-0.5) * factor

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
        values = read_json(file)
        if not isinstance(values, dict):
            raise PortError(f"{file}: holds a {type(values).__name__}, not an object")
        try:
            made = cls.from_dict(values)
        except PortError as error:
            raise PortError(f"{file}: {error}") from error
        if made.extra and multiprocessing.parent_process() is None:  # once, not on every rank
            warnings.warn(
                f"{file}: not known, and not used: {', '.join(sorted(made.extra))}", stacklevel=2
            )
        return made

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DeepseekV3Config:
        """From the values of a config.json. `extra` keeps the keys that are not known."""
        own = {f.name for f in dataclasses.fields(cls)} - {"extra", "fp8", "unconverted"}
        found, unknown = keywords(values, own)
        scaling = found.pop("rope_scaling", None)
        if scaling is not None:
            scaling = RopeScaling(**scaling)
        return cls(**found, rope_scaling=scaling, extra={k: values[k] for k in unknown})

    def to_dict(self) -> dict[str, Any]:
        """The published form of config.json (the names DeepSeek's own file uses)."""
        skip = ("extra", "fp8", "unconverted", "rope_scaling")
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
        if isinstance(self.eos_token_id, tuple):
            ids = list(self.eos_token_id)
            values["eos_token_id"] = ids[0] if len(ids) == 1 else ids
        if self.rope_scaling:
            yarn = {k: v for k, v in dataclasses.asdict(self.rope_scaling).items() if v is not None}
            values["rope_scaling"] = {"type": "yarn", **yarn}
            if yarn["truncate"]:  # the default, which the published file does not name
                del values["rope_scaling"]["truncate"]
        if self.fp8:
            values["quantization_config"] = {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": list(FP8_BLOCK),
            }
            if self.unconverted:
                values["quantization_config"]["modules_to_not_convert"] = list(self.unconverted)
        return values

    def replace(self, **changes: Any) -> DeepseekV3Config:
        return dataclasses.replace(self, **changes)

    @classmethod
    def preset(cls, name: str) -> DeepseekV3Config:
        """One of PRESETS: `tiny` (the embedded model), `small`, `w1`, `w2`, `l`, `v3-671b`."""
        if name not in PRESETS:
            raise PortError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
        return PRESETS[name]


def _preset(sizes: dict[str, Any]) -> DeepseekV3Config:
    return DeepseekV3Config(**{**sizes, "rope_scaling": RopeScaling(**sizes["rope_scaling"])})


PRESETS: dict[str, DeepseekV3Config] = {name: _preset(sizes) for name, sizes in SIZES.items()}

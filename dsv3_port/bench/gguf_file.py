"""One of our checkpoints as a GGUF file of the architecture `deepseek2`, which llama.cpp runs.

The `gguf` package writes the file and names its keys and tensors. What llama.cpp makes of them was
read in the source that the pinned llama-cpp-python brings: src/models/deepseek2.cpp,
src/llama-context.cpp (YaRN), src/llama-graph.cpp (routing).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..config import DeepseekV3Config
from ..errors import PortError
from ..plan import PortPlan
from ..weights.checkpoint import Checkpoint
from ..weights.layout import kv_b_to_w_k, kv_b_to_w_v, source_shapes, targets
from ..weights.load import by_source, check_sources

INSTALL = "pip install 'dsv3-port[bench-peers]'"
ARCHITECTURE = "deepseek2"
LITE = (
    26,
    27,
)  # layers that llama.cpp takes for a model without q_lora_rank, whatever the file says
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
Read = Callable[[str], Tensor]  # a published name -> its values


@dataclass(frozen=True)
class Entry:
    """A tensor of the file. shape: as torch has it; GGUF lists it from its fastest dimension.
    make: its values, from those of published tensors."""

    name: str
    shape: tuple[int, ...]
    float32: bool
    make: Callable[[Read], Tensor]


def gguf_package() -> Any:
    """The `gguf` package. PortError where it isn't installed."""
    try:
        import gguf
    except ImportError as error:
        raise PortError(f"the package gguf is not installed: {INSTALL}") from error
    return gguf


def check_config(config: DeepseekV3Config) -> None:
    """PortError for what llama.cpp's deepseek2 cannot compute as this configuration says."""
    yarn = config.rope_scaling
    said = ""
    if not config.n_shared_experts:
        said = "has no shared expert, and llama.cpp always adds one"
    elif config.num_hidden_layers in LITE and config.q_lora_rank is not None:
        said = f"has {config.num_hidden_layers} layers, which llama.cpp reads without q_lora_rank"
    elif yarn is not None and not yarn.truncate:
        said = "has rope_scaling.truncate off, and llama.cpp always rounds YaRN's range"
    elif yarn is not None and yarn.factor == 1 and yarn.cos_sin_scale != 1:
        said = "scales cos and sin at a YaRN factor of 1, which no key of the file can say"
    if said:
        raise PortError(
            f"llama.cpp cannot run this model: config.json {said}; take another --profile"
        )


def yarn_keys(config: DeepseekV3Config) -> tuple[float, float]:
    """(A, L): `rope.scaling.attn_factor`, and ten times `rope.scaling.yarn_log_multiplier`.

    With l = 0.1 ln(factor), llama.cpp multiplies cos and sin by A, or by A (1 + l) where L is 0, and
    the scores by the square of that times (1 + L l). Ours are c and s squared, so A and L follow.
    """
    yarn = config.rope_scaling
    if yarn is None or yarn.factor == 1:
        return 1.0, 0.0
    log = 0.1 * math.log(yarn.factor)
    turned, scores = yarn.cos_sin_scale, math.sqrt(yarn.softmax_mscale)
    if abs(scores - turned) < 1e-9:
        return turned / (1 + log), 0.0
    return turned, (scores / turned - 1) / log


def _rope(writer: Any, config: DeepseekV3Config, gguf: Any) -> None:
    yarn = config.rope_scaling
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if yarn is None or yarn.factor == 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        return
    attention, log = yarn_keys(config)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(yarn.factor)
    writer.add_rope_scaling_orig_ctx_len(yarn.original_max_position_embeddings)
    fast, slow = yarn.rotations
    writer.add_rope_scaling_yarn_beta_fast(fast)
    writer.add_rope_scaling_yarn_beta_slow(slow)
    writer.add_rope_scaling_yarn_log_mul(0.1 * log)
    if attention != 1:
        writer.add_rope_scaling_attn_factors(attention)


def _experts(writer: Any, config: DeepseekV3Config, gguf: Any) -> None:
    # all groups are as good as none, and llama.cpp wants fewer used than there are
    grouped = config.topk_group < config.n_group
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_group_count(config.n_group if grouped else 1)
    writer.add_expert_group_used_count(config.topk_group if grouped else 1)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)


def _metadata(writer: Any, config: DeepseekV3Config, gguf: Any, dtype: torch.dtype) -> None:
    half = dtype == torch.bfloat16
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if half else gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")  # ids in, logits out
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count(config.num_attention_heads)
    # MLA after the absorb is one key head, the latent beside the rotary part
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(config.q_lora_rank or 0)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    _experts(writer, config, gguf)
    _rope(writer, config, gguf)


def to_pairs(x: Tensor, heads: int, width: int) -> Tensor:
    """Rows of a projection: in each of `heads` blocks the last `width` rows from the half layout
    (x0, x2, … | x1, x3, …) into pairs, which is all that llama.cpp turns for this architecture."""
    blocks = x.unflatten(0, (heads, -1))
    kept, turned = blocks[:, :-width], blocks[:, -width:]
    pairs = turned.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return torch.cat((kept, pairs), 1).flatten(0, 1)


def entries(config: DeepseekV3Config) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the published checkpoint."""
    gguf = gguf_package()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, config.num_hidden_layers)

    def entry(key: str, shape: tuple[int, ...], make: Callable[[Read], Tensor]) -> Entry:
        # the package knows the bias of the gate as a bias, not as a parameter of that name
        known = key.replace("e_score_correction_bias", "e_score_correction.bias")
        name = names.get_name(known, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise PortError(f"this gguf has no name for {key}: use the pinned version ({INSTALL})")
        # llama.cpp multiplies and adds these in float32 only
        plain = len(shape) == 1 or name.endswith(("_norm.weight", "ffn_gate_inp.weight"))
        return Entry(name, shape, plain, make)

    for key, shape in source_shapes(config).items():
        if expert := _EXPERT.fullmatch(key):
            at, number, kind = expert.groups()
            if number == "0":
                merged = f"{at}.{kind}_proj.weight"
                every = [f"{at}.{e}.{kind}_proj.weight" for e in range(config.n_routed_experts)]
                yield entry(merged, (len(every), *shape), partial(_stacked, every))
        elif key.endswith(".kv_b_proj.weight"):
            nope, value = config.qk_nope_head_dim, config.v_head_dim
            heads, rank = config.num_attention_heads, config.kv_lora_rank
            for part, cut, size in (
                ("k_b_proj", kv_b_to_w_k, (heads, rank, nope)),
                ("v_b_proj", kv_b_to_w_v, (heads, value, rank)),
            ):
                make = partial(_split, key, partial(cut, nope=nope, value=value))
                yield entry(key.replace("kv_b_proj", part), size, make)
        else:
            yield entry(key, shape, partial(_turned, key, config))


def _stacked(keys: list[str], read: Read) -> Tensor:
    return torch.stack([read(key) for key in keys])


def _split(key: str, cut: Callable[[Tensor], Tensor], read: Read) -> Tensor:
    """[N, Dn, R] -> [N, R, Dn], [N, R, Dv] -> [N, Dv, R]: the inner width of the product last."""
    return cut(read(key)).transpose(1, 2).contiguous()


def _turned(key: str, config: DeepseekV3Config, read: Read) -> Tensor:
    """As published, but for rotary rows that are not pairs yet."""
    value = read(key)
    if config.rope_interleave:
        return value
    if key.endswith((".q_b_proj.weight", ".q_proj.weight")):
        return to_pairs(value, config.num_attention_heads, config.qk_rope_head_dim)
    if key.endswith(".kv_a_proj_with_mqa.weight"):
        return to_pairs(value, 1, config.qk_rope_head_dim)
    return value


def write_gguf(folder: str | Path, file: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """The checkpoint in `folder` as one GGUF file: matrices in `dtype` (float32 or bfloat16), norms
    and the gate in float32; tensor by tensor, so that memory holds one of them. MTP layers and the
    tokenizer stay out.

    Raises PortError where gguf isn't installed, for another dtype, for what llama.cpp cannot
    compute, and for a folder that is no checkpoint or a file that cannot be written.
    """
    gguf, file = gguf_package(), Path(file)
    if dtype not in (torch.float32, torch.bfloat16):
        raise PortError(f"llama.cpp is measured in float32 and bfloat16, not in {dtype}")
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    check_config(config)
    wanted = list(targets(config, PortPlan.upstream()))
    check_sources(checkpoint, by_source(wanted))
    # what our model of this dtype holds: the gate in float32, and all else rounded first
    held = {piece.source: t.dtype(dtype) for t in wanted for piece in t.pieces}
    new = file.with_name(f".{file.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(new, ARCHITECTURE)
    _metadata(writer, config, gguf, dtype)
    try:
        _write(writer, list(entries(config)), lambda key: checkpoint.read(key, held[key]), dtype)
        os.replace(new, file)
    except OSError as error:
        raise PortError(f"{file}: cannot be written: {error.strerror or error}") from error
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            new.unlink()
    return file


def _write(writer: Any, found: list[Entry], read: Read, dtype: torch.dtype) -> None:
    types = gguf_package().GGMLQuantizationType
    for e in found:
        half = dtype == torch.bfloat16 and not e.float32
        size = math.prod(e.shape) * (2 if half else 4)
        kind = types.BF16 if half else types.F32
        writer.add_tensor_info(e.name, e.shape, numpy.dtype(numpy.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for e in found:
        value = e.make(read).to(torch.float32 if e.float32 else dtype).contiguous()
        writer.write_tensor_data(value.view(torch.uint8).numpy())
    writer.close()

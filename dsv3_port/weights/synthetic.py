"""Checkpoints with random weights in the published form, of any size: made on demand, cached, never
committed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock
from platformdirs import user_cache_dir
from torch import Tensor
from tqdm import tqdm

from ..config import DeepseekV3Config
from ..errors import PortError
from .checkpoint import INDEX, SCALE
from .fp8 import FP8, scale_shape, stored_as_fp8
from .layout import source_shapes
from .write import write_checkpoint, write_stored

VERSION = 2  # of the recipe: another number, another cache entry


def published_tensors(
    config: DeepseekV3Config,
) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    """(name, shape, dtype beside FP8) of every tensor of a published checkpoint, MTP layers
    included."""

    def kind(name: str) -> torch.dtype:
        return torch.float32 if name.endswith(".e_score_correction_bias") else torch.bfloat16

    for name, shape in source_shapes(config).items():
        yield name, shape, kind(name)
    hidden, vocab = config.hidden_size, config.vocab_size
    # an MTP layer is an MoE layer with its own norms, projection and copies of embedding and head
    # (report, section 2.2)
    block = source_shapes(
        config.replace(num_hidden_layers=1, first_k_dense_replace=0, num_nextn_predict_layers=0)
    )
    for extra in range(config.num_nextn_predict_layers):
        at = f"model.layers.{config.num_hidden_layers + extra}"
        for name, shape in block.items():
            if name.startswith("model.layers.0."):
                yield name.replace("model.layers.0", at, 1), shape, kind(name)
        for name, shape in (
            ("embed_tokens.weight", (vocab, hidden)),
            ("enorm.weight", (hidden,)),
            ("hnorm.weight", (hidden,)),
            ("eh_proj.weight", (hidden, 2 * hidden)),
            ("shared_head.norm.weight", (hidden,)),
            ("shared_head.head.weight", (vocab, hidden)),
        ):
            yield f"{at}.{name}", shape, torch.bfloat16


def _random(config: DeepseekV3Config, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Values that keep activations near 1: matrices 1/sqrt(inputs), norms near 1, spread gate,
    small biases."""
    generator = torch.Generator().manual_seed(seed)
    for name, shape, _ in tqdm(
        list(published_tensors(config)),
        desc="random weights",
        unit="tensor",
        delay=2,
        leave=False,
        disable=None,
    ):
        values = torch.randn(shape, generator=generator)
        if name.endswith(".e_score_correction_bias"):
            values *= 0.05
        elif len(shape) == 1:
            values = 1 + 0.1 * values
        elif "embed_tokens" not in name.split("."):
            values *= 1 / math.sqrt(shape[-1])
        yield name, values


def synthetic_checkpoint(
    profile: str | DeepseekV3Config,
    *,
    seed: int = 0,
    fp8: bool = True,
    cache_dir: str | Path | None = None,
) -> Path:
    """Folder of a random-weight checkpoint of a preset or config; the same arguments give the same
    folder and bytes."""
    config = DeepseekV3Config.preset(profile) if isinstance(profile, str) else profile
    if isinstance(profile, str) and profile == "v3-671b":
        raise PortError(
            "a random checkpoint of v3-671b would take 700 GB; use one layer (single_layer_config)"
        )
    name = profile if isinstance(profile, str) else "custom"
    key = json.dumps([config.to_dict(), seed, fp8, VERSION], sort_keys=True, default=str)
    root = Path(cache_dir) if cache_dir is not None else Path(user_cache_dir("dsv3-port"))
    folder = root / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{folder.name}.lock"):  # several notebooks may start at once
            if not (folder / INDEX).is_file():
                write_checkpoint(folder, config, _random(config, seed), fp8=fp8)
    except OSError as error:
        raise PortError(
            f"{folder}: a random checkpoint cannot be written: {error.strerror or error}"
        ) from error
    return folder


def single_layer_config(kind: str, ranks: int = 1) -> DeepseekV3Config:
    """One layer of the 671B model, "dense" or "moe", as one of `ranks` ranks holds it: heads and
    widths divided."""
    full = DeepseekV3Config.preset("v3-671b")
    if kind not in ("dense", "moe"):
        raise PortError(f"a layer is 'dense' or 'moe', not {kind!r}")
    for what in ("num_attention_heads", "intermediate_size", "moe_intermediate_size"):
        if getattr(full, what) % ranks:
            raise PortError(f"{what} = {getattr(full, what)} cannot be cut over {ranks} ranks")
    return full.replace(
        num_hidden_layers=1,
        first_k_dense_replace=int(kind == "dense"),
        num_nextn_predict_layers=0,
        num_attention_heads=full.num_attention_heads // ranks,
        vocab_size=4096,
        intermediate_size=full.intermediate_size // ranks,
        moe_intermediate_size=full.moe_intermediate_size // ranks,
    )


def real_size_config(experts: int = 64) -> DeepseekV3Config:
    """One MoE layer with DeepSeek-V3's own widths (7168 hidden, 2048 an expert): 44 MB of FP8 an
    expert."""
    if experts < 2 or experts & (experts - 1):
        raise PortError(f"experts must be a power of two, 2 or more, not {experts}")
    groups = min(8, experts // 2)
    return DeepseekV3Config.preset("v3-671b").replace(
        num_hidden_layers=1,
        first_k_dense_replace=0,
        num_nextn_predict_layers=0,
        n_routed_experts=experts,
        n_group=groups,
        topk_group=min(4, groups),
        num_experts_per_tok=min(8, experts // 2),
        vocab_size=1024,
    )


def random_codes_checkpoint(
    path: str | Path,
    config: DeepseekV3Config,
    *,
    seed: int = 0,
    fp8: bool = True,
    shard_bytes: int = 4 << 30,
) -> Path:
    """A published-form checkpoint as large as `config` says, made at the disk's speed: random codes
    and bits, which no model could use, in place of numbers that are drawn and quantised. For the
    splitter's benchmark and tests."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randint(0, 256, (64 << 20,), generator=generator, dtype=torch.uint8)
    pool.bitwise_and_(0xBE)  # neither NaN nor infinite, as e4m3 codes and as the bytes of bfloat16
    at = 0

    def taken(nbytes: int) -> Tensor:
        nonlocal at
        at = (at + 4096 * 37) % (len(pool) // 2)
        turns = -(-nbytes // (len(pool) // 2))
        return pool[at : at + len(pool) // 2].repeat(turns)[:nbytes]

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, shape, dtype in published_tensors(config):
            if fp8 and stored_as_fp8(name):
                yield name, taken(math.prod(shape)).view(FP8).view(shape)
                yield (
                    name + SCALE,
                    torch.rand(scale_shape(*shape), generator=generator) * 1e-4 + 1e-8,
                )
            else:
                yield name, taken(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)

    return write_stored(path, config.replace(fp8=fp8), tensors(), shard_bytes)

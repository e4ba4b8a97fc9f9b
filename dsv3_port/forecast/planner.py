"""Forecasts from config.json alone: does the model fit a card, and how many bytes must a decode
step read.

Sizes come from the table that also cuts and loads the weights (weights/layout.py), so a forecast
cannot disagree with what a rank really holds. The multi-token-prediction layer is not part of the
model and not counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..config import DeepseekV3Config
from ..errors import PortError
from ..model.paged_cache import Paging
from ..parallel import SINGLE, TensorParallel
from ..plan import PortPlan
from ..weights.layout import Target, targets

GIB = 2**30
# bytes a value; the 8-bit forms hold their scales besides and leave embedding, head and norms in
# bfloat16
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int8": 1}
_EIGHT_BIT = ("attention", "dense", "experts", "shared")


@dataclass(frozen=True)
class Forecast:
    """What one rank of `world_size` holds. `weights_bytes` by component; both KV forms, whichever
    the plan uses."""

    world_size: int
    dtype: str
    weights_bytes: dict[str, int]
    kv_latent_bytes: int
    kv_expanded_bytes: int
    total_bytes: int  # weights and the KV cache of the plan's attention
    fits: bool
    reason: str

    @property
    def weights_total(self) -> int:
        return sum(self.weights_bytes.values())


def _value_bytes(dtype: str) -> int:
    if dtype not in DTYPES:
        raise PortError(f"dtype {dtype!r} is not in the forecast; use {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _target_bytes(target: Target, dtype: str) -> int:
    numel, width = math.prod(target.shape), _value_bytes(dtype)
    if target.int8:
        return numel
    if target.keep_float32:
        return 4 * numel
    if width > 1:
        return width * numel
    if target.component not in _EIGHT_BIT:
        return 2 * numel
    rows, columns = numel // target.shape[-1], target.shape[-1]
    scales = (
        rows * math.ceil(columns / 128) / 128 if dtype == "float8_e4m3fn" else rows
    )  # block of 128x128, or a row
    return numel + 4 * math.ceil(scales)


@lru_cache(maxsize=256)
def rank_targets(
    config: DeepseekV3Config, plan: PortPlan, world_size: int
) -> tuple[tuple[Target, int], ...]:
    """Parameters of rank 0 of `world_size`, and how many layers have one like it: the first dense and the
    first MoE layer stand for all of their kind. All ranks hold the same sizes."""
    parallel = SINGLE if world_size == 1 else TensorParallel(0, world_size)
    kinds = [config.is_moe(layer) for layer in range(config.num_hidden_layers)]
    first = {kinds.index(kind): kinds.count(kind) for kind in set(kinds)}
    like = {f"model.layers.{layer}.": count for layer, count in first.items()}
    return tuple(
        (target, next((n for at, n in like.items() if target.name.startswith(at)), 1))
        for target in targets(config, plan.plus("tensor_parallel"), parallel, first)
    )


def weight_bytes(
    config: DeepseekV3Config, plan: PortPlan, world_size: int, dtype: str
) -> dict[str, int]:
    """Component -> bytes on one rank: embedding, attention, dense, gate, experts, shared, norm,
    head."""
    sizes: Counter[str] = Counter()
    for target, layers in rank_targets(config, plan, world_size):
        sizes[target.component] += layers * _target_bytes(target, dtype)
    return dict(sizes)


def total_params(config: DeepseekV3Config) -> int:
    """All parameters of the model without MTP: 671.0 billion for the published config."""
    return sum(n * math.prod(t.shape) for t, n in rank_targets(config, PortPlan.upstream(), 1))


def active_params(config: DeepseekV3Config) -> int:
    """Parameters that one token is multiplied with: K of E experts, and of the embedding none (one
    row is copied)."""
    active = 0
    for target, layers in rank_targets(config, PortPlan.upstream(), 1):
        numel = layers * math.prod(target.shape)
        if target.component == "experts":
            active += numel * config.num_experts_per_tok // config.n_routed_experts
        elif target.component != "embedding":
            active += numel
    return active


def kv_bytes_per_token(
    config: DeepseekV3Config, plan: PortPlan, dtype: str = "bfloat16", world_size: int = 1
) -> int:
    """Cache bytes of one position in all layers on one rank.

    The latent row R + Dr is shared by all heads, so that every rank keeps it whole; expanded keys
    and values are cut. kv_cache_dtype 'int8': R of one byte, Dr as they are, and one scale a layer in
    all, which is not counted.
    """
    width = max(
        2, _value_bytes(dtype)
    )  # an 8-bit cache is a form of its own, not implied by 8-bit weights
    if plan.attention == "low_rank":
        latent = 1 if plan.kv_cache_dtype == "int8" else width
        row_bytes = config.kv_lora_rank * latent + config.qk_rope_head_dim * width
        return config.num_hidden_layers * row_bytes
    else:
        heads = TensorParallel(0, world_size).share(
            config.num_attention_heads, "num_attention_heads"
        )
        row = heads * (config.qk_head_dim + config.v_head_dim)
    return config.num_hidden_layers * row * width


def forecast(
    config: DeepseekV3Config,
    world_sizes: Sequence[int] = (8, 16, 32, 64),
    hbm_gib: float = 64.0,
    dtypes: Sequence[str] = ("bfloat16",),
    batch: int = 1,
    seq_len: int = 4096,
    plan: PortPlan | None = None,
    reserve: float = 0.1,
) -> list[Forecast]:
    """Memory per card for each world size and dtype, with a KV cache for `batch` sequences of
    `seq_len` positions.

    A share `reserve` of `hbm_gib` stays free for activations, workspaces and communication buffers.
    """
    if hbm_gib <= 0 or not 0 <= reserve < 1 or batch < 1 or seq_len < 1:
        raise PortError(
            "forecast: hbm_gib, batch and seq_len must be positive and reserve a share below 1"
        )
    plan = plan or PortPlan.full()
    if plan.cache == "paged":  # whole blocks
        block = Paging().block_size
        seq_len = -(-seq_len // block) * block
    return [
        _forecast(config, plan, world, dtype, hbm_gib, batch * seq_len, reserve)
        for dtype in dtypes
        for world in world_sizes
    ]


def _forecast(
    config: DeepseekV3Config,
    plan: PortPlan,
    world: int,
    dtype: str,
    hbm_gib: float,
    positions: int,
    reserve: float,
) -> Forecast:
    _value_bytes(dtype)
    try:
        weights = weight_bytes(config, plan, world, dtype)
        latent, expanded = (
            positions * kv_bytes_per_token(config, either, dtype, world)
            for form in ("low_rank", "expanded")
            for either in [plan if plan.attention == form else PortPlan(attention=form)]
        )
    except PortError as error:
        divide = world_sizes(config)
        reason = str(error) if world in divide else cannot_cut(world, divide)
        return Forecast(world, dtype, {}, 0, 0, 0, False, reason)
    total = sum(weights.values()) + (latent if plan.attention == "low_rank" else expanded)
    usable = hbm_gib * (1 - reserve)
    fits = total <= usable * GIB
    reason = f"{total / GIB:.1f} of {usable:.1f} GiB"
    if not fits:
        reason = f"needs {total / GIB:.1f} GiB, {usable:.1f} are usable ({reserve:.0%} of {hbm_gib:g} kept free)"
    return Forecast(world, dtype, weights, latent, expanded, total, fits, reason)


def cannot_cut(world: int, divide: Sequence[int]) -> str:
    """What to say of a number of ranks that does not divide the model; `divide`: those that do."""
    return (
        f"the model cannot be cut over {world} ranks; it can over {', '.join(map(str, divide))} "
        "(heads, widths and vocabulary must all divide)"
    )


def world_sizes(config: DeepseekV3Config) -> list[int]:
    """Every number of ranks over which heads, widths and vocabulary can be cut."""
    c = config
    widths = [c.vocab_size, c.num_attention_heads]
    widths += [c.intermediate_size] if c.first_k_dense_replace else []
    widths += [c.moe_intermediate_size] if c.first_k_dense_replace < c.num_hidden_layers else []
    most = math.gcd(*widths)
    return [w for w in range(1, most + 1) if most % w == 0]


def smallest_world(
    config: DeepseekV3Config,
    hbm_gib: float,
    dtype: str = "bfloat16",
    batch: int = 1,
    seq_len: int = 4096,
    plan: PortPlan | None = None,
    reserve: float = 0.1,
) -> int | None:
    """The fewest cards that hold the model and its cache, or None where no number that divides it
    does."""
    for world in world_sizes(config):
        if forecast(config, (world,), hbm_gib, (dtype,), batch, seq_len, plan, reserve)[0].fits:
            return world
    return None


def decode_bytes(
    config: DeepseekV3Config,
    plan: PortPlan,
    dtype: str = "bfloat16",
    batch: int = 1,
    context: int = 4096,
) -> dict[str, int]:
    """Bytes that one decode step must read at least, on one rank without a cut: weights by
    component, and `kv_cache`.

    Of the experts those count that `batch` tokens choose on average under even routing: E (1 - (1 -
    K/E)^B). Divided by a memory bandwidth it is the time that no kernel can beat.
    """
    sizes = weight_bytes(config, plan, 1, dtype)
    experts, top = config.n_routed_experts, config.num_experts_per_tok
    met = experts * (1 - (1 - top / experts) ** batch)
    sizes["experts"] = round(sizes.get("experts", 0) * met / experts)
    sizes["embedding"] = round(sizes["embedding"] * batch / config.vocab_size)  # one row a token
    sizes["kv_cache"] = batch * context * kv_bytes_per_token(config, plan, dtype)
    return sizes

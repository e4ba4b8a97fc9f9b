"""From a checkpoint folder to a model, and from a model to its twin under another plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..config import DeepseekV3Config
from ..errors import PortError
from ..model.c8 import set_kv_scales, share_kv_scales
from ..model.decoder import DeepseekV3, build
from ..model.weight_format import cast_weights
from ..ops.providers import provider
from ..parallel import SINGLE, TensorParallel
from ..plan import PortPlan
from ..weights.checkpoint import Checkpoint
from ..weights.kv_scales import read_kv_scales
from ..weights.layout import targets
from ..weights.load import Cut, Pack, load_weights
from .device import pick_device, pick_dtype
from .generation_config import GenerationConfig
from .graph import compile_steps
from .settings import environment


def load_model(
    path: str | Path,
    plan: PortPlan | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    parallel: TensorParallel = SINGLE,
    progress: bool = False,
    gmm: str | None = None,
    cut: Cut | None = None,
    pack: Pack | None = None,
    generation: GenerationConfig | None = None,
) -> DeepseekV3:
    """Read a checkpoint folder into the model of `plan` (default: the full port); dtype defaults to
    float32 on cpu and bfloat16 elsewhere. A published checkpoint is cut on the way for `parallel`;
    a folder that `dsv3-port shard` wrote must have been written for the same world size and forms.
    plan.graph other than eager compiles the step. `gmm` names who multiplies the experts on an NPU
    (ops/providers.py); None: the setting GMM_PROVIDER. `cut` and `pack` (weights/load.py) cut and
    merge a published checkpoint in place of the layout. `generation` replaces what the folder's
    generation_config.json says of the tokens that end a text (model.config.eos_token_ids). The scales
    of an int8 cache are read from the folder's kv_cache_scales.safetensors (engine/calibrate.py).
    """
    from ..weights.sharding import is_sharded, load_shard

    plan = plan or PortPlan.full()
    generation = generation or GenerationConfig.from_pretrained(path)
    where = pick_device(device)
    name = gmm or environment("GMM_PROVIDER") or "auto"
    multiply = provider(name if where.type == "npu" else "auto")
    chosen = pick_dtype(dtype, torch.float32 if where.type == "cpu" else torch.bfloat16)
    scales = read_kv_scales(path) if plan.kv_cache_dtype == "int8" else None
    if is_sharded(path):
        if cut is not None or pack is not None:
            raise PortError(f"{path}: already cut; `cut` and `pack` need a published checkpoint")
        model = load_shard(path, plan, parallel, where, chosen, multiply)
    else:
        checkpoint = Checkpoint.open(path)
        model = build(checkpoint.config, plan, parallel, where, chosen, multiply)
        load_weights(model, checkpoint, progress, cut, pack)
    generation.check_vocabulary(model.config.vocab_size)
    if generation.eos_token_ids:
        model.config = model.config.replace(eos_token_id=generation.eos_token_ids)
    if scales is not None:
        set_kv_scales(model, scales)
    return compile_steps(cast_weights(model), plan.graph)


def with_plan(model: DeepseekV3, plan: PortPlan, **sizes: Any) -> DeepseekV3:
    """The same weights, the very same memory, under another plan; PortError where that plan lays
    them out otherwise.

    sizes: of the config, where no weight depends on them. Only cache, rope, norm, lm_head,
    group_mask and the options of attention and routing change no weight. The scales of an int8 cache go
    with it, where the model has them.
    """
    config = model.config.replace(**sizes)
    if plan.weight_format != model.plan.weight_format:
        raise PortError(
            f"these plans do not share weights (weight_format {plan.weight_format!r} and "
            f"{model.plan.weight_format!r}): load the second one with load_model"
        )

    def layout(c: DeepseekV3Config, p: PortPlan) -> set[tuple[str, tuple[int, ...]]]:
        return {(t.name, t.shape) for t in targets(c, p, model.parallel)}

    if odd_ones := layout(config, plan) ^ layout(model.config, model.plan):
        odd = min(name for name, _ in odd_ones)
        raise PortError(
            f"these plans do not share weights ({odd} is in one of them only): load the second one with "
            "load_model"
        )
    twin = build(config, plan, model.parallel, model.device, model.dtype, model.gmm)
    twin.load_state_dict(model.state_dict(), assign=True)
    share_kv_scales(model, twin)
    twin.paging = model.paging
    return twin

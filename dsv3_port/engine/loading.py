"""From a checkpoint folder to a model."""

from __future__ import annotations

from pathlib import Path

import torch

from ..model.decoder import DeepseekV3, build
from ..ops.providers import provider
from ..parallel import SINGLE, TensorParallel
from ..plan import PortPlan
from ..weights.checkpoint import Checkpoint
from ..weights.load import load_weights
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
    generation: GenerationConfig | None = None,
) -> DeepseekV3:
    """Read a checkpoint folder into the model of `plan` (default: the full port); dtype defaults to
    float32 on cpu and bfloat16 elsewhere. A published checkpoint is cut on the way for `parallel`;
    a folder that `dsv3-port shard` wrote must have been written for the same world size and forms.
    plan.graph other than eager compiles the step. `gmm` names who multiplies the experts on an NPU
    (ops/providers.py); None: the setting GMM_PROVIDER. `generation` replaces what the folder's
    generation_config.json says of the tokens that end a text (model.config.eos_token_ids).
    """
    from ..weights.sharding import is_sharded, load_shard

    plan = plan or PortPlan.full()
    generation = generation or GenerationConfig.from_pretrained(path)
    where = pick_device(device)
    name = gmm or environment("GMM_PROVIDER") or "auto"
    multiply = provider(name if where.type == "npu" else "auto")
    chosen = pick_dtype(dtype, torch.float32 if where.type == "cpu" else torch.bfloat16)
    if is_sharded(path):
        model = load_shard(path, plan, parallel, where, chosen, multiply)
    else:
        checkpoint = Checkpoint.open(path)
        model = build(checkpoint.config, plan, parallel, where, chosen, multiply)
        load_weights(model, checkpoint, progress)
    generation.check_vocabulary(model.config.vocab_size)
    if generation.eos_token_ids:
        model.config = model.config.replace(eos_token_id=generation.eos_token_ids)
    return compile_steps(model, plan.graph)

"""The models of a bench: plans of the ladder, checkpoints by profile, and variants that share one set
of weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from ..config import PRESETS, DeepseekV3Config
from ..engine.loading import load_model, with_plan
from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..ops import cuda
from ..plan import PortPlan
from ..steps import STEPS
from ..weights.layout import targets
from ..weights.synthetic import synthetic_checkpoint
from .records import FAIR, UPSTREAM


def ladder_plans(*, compiled: bool = False, alone: bool = False) -> dict[str, PortPlan]:
    """Name -> plan: upstream, the fair baseline, every cumulative rung, each step alone, the
    compiled full port.

    A rung is named after its step; with one rank `tensor_parallel` changes nothing and shows the
    noise.
    """
    steps = [s for s in STEPS if s.field != "graph"]
    plans = {UPSTREAM: PortPlan.upstream(), FAIR: PortPlan.upstream().replace(cache="fixed")}
    plans |= {s.id: PortPlan.upto(s.id) for s in steps}
    if alone:
        plans |= {f"only {s.id}": PortPlan.with_steps(s.id) for s in steps}
    if compiled:
        plans["ge_graph"] = PortPlan.full().plus("ge_graph")
    return plans


def captures(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether prefill and decode can both be captured there."""
    if device.type == "cuda":
        return not cuda.device_limit(device.index or 0, dtype)
    return device.type == "npu"


def checkpoint_of(profile: str | Path) -> tuple[str, Path]:
    """A preset's name -> its random-weight checkpoint (made once, cached); a folder stands for
    itself."""
    if isinstance(profile, Path) or profile not in PRESETS:
        folder = Path(profile)
        if not folder.is_dir():
            raise PortError(
                f"profile {str(profile)!r}: neither a checkpoint folder nor one of {', '.join(PRESETS)}"
            )
        return folder.name, folder
    return profile, synthetic_checkpoint(profile)


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses: an accelerator's own, or the machine's."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    free, _ = torch.get_device_module(device.type).mem_get_info(device)
    return int(free)


def check_memory(
    config: DeepseekV3Config, plans: Mapping[str, PortPlan], dtype: torch.dtype
) -> None:
    """PortError where the models of these plans would not fit into the machine's memory."""
    layouts = {(p.attention, p.experts, p.mlp) for p in plans.values()}
    weights = (
        sum(torch.Size(t.shape).numel() for t in targets(config, PortPlan.full())) * dtype.itemsize
    )
    need, there = weights * len(layouts), free_bytes(torch.device("cpu"))
    if need > there:
        raise PortError(
            f"the ladder would hold about {need / 2**30:.0f} GiB of weights ({len(layouts)} layouts), this "
            f"machine has {there / 2**30:.0f} GiB free: give fewer plans or a smaller profile"
        )


def load_variants(
    path: Path, plans: Mapping[str, PortPlan], device: str, dtype: torch.dtype
) -> dict[str, DeepseekV3]:
    """One eager model per plan. Equal parameters of different plans share their memory, as nothing
    writes to them."""
    seen: dict[tuple[str, tuple[int, ...]], list[Tensor]] = {}
    read: dict[Any, DeepseekV3] = {}  # layout of the weights -> a model that has it
    models = {}
    config = DeepseekV3Config.from_pretrained(path)
    bar: dict[str, Any] = {"desc": "load", "unit": "model", "leave": False, "delay": 2.0}
    for name, plan in tqdm(plans.items(), mininterval=0.5, file=sys.stdout, **bar):
        eager = plan.replace(graph="eager")
        layout = tuple((t.name, t.shape) for t in targets(config, eager))
        if layout in read:
            models[name] = with_plan(read[layout], eager)
            continue
        model = load_model(path, eager, device, dtype)
        for key, parameter in model.named_parameters():
            known = seen.setdefault((key, tuple(parameter.shape)), [])
            same = next((t for t in known if torch.equal(t, parameter)), None)
            if same is None:
                known.append(parameter.data)
            else:
                parameter.data = same
        models[name] = read[layout] = model
    return models

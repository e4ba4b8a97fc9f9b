"""What the ranks of test_nz.py do."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from dsv3_port import PortPlan, load_model
from dsv3_port.engine.graph import compile_steps
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.model.weight_format import matrices
from dsv3_port.ops import storage_format
from dsv3_port.parallel import TensorParallel

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
MODES = ("eager", "captured", "ge", "aclgraph")


def run(model: DeepseekV3) -> list[list[float]]:
    """Logits of a prompt and three cached steps."""
    ids = torch.randint(3, 900, (2, 9), generator=torch.Generator().manual_seed(4)).npu()
    cache = model.new_cache(2, 12)
    logits = [model(ids[:, :6].contiguous(), cache=cache)]
    logits += [model(ids[:, at : at + 1].contiguous(), cache=cache) for at in range(6, 9)]
    return [x.flatten().tolist() for x in logits]


def formats(parallel: TensorParallel) -> dict[str, bool]:
    """Mode -> whether this rank's logits are the same bits with matrices in ND and in FRACTAL_NZ."""
    os.environ["DSV3_GE_ENGINE"] = "interpret"
    found = {}
    plan = PortPlan.full().replace(quant="w8a8")
    for mode in MODES:
        both = []
        for kind in ("nd", "nz"):
            torch._dynamo.reset()
            model = load_model(TINY, plan.replace(weight_format=kind), "npu", "bfloat16", parallel)
            lying = {storage_format(getattr(m, name)) for m, name, _ in matrices(model)}
            assert (lying == {29}) == (kind == "nz"), lying
            both.append(run(compile_steps(model, mode)))
        found[mode] = both[0] == both[1]
    return found

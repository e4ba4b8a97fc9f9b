"""What the ranks of test_nz.py do."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from dsv3_port import PortPlan, load_model
from dsv3_port.count.captured import first_layers
from dsv3_port.engine.graph import compile_steps
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.model.weight_format import matrices
from dsv3_port.ops import storage_format
from dsv3_port.parallel import TensorParallel

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
MODES = ("eager", "captured", "ge", "npugraph_ex")


def run(model: DeepseekV3) -> list[list[float]]:
    """Logits of a prompt and three cached steps."""
    ids = torch.randint(3, 900, (2, 9), generator=torch.Generator().manual_seed(4)).npu()
    cache = model.new_cache(2, 12)
    logits = [model(ids[:, :6].contiguous(), cache=cache)]
    logits += [model(ids[:, at : at + 1].contiguous(), cache=cache) for at in range(6, 9)]
    return [x.flatten().tolist() for x in logits]


def logits(
    mode: str, kind: str, parallel: TensorParallel, folder: str | Path = TINY
) -> list[list[float]]:
    torch._dynamo.reset()
    plan = PortPlan.full().replace(quant="w8a8", weight_format=kind)
    model = first_layers(load_model(folder, plan, "npu", "bfloat16", parallel), 2)
    lying = {storage_format(getattr(m, name)) for m, name, _ in matrices(model)}
    assert (lying == {29}) == (kind == "nz"), lying
    return run(compile_steps(model, mode))


def formats(parallel: TensorParallel, folders: dict[str, str]) -> dict[str, bool]:
    """Mode, or format of a folder that was split to int8 -> whether this rank's logits with matrices in
    FRACTAL_NZ are the bits of ND straight from FP8, eager."""
    os.environ["DSV3_GE_ENGINE"] = "interpret"
    want = logits("eager", "nd", parallel)
    found = {mode: logits(mode, "nz", parallel) == want for mode in MODES}
    return found | {n: logits("eager", "nz", parallel, f) == want for n, f in folders.items()}

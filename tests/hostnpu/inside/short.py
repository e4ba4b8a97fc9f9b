"""The embedded model cut to two layers, one dense and one MoE: everything that a graph is made of, half the time to
compile it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dsv3_port import PortPlan, load_model
from dsv3_port.model.decoder import DeepseekV3

TINY = Path(__file__).parents[3] / "data" / "tiny-dsv3"


def load(plan: PortPlan, device: str = "npu", dtype: str = "float32", layers: int = 2) -> DeepseekV3:
    """`load_model` of the embedded checkpoint, eager, with its first layers only."""
    model = load_model(TINY, plan.replace(graph="eager"), device, dtype)
    model.model.layers = model.model.layers[:layers]
    model.config = dataclasses.replace(model.config, num_hidden_layers=layers)
    return model

"""The embedded model cut to two layers, a dense one and an MoE one: half the time to compile."""

from __future__ import annotations

from pathlib import Path

from dsv3_port import PortPlan
from dsv3_port.ge import census as npu_graphs
from dsv3_port.model.decoder import DeepseekV3

TINY = Path(__file__).parents[3] / "data" / "tiny-dsv3"


def load(plan: PortPlan, device: str = "npu", dtype: str = "float32") -> DeepseekV3:
    return npu_graphs.load(TINY, plan, device, dtype, layers=2)

"""Composed numbers that pages may name: `~31 ms [~8/1/8]` is ranks/batch/step, bfloat16, 4,096
cached, 910B4-1."""

from __future__ import annotations

from functools import lru_cache

from dsv3_port.config import DeepseekV3Config
from dsv3_port.forecast.compose import ladder
from dsv3_port.forecast.traced import Traced
from dsv3_port.plots.npu_ladder import traced


@lru_cache(maxsize=1)
def derived() -> tuple[Traced, ...]:
    config = DeepseekV3Config.preset("v3-671b")
    return tuple(t for s in ladder(config, world_size=32, batch=1) for t in traced(s))

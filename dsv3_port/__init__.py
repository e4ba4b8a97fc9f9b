"""dsv3_port: DeepSeek-V3 inference ported to Ascend NPUs, step by step, each step separately
switchable."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import PortError
from .plan import PortPlan
from .steps import STEPS
from .version import __version__

if TYPE_CHECKING:
    from .config import DeepseekV3Config
    from .engine.generate import generate
    from .engine.loading import load_model
    from .engine.tokenizer import load_tokenizer
    from .model.decoder import build

__all__ = [
    "STEPS",
    "DeepseekV3Config",
    "PortError",
    "PortPlan",
    "__version__",
    "build",
    "generate",
    "load_model",
    "load_tokenizer",
]

_LAZY = {
    "DeepseekV3Config": "config",
    "build": "model.decoder",
    "load_model": "engine.loading",
    "generate": "engine.generate",
    "load_tokenizer": "engine.tokenizer",
}


def __getattr__(name: str) -> Any:
    """torch and pydantic are imported only when a model is asked for, so that `dsv3-port --help` and
    `import dsv3_port.hostnpu` are quick."""
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

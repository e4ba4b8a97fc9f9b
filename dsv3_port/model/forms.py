"""Every form by the word of PortPlan that chooses it, upstream's first: a table to read.

What is built differs in more than one place for `tensor_parallel` (context.share), and
the options that are no steps are read where they act: experts.py, attention.py, gate.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .attention import ATTENTION
from .experts import EXPERTS
from .gate import GROUP_MASK
from .linear import LM_HEAD
from .mlp import MLP
from .norm import NORM
from .paged_cache import CACHE
from .rope import ROPE

FORMS: dict[str, Mapping[str, Callable[..., Any]]] = {
    "attention": ATTENTION,
    "experts": EXPERTS,
    "group_mask": GROUP_MASK,
    "mlp": MLP,
    "cache": CACHE,
    "rope": ROPE,
    "norm": NORM,
    "lm_head": LM_HEAD,
}

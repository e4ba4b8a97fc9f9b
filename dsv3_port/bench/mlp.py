"""One MLP by itself, split and merged, at any width: random weights, the same in both forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..config import DeepseekV3Config
from ..errors import PortError
from ..model.context import BuildContext
from ..model.mlp import MergedMLP, SplitMLP
from ..plan import PortPlan
from ..steps import TOLERANCE
from .measure import measure
from .records import Results


def mlp_pair(
    hidden: int, width: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> tuple[SplitMLP, MergedMLP]:
    """Both forms with equal random weights; gate and up of the split form are the halves of the
    merged weight."""
    context = BuildContext(
        DeepseekV3Config.preset("v3-671b").replace(hidden_size=hidden),
        PortPlan.upstream(),
        device=device,
        dtype=dtype,
    )
    split, merged = SplitMLP(context, width), MergedMLP(context, width)
    generator = torch.Generator().manual_seed(seed)

    def fill(rows: int, columns: int) -> Tensor:
        values = torch.randn(rows, columns, generator=generator) / math.sqrt(columns)
        return values.to(device, dtype)

    merged.merge_up_gate_proj.weight.data = fill(2 * width, hidden)
    split.gate_proj.weight.data, split.up_proj.weight.data = (
        merged.merge_up_gate_proj.weight.data.chunk(2)
    )
    merged.down_proj.weight.data = split.down_proj.weight.data = fill(hidden, width)
    return split, merged


def measure_mlp(
    hidden: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    *,
    tokens: Sequence[int] = (1, 8, 128),
    rounds: int = 5,
    device: str = "cpu",
    label: str = "",
    seed: int = 0,
) -> Results:
    """Time both forms of one MLP (H = hidden, I = width) for several numbers of tokens, after
    comparing their results.

    Records are called "split, float32" and so on and have the phase "MLP".
    """
    kind = str(dtype).removeprefix("torch.")
    split, merged = mlp_pair(hidden, width, dtype, device, seed)
    results = Results()
    for count in tokens:
        x = torch.randn(count, hidden, generator=torch.Generator().manual_seed(seed)).to(
            device, dtype
        )
        calls: dict[str, Callable[[], Tensor]] = {
            f"{name}, {kind}": partial(module, x)
            for name, module in (("split", split), ("merged", merged))
        }
        a, b = (call() for call in calls.values())
        if float((a - b).abs().max()) > TOLERANCE[kind] * float(a.abs().max()):
            raise PortError(
                f"split and merged MLP differ at {count} tokens in {kind}; nothing was timed"
            )
        results += measure(
            calls,
            rounds=rounds,
            device=device,
            label=label or "MLP alone",
            meta={"phase": "MLP", "dtype": kind, "tokens": count},
        )
    return results

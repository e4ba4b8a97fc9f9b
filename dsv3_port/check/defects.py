"""Wrong code on purpose: defects of the old sample that computed something, kept to be looked at
and tested as wrong.

Source: Ascend/torchair, npu_tuned_model/llm/deepseek_v3, commits 6c8a54eb (2025-04-28) and b8d9a33f
(2025-06-18), and its split_weight.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sliced_rows(weight: Tensor, rank: int, width: int) -> Tensor:
    """A slice instead of `narrow`: past the end of the rows it becomes shorter, or empty, and
    nothing complains."""
    return weight[rank * width : (rank + 1) * width]


def sliced_mlp(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, width: int, ranks: int = 2
) -> tuple[Tensor, list[int]]:
    """y [T, H] of an MLP whose `ranks` parts are sliced `width` wide, added up, and the rows of gate
    that each rank holds: right if width is I / ranks."""
    y, rows = x.new_zeros(len(x), down.shape[0]), []
    for rank in range(ranks):
        g, u, d = (sliced_rows(w, rank, width) for w in (gate, up, down.T))
        y += (torch.nn.functional.silu(x @ g.T) * (x @ u.T)) @ d
        rows.append(len(g))
    return y, rows


def gathered_without_move(flat: Tensor, shape: torch.Size) -> Tensor:
    """flat [W*B, S, V/W] as the collective leaves it -> [B, S, V] by a reshape alone: right for B =
    1 only."""
    return flat.reshape(*shape[:-1], -1)

"""What one operator of a GE graph moves and computes: the records that a roofline forecast is made
of.

Counts follow from the operator's definition. Caches on the chip and fusion by GE are not part of
them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# no kernel behind them: inputs, constants, outputs, and changes of shape alone
NO_KERNEL = frozenset(
    ("Data", "RefData", "Const", "NetOutput", "Reshape", "Squeeze", "Unsqueeze", "Shape")
)
MATMULS = frozenset(("MatMul", "BatchMatMul", "GroupedMatmul"))


def kernels_of(counts: Mapping[str, int]) -> dict[str, int]:
    """{operator type: how many} without NO_KERNEL: what is left are kernels to run."""
    return {kind: n for kind, n in counts.items() if kind not in NO_KERNEL}


@dataclass(frozen=True)
class Record:
    """One executed operator. shapes and dtypes: of its outputs; nbytes: read and written; flops: of
    its products."""

    name: str
    type: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    nbytes: int
    flops: int


def record(
    name: str,
    kind: str,
    attributes: dict[str, Any],
    names: list[str],
    fed: list[Tensor | None],
    results: list[Tensor],
) -> Record:
    return Record(
        name,
        kind,
        tuple(tuple(t.shape) for t in results),
        tuple(t.dtype for t in results),
        nbytes(kind, names, fed, results),
        flops(kind, attributes, fed, results),
    )


def nbytes(kind: str, names: list[str], fed: list[Tensor | None], results: list[Tensor]) -> int:
    """Bytes read and written. Only the rows that are touched count where an index picks them."""
    if kind in NO_KERNEL:
        return 0
    named = {name: t for name, t in zip(names, fed, strict=True) if t is not None}
    written = sum(t.nbytes for t in results)
    if kind in (
        "Scatter",
        "ScatterElements",
        "Assign",
    ):  # the rest of what they write into stays as it is
        return sum(t.nbytes for t in list(named.values())[1:]) + list(named.values())[-1].nbytes
    if kind in ("GatherV2", "Gather", "GatherElements", "IndexByTensor"):
        return 2 * written + sum(t.nbytes for t in list(named.values())[1:])
    if kind == "GroupedMatmul":
        used = _groups_used(named["group_list"], named["weight0"].shape[0])
        return (
            named["x0"].nbytes
            + written
            + named["weight0"].nbytes * used // named["weight0"].shape[0]
        )
    return written + sum(t.nbytes for t in named.values())


def _groups_used(cumulative: Tensor, groups: int) -> int:
    """Experts that have rows, from a cumulative group_list (the kind the model uses); else all of
    them."""
    if cumulative.dim() != 1 or len(cumulative) != groups:
        return groups
    return int((torch.diff(cumulative, prepend=cumulative.new_zeros(1)) > 0).sum())


def flops(
    kind: str, attributes: dict[str, Any], fed: list[Tensor | None], results: list[Tensor]
) -> int:
    """Two for each product of a matmul; other operators count as 0, their cost is memory."""
    if kind not in MATMULS or fed[0] is None:
        return 0
    turned = attributes.get("transpose_x1") or attributes.get("adj_x1")
    return 2 * math.prod(results[0].shape) * fed[0].shape[-2 if turned else -1]

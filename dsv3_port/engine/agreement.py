"""Ranks tell each other what they were given and what they chose; all end together where it differs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch.distributed as dist

from ..errors import PortError
from ..parallel import TensorParallel
from .report import RankMemory


def inputs_agree(parallel: TensorParallel, mine: dict[str, Any]) -> None:
    """PortError, on every rank alike, where ranks that were started one by one were given different
    things to do."""
    if parallel.world_size == 1:
        return
    found = _gathered(parallel, mine)
    odd = [
        (rank, name)
        for rank, its in enumerate(found)
        for name in its
        if its[name] != found[0][name]
    ]
    if odd:
        rank, name = odd[0]
        raise PortError(
            f"rank {rank} was started with other input than rank 0: {name} is {str(found[rank][name])[:80]!r} "
            f"there and {str(found[0][name])[:80]!r} on rank 0; give every rank the same"
        )


def tokens_agree(
    parallel: TensorParallel, mine: RankMemory, tokens: list[list[int]]
) -> list[RankMemory]:
    """Every rank's memory, by rank; PortError where ranks chose different tokens."""
    if parallel.world_size == 1:
        return [mine]
    said = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
    found = _gathered(parallel, (mine, said))
    same_tokens([text for _, text in found])
    return [memory for memory, _ in found]


def same_tokens(digests: list[str]) -> None:
    """What each rank generated, by rank, as digests."""
    odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if odd:
        raise PortError(
            f"ranks {odd} chose other tokens than rank 0: do all have the same prompts, files and "
            "settings?"
        )


def _gathered(parallel: TensorParallel, mine: Any) -> list[Any]:
    """Every rank's object, by rank."""
    # objects travel over gloo whatever carries the tensors
    group = (
        parallel.group
        if dist.get_backend(parallel.group) == "gloo"
        else dist.new_group(backend="gloo")
    )
    found: list[Any] = [None] * parallel.world_size
    dist.all_gather_object(found, mine, group=group)
    return found

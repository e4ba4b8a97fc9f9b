"""A paged cache against attention by its definition, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .. import ops
from ..model.paged_attention import LATENT, ROTARY
from ..model.paged_cache import Slots, slot_mapping

SCALE = 192**-0.5  # DeepSeek-V3's query


def paged_error(
    slots: Slots = slot_mapping,
    lengths: Sequence[int] = (37, 16, 5),
    block_size: int = 16,
    heads: int = 4,
    seed: int = 0,
) -> float:
    """Write left-padded sequences of these lengths where `slots` says, into blocks in any order with
    NaN in all that nothing is written to, and attend to each over its block table: the largest
    difference from softmax(scale q k^T) v over the rows themselves, in float64; NaN where a row was
    read that none of them wrote."""
    generator = torch.Generator().manual_seed(seed)
    batch, longest = len(lengths), max(lengths)
    most = -(-longest // block_size)
    table = (torch.randperm(batch * most, generator=generator) + 1).view(batch, most).int()
    rows = torch.randn(batch, longest, LATENT + ROTARY, dtype=torch.float64, generator=generator)
    query = torch.randn(batch, 1, heads, LATENT + ROTARY, dtype=torch.float64, generator=generator)
    positions = torch.arange(longest) - (longest - torch.tensor(lengths)).unsqueeze(1)
    blocks = [
        torch.full((batch * most + 1, block_size, 1, width), math.nan, dtype=torch.float64)
        for width in (LATENT, ROTARY)
    ]
    parts = [x.contiguous() for x in rows.flatten(0, 1).unsqueeze(1).split((LATENT, ROTARY), -1)]
    ops.write_slots(parts, blocks, slots(table, positions, block_size))
    q_latent, q_rope = (x.contiguous() for x in query.split((LATENT, ROTARY), -1))
    key, key_rope = (b.flatten(2) for b in blocks)
    got = ops.paged_attention(
        q_latent, q_rope, key, key_rope, table, list(lengths), None, SCALE
    )  # [heads, B, 1, 512]
    worst = []
    for row, length in enumerate(lengths):
        kept = rows[row, longest - length :]
        weights = (SCALE * query[row, 0] @ kept.T).softmax(-1)
        worst.append((got[:, row, 0] - weights @ kept[:, :LATENT]).abs().max())
    return float(torch.stack(worst).max())  # of torch: max of a NaN is NaN

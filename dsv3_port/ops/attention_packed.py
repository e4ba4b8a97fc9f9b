"""Sequences of different lengths behind one another, without padding: layouts TND and NTD."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .attention_call import Call
from .checks import bad

MOST_SEQUENCES = 4096
# without rope inputs (query and key, value); with them all three are 128, or query's is 512
HEAD_SIZES = {
    "TND": ((64, 64), (128, 128), (192, 128), (192, 192)),
    "NTD": ((128, 128), (192, 128)),
}


def check_ends(call: Call, name: str, ends: Sequence[int] | None, total: int | None) -> None:
    """Cumulative ends of the sequences, within `total` rows where that is known."""
    if isinstance(ends, Tensor):
        raise bad(call.op, name, ends, "a list of int (host numbers)")
    wanted = f"the cumulative ends of the sequences, with layout {call.layout}"
    if not ends or len(ends) > MOST_SEQUENCES:
        raise bad(call.op, name, ends, f"{wanted}: 1 to {MOST_SEQUENCES} numbers")
    if any(b < a for a, b in pairwise([0, *ends])) or (total is not None and ends[-1] > total):
        raise bad(call.op, name, list(ends), f"{wanted}, ascending in 0..{total}")


def check_packed(call: Call, source: str, width: int, value_width: int) -> None:
    """Lengths, head sizes and masks of a packed query; keys lie beside it or behind a table."""
    rows = call.query.shape[source.index("T")]
    check_ends(call, call.words["q_lengths"], call.q_lengths, rows)
    if call.block_table is None:
        rows = call.key.shape[source.index("T")]
        check_ends(call, call.words["kv_lengths"], call.kv_lengths, rows)
        if len(call.kv_lengths or ()) != len(call.q_lengths or ()):
            wanted = f"as many as {call.words['q_lengths']} has, {len(call.q_lengths or ())}"
            raise bad(call.op, call.words["kv_lengths"], list(call.kv_lengths or ()), wanted)
    if call.query_rope is None:
        if (width, value_width) not in HEAD_SIZES[source]:
            sizes = " or ".join(f"{d} and {v}" for d, v in HEAD_SIZES[source])
            raise bad(call.op, "query", call.query.shape, f"of head sizes (query, value) {sizes}")
    elif width == 128 and value_width != 128:
        raise bad(call.op, "value", call.value.shape, "of head size 128, as the query")
    modes = (0, 3, 4) if width == 512 else (0, 2, 3, 4)
    if call.sparse_mode not in modes or (call.sparse_mode == 0 and call.atten_mask is not None):
        words = ", ".join(str(m) for m in modes)
        raise bad(
            call.op,
            "sparse_mode",
            call.sparse_mode,
            f"one of {words}, 0 without a mask, with layout {call.layout}",
        )


def lengths(ends: Sequence[int]) -> list[int]:
    return [int(b) - int(a) for a, b in pairwise([0, *ends])]


def _rows(ends: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """(row of the packed tensor [B, S], whether it is one [B, S])."""
    sizes = torch.tensor(lengths(ends), device=device)[:, None]
    last = torch.tensor([int(e) for e in ends], device=device)[:, None]
    step = torch.arange(max(lengths(ends)), device=device)
    return last - sizes + step, step < sizes


def pad(x: Tensor, source: str, ends: Sequence[int]) -> Tensor:
    """[T, N, D] or [N, T, D] -> [B, N, S, D], 0 behind each sequence."""
    if source == "NTD":
        x = x.transpose(0, 1)
    rows, there = _rows(ends, x.device)
    if not rows.numel() or not x.shape[0]:
        return x.new_zeros(rows.shape[0], x.shape[1], rows.shape[1], x.shape[2])
    padded = x[rows.clamp(max=x.shape[0] - 1)]
    return padded.masked_fill(~there[:, :, None, None], 0).transpose(1, 2)


def unpad(x: Tensor, target: str, ends: Sequence[int], total: int) -> Tensor:
    """[B, N, S, D] -> [total, N, D] or [N, total, D]; rows behind the last sequence are 0."""
    rows, there = _rows(ends, x.device)
    out = x.new_zeros(total, x.shape[1], x.shape[3])
    out[rows[there]] = x.transpose(1, 2)[there]
    return out.transpose(0, 1).contiguous() if target == "NTD" else out

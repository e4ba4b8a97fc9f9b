"""Which keys a query of the fused attention does not see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .attention_call import Call
from .checks import bad, dtype_of

COMPRESSED_MASK = 2048  # sparse_mode 2 and 3 take one 2048 x 2048 mask, whatever the lengths


def check_mask(op: str, mask: Tensor | None, sparse_mode: int) -> None:
    if mask is None:
        if sparse_mode in (1, 2, 3, 4):
            raise bad(op, "atten_mask", None, f"given with sparse_mode {sparse_mode}")
        return
    dtype_of(op, "atten_mask", mask, torch.bool, torch.int8, torch.uint8)
    if sparse_mode in (2, 3, 4) and mask.shape[-2:] != torch.Size(
        (COMPRESSED_MASK, COMPRESSED_MASK)
    ):
        raise bad(
            op,
            "atten_mask",
            mask.shape,
            f"[2048, 2048], True strictly above the diagonal, with sparse_mode {sparse_mode}",
        )


def check_mask_shape(
    op: str, mask: Tensor, batch: int, queries: int, keys: int, two_dims: bool
) -> None:
    lead = ((1,), (batch,), (batch, 1), (1, 1))
    wanted = [(*dims, queries, keys) for dims in lead]
    if two_dims:
        wanted.append((batch, keys) if queries == 1 else (queries, keys))
    if tuple(mask.shape) not in wanted:
        raise bad(op, "atten_mask", mask.shape, " or ".join(str(list(w)) for w in wanted))


def check_lengths(
    op: str, name: str, lengths: Sequence[int] | None, batch: int, limit: int
) -> None:
    if lengths is None:
        return
    if isinstance(lengths, Tensor):
        raise bad(op, name, lengths, "a list of int (host numbers)")
    if 1 < len(lengths) < batch or not all(0 <= n <= limit for n in lengths[:batch]) or not lengths:
        raise bad(
            op,
            name,
            list(lengths),
            f"{batch} lengths in 0..{limit}, one for each batch row, or one for all",
        )


def hidden(
    call: Call, row: Tensor, column: Tensor, q_len: Tensor, kv_len: Tensor, one_query: bool
) -> Tensor:
    """True where a key is masked out, broadcastable to [B, N, S, L]. row [S, 1], column [L]; lengths
    [B, 1, 1, 1] of the valid positions. one_query: the rules of one query without rope inputs, where
    sparse_mode and the band mean nothing."""
    mask, mode = call.atten_mask, call.sparse_mode
    result = _masked(mask, mode, row, column, kv_len - q_len, one_query)
    if mode in (0, 4) and mask is not None and not one_query:
        corner = row + (kv_len - q_len if mode == 4 else 0)
        result = result | (column > corner + call.next_tokens) | (column < corner - call.pre_tokens)
    return result


def _masked(
    mask: Tensor | None, mode: int, row: Tensor, column: Tensor, shift: Tensor, one_query: bool
) -> Tensor:
    """`shift` = valid keys minus valid queries."""
    if mode in (2, 3, 4):
        if one_query or mode == 4:  # the document: one query without rope inputs ignores the mode
            return torch.zeros_like(column, dtype=torch.bool)
        return column > row + (shift if mode == 3 else 0)
    if mask is None:
        return torch.zeros_like(column, dtype=torch.bool)
    mask = mask.bool()[..., : column.shape[0]]  # a paged cache's mask covers the whole table
    if mask.dim() == 2 and one_query:  # [B, L]: a row of keys for each sequence
        return mask[:, None, None]
    return mask[:, None] if mask.dim() == 3 else mask

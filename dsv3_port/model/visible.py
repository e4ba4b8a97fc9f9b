"""Which cached positions a query sees, and the masks that say so to an attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Visible = Callable[[Tensor, int, int, Tensor], Tensor]
COMPRESSED = (
    2048  # side of the one causal mask that fused attention takes for any length
)


def sees(query: Tensor, keys: int, pad: Tensor) -> Tensor:
    """Positions query [B, S] -> which of `keys` positions each sees, bool [B, S, L]."""
    key = torch.arange(keys, device=query.device)
    return (key <= query.unsqueeze(-1)) & (key >= pad.view(-1, 1, 1))


def visible_keys(slot: Tensor, new: int, keys: int, pad: Tensor) -> Tensor:
    """Which of `keys` positions each of `new` queries sees, the first of them at slot
    [B]: those up to its own, without the pad [B] left ones. bool [B, S, L]."""
    query = torch.arange(new, device=slot.device) + slot.unsqueeze(1)
    return sees(query, keys, pad)


def added(visible: Tensor) -> Tensor:
    """bool [B, S, L] -> what is added to the scores [B, 1, S, L], float32.

    The lowest number and not -inf: a padding query sees nothing, and its softmax must
    not be NaN."""
    return torch.where(visible, 0.0, torch.finfo(torch.float32).min).unsqueeze(1)


def compressed_causal(device: torch.device) -> Tensor:
    """[2048, 2048] bool, True is hidden: npu_fused_infer_attention_score's sparse_mode 3
    puts its corner at the last query and the last key."""
    at = torch.arange(COMPRESSED, device=device)
    return at >= (at + 1).unsqueeze(1)

"""What a call of the model is given, checked on the host before anything runs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PortError
from .cache import Cache


def left_padding(
    input_ids: Tensor, mask: Tensor | None, cache: Cache | None, first: bool
) -> Tensor:
    """Left padding of each row [B] int64; PortError where ids, mask and cache do not fit."""
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise PortError(
            f"input_ids must be [batch, sequence] with one token at least, not {list(input_ids.shape)}"
        )
    if cache is not None and cache.batch != input_ids.shape[0]:
        raise PortError(
            f"the cache was made for batch size {cache.batch}, input_ids has {input_ids.shape[0]}"
        )
    if mask is None:
        return torch.zeros(
            input_ids.shape[0], dtype=torch.int64, device=input_ids.device
        )
    if not first:
        raise PortError(
            "attention_mask belongs to the first call: the cache remembers the padding"
        )
    if mask.shape != input_ids.shape:
        raise PortError(
            f"attention_mask is {list(mask.shape)}, input_ids {list(input_ids.shape)}"
        )
    real = mask.to(torch.bool)
    if not bool(real[:, -1:].all() & (real[:, 1:] >= real[:, :-1]).all()):
        raise PortError(
            "attention_mask: padding must stand left of the tokens (padding_side='left'), "
            "and every row needs a token"
        )
    return (~real).sum(1)

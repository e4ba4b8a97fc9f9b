"""Mistakes on purpose: ways to make a model wrong that no operator reports, for the notebooks'
failure cells."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from .. import ops
from ..engine.loading import with_plan
from ..model.cache import Cache
from ..model.decoder import DeepseekV3
from ..model.experts import GroupedExperts
from ..model.mlp import MergedMLP


@contextlib.contextmanager
def row_major_row_idx() -> Iterator[None]:
    """Within it npu_moe_init_routing gets row_idx = arange(T*K).view(T, K) instead of its
    transpose, unchecked.

    This is what an NPU would compute: the operator takes any permutation, and values of a device
    tensor are not read by its check either.
    """

    def routed(
        x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        wrong = torch.arange(row_idx.numel(), dtype=torch.int32, device=x.device).view(
            row_idx.shape
        )
        return ops.OPERATORS["npu_moe_init_routing"].meaning(x, wrong, expert_idx, active_num)

    with mock.patch.object(ops, "npu_moe_init_routing", routed):
        yield


@contextlib.contextmanager
def up_before_gate(model: DeepseekV3) -> Iterator[None]:
    """Within it every merged weight of `model` stands as [up | gate]; npu_swiglu then takes SiLU of
    the wrong half."""
    weights = [m.merge_up_gate_proj.weight for m in model.modules() if isinstance(m, MergedMLP)]
    weights += [
        m.group_w1_w3 for m in model.modules() if isinstance(m, GroupedExperts) and m.merged
    ]
    right = [w.data for w in weights]
    for w in weights:
        w.data = w.data.roll(w.shape[-2] // 2, -2)
    try:
        yield
    finally:
        for w, data in zip(weights, right, strict=True):
            w.data = data


def refused_kept(model: DeepseekV3) -> DeepseekV3:
    """A twin with an MTP layer whose caches keep the position of a refused draft, and have room for
    it. Every later token is computed behind a word that nobody reads."""
    twin = with_plan(model, model.plan)
    make = twin.new_cache

    def new_cache(batch_size: int, max_length: int) -> Cache:
        cache = make(batch_size, 2 * max_length)
        retract = cache.retract

        def keeps_one(counts: list[int]) -> None:
            retract([n if n > 1 else 0 for n in counts])  # 1: a refused draft

        cache.retract = keeps_one  # type: ignore[method-assign]
        return cache

    twin.new_cache = new_cache  # type: ignore[method-assign,assignment]
    return twin

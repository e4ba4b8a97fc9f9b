"""npu_fusion_attention, its three versions and their gradients: the attention of training, which
scaled_dot_product_attention of torch_npu calls too.

Layouts BNSD, BSND, BSH, SBH, and TND with cumulative lengths. A mask hides where it is non-zero.
All arithmetic in float32, one cast. Source: operator documents of Ascend/op-plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..ops.checks import bad
from . import autograd, generators

OP = "npu_fusion_attention"
LAYOUTS = ("BNSD", "BSND", "BSH", "SBH", "TND")
WIDTH = 8  # softmax maxima and sums are stored eight times over
Hidden = Callable[[int, int, torch.device], Tensor | None]  # from S of query and key


def _bnsd(x: Tensor, layout: str, heads: int) -> Tensor:
    """As [B, N, S, D]; a TND tensor as one sequence."""
    if layout == "BNSD":
        return x
    if layout == "TND":
        return x.transpose(0, 1)[None]
    if layout == "BSND":
        return x.transpose(1, 2)
    x = x.unflatten(-1, (heads, -1))
    return x.transpose(1, 2) if layout == "BSH" else x.permute(1, 2, 0, 3)


def _from_bnsd(x: Tensor, layout: str) -> Tensor:
    if layout == "BNSD":
        return x
    if layout == "TND":
        return x[0].transpose(0, 1)
    if layout == "BSND":
        return x.transpose(1, 2)
    return (x.transpose(1, 2) if layout == "BSH" else x.permute(2, 0, 1, 3)).flatten(-2)


def _hidden(mask: Tensor | None, mode: int, before: int, after: int) -> Hidden:
    """Which keys each query may not see. before, after: pre_tokens and next_tokens."""

    def of(queries: int, keys: int, device: torch.device) -> Tensor | None:
        if mode == 0 and mask is None:
            return None
        row = torch.arange(queries, device=device)[:, None]
        distance = torch.arange(keys, device=device) - row  # of the key from the query
        if mode == 2:
            return distance > 0
        if mode == 3:
            return distance > keys - queries
        if mode == 4:
            shift = keys - queries
            return (distance > shift + after) | (distance < shift - before)
        assert mask is not None
        given = mask.bool()
        if mode == 0:
            given = given | (distance > after) | (distance < -before)
        return given

    return of


def _check(
    query: Tensor, key: Tensor, value: Tensor, heads: int, layout: str, mode: int, given: Any
) -> int:
    """Refuses what has no meaning here; returns the number of key heads."""
    if layout not in LAYOUTS:
        raise bad(OP, "input_layout", repr(layout), " or ".join(repr(n) for n in LAYOUTS))
    unknown = [
        n for n in ("padding_mask", "prefix", "sink", "dropout_mask") if given.get(n) is not None
    ]
    if unknown or given.get("softmax_layout") or given.get("pse_type", 1) not in (0, 1):
        what = unknown[0] if unknown else "softmax_layout, or pse_type 2 and 3,"
        raise NotImplementedError(f"npu::{OP}: {what} has no host kernel")
    if mode not in (0, 1, 2, 3, 4):
        raise NotImplementedError(f"npu::{OP}: sparse_mode {mode} has no host kernel; 0 to 4 have")
    if mode and given.get("atten_mask") is None:
        raise bad(OP, "atten_mask", None, f"given with sparse_mode {mode}")
    if len({query.dtype, key.dtype, value.dtype}) > 1:
        raise bad(OP, "key or value", key.dtype, f"{query.dtype}, the dtype of query")
    rank = {"BSH": 3, "SBH": 3, "TND": 3}.get(layout, 4)
    if any(t.dim() != rank for t in (query, key, value)):
        raise bad(OP, "query, key or value", query.shape, f"{layout}: {rank} dims")
    if rank == 3 and layout != "TND":
        width = query.shape[-1] // heads
        kv_heads = key.shape[-1] // width if query.shape[-1] % heads == 0 else 0
    else:
        axis = {"BNSD": 1, "BSND": 2, "TND": 1}[layout]
        kv_heads = key.shape[axis] if query.shape[axis] == heads else 0
    if kv_heads < 1 or heads % kv_heads:
        raise bad(
            OP, "head_num", heads, f"query's heads ({list(query.shape)}), a multiple of key's"
        )
    if layout == "TND" and (
        given.get("actual_seq_qlen") is None or given.get("actual_seq_kvlen") is None
    ):
        raise bad(
            OP, "actual_seq_qlen and actual_seq_kvlen", None, "given with layout TND (cumulative)"
        )
    return kv_heads


def _numbers(lengths: Any) -> list[int]:
    return [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]


class Attention:
    """One call: its meaning as a function of query, key, value and pse, to run and to differentiate."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, heads: int, layout: str, given: Any
    ) -> None:
        self.heads, self.layout, self.mode = heads, layout, given.get("sparse_mode", 0)
        self.kv_heads = _check(query, key, value, heads, layout, self.mode, given)
        self.scale = given.get("scale", given.get("scale_value", 1.0))
        before = given.get("pre_tockens", given.get("pre_tokens", 2**31 - 1))
        after = given.get("next_tockens", given.get("next_tokens", 2**31 - 1))
        self.hidden = _hidden(given.get("atten_mask"), self.mode, before, after)
        self.pse_first = given.get("pse_type", 1) == 1
        self.keep, self.seed = given.get("keep_prob", 1.0), 0
        self.lengths = (
            [_numbers(given[n]) for n in ("actual_seq_qlen", "actual_seq_kvlen")]
            if layout == "TND"
            else []
        )

    def _sequences(
        self, q: Tensor, k: Tensor, v: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """[B, N, S, D] each; with TND one sequence after the other."""
        if not self.lengths:
            yield q, k, v
            return
        for (a, b), (c, d) in zip(*(pairwise([0, *n]) for n in self.lengths), strict=True):
            yield q[:, :, a:b], k[:, :, c:d], v[:, :, c:d]

    def _one(
        self, q: Tensor, k: Tensor, v: Tensor, pse: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        score = q @ k.mT
        if pse is not None and self.pse_first:
            score = score + pse.float()
        score = score * self.scale
        if pse is not None and not self.pse_first:
            score = score + pse.float()
        hidden = self.hidden(q.shape[2], k.shape[2], q.device)
        if hidden is not None:
            score = score.masked_fill(hidden, -torch.inf)
        top = (
            score.amax(-1, keepdim=True)
            if k.shape[2]
            else score.new_full((*q.shape[:3], 1), -torch.inf)
        )
        power = (score - top.masked_fill(top == -torch.inf, 0)).exp()
        total = power.sum(-1, keepdim=True)
        weight = power / total.masked_fill(total == 0, 1)  # a row without any key gives 0
        if self.keep < 1:
            weight = weight * self._kept(weight) / self.keep
        return weight @ v, top, total

    def _kept(self, weight: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(weight.shape, generator=generator) < self.keep

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """query, key, value and possibly pse -> result in the layout, maxima and sums [B, N, S, 8]
        or [T, N, 8]."""
        counts = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = (
            _bnsd(t.float(), self.layout, n) for t, n in zip(inputs[:3], counts, strict=True)
        )
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        pse = inputs[3] if len(inputs) > 3 else None
        parts = [self._one(*s, pse) for s in self._sequences(q, k, v)]
        out, top, total = (torch.cat(p, 2) for p in zip(*parts, strict=True))
        out = _from_bnsd(out, self.layout).to(inputs[0].dtype).contiguous()
        spread = [t.expand(*t.shape[:3], WIDTH) for t in (top, total)]
        if self.layout == "TND":
            spread = [t[0].transpose(0, 1) for t in spread]
        return out, spread[0].contiguous(), spread[1].contiguous()


def _with_rope(query: Tensor, key: Tensor, given: Any) -> tuple[Tensor, Tensor]:
    if given.get("query_rope") is None:
        return query, key
    raise NotImplementedError(f"npu::{OP}_v2: query_rope and key_rope have no host kernel")


def _forward(
    query: Tensor, key: Tensor, value: Tensor, heads: int, layout: str, given: Any
) -> tuple[Any, ...]:
    query, key = _with_rope(query, key, given)
    attention = Attention(query, key, value, heads, layout, given)
    seed = 0
    if attention.keep < 1:
        seed = given.get("seed") or generators.next_seed(generators.of(torch.device("npu")))
        attention.seed = seed
    pse = given.get("pse")
    found = attention(query, key, value, *(() if pse is None else (pse,)))
    return (*found, query.new_empty(0), seed)


_POSITIONAL = (
    "pse padding_mask atten_mask scale keep_prob pre_tockens next_tockens inner_precise prefix actual_seq_qlen "
    "actual_seq_kvlen sparse_mode gen_mask_parallel sync softmax_layout sink dropout_mask seed offset"
).split()


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    *rest: Any,
    **given: Any,
) -> tuple[Any, ...]:
    """npu_fusion_attention and _v2: (out, softmax_max, softmax_sum, empty, seed, offset, numels)."""
    given = {**dict(zip(_POSITIONAL, rest, strict=False)), **given}
    *found, seed = _forward(query, key, value, head_num, input_layout, given)
    return (*found, seed, 0, found[1].numel() // WIDTH if seed else 0)


def forward_v3(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    *rest: Any,
    **given: Any,
) -> tuple[Any, ...]:
    """npu_fusion_attention_v3: seed and offset are tensors."""
    names = [n for n in _POSITIONAL if n not in ("dropout_mask", "seed", "offset")]
    names[8:11] = ["prefix", "actual_seq_qlen", "actual_seq_kvlen"]
    given = {**dict(zip(names, rest, strict=False)), **given}
    *found, seed = _forward(query, key, value, head_num, input_layout, given)
    return (*found, torch.tensor([seed]), torch.tensor([0]))


def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    **given: Any,
) -> tuple[Tensor, ...]:
    """Of all three versions: (dq, dk, dv, dpse or empty, dsink: empty). The forward is run again."""
    query, key = _with_rope(query, key, given)
    attention = Attention(query, key, value, head_num, input_layout, given)
    seed = given.get("seed")
    attention.seed = int(seed.flatten()[0]) if isinstance(seed, Tensor) else int(seed or 0)
    pse = given.get("pse")
    inputs = (query, key, value, *(() if pse is None else (pse,)))
    found = autograd.gradients(lambda *x: attention(*x)[0], inputs, dy)
    return (*found, *(() if pse is not None else (query.new_empty(0),)), key.new_empty(0).float())


def backward_v2(*args: Any, **given: Any) -> tuple[Tensor, ...]:
    """npu_fusion_attention_grad_v2 has gradients of the rope parts too: (dq, dk, dv, dpse, drope of
    query and key, dsink)."""
    dq, dk, dv, dpse, dsink = backward(*args, **given)
    return dq, dk, dv, dpse, dq.new_empty(0), dk.new_empty(0), dsink


NPU: dict[str, Callable[..., Any]] = {
    "npu_fusion_attention": forward,
    "npu_fusion_attention_v2": forward,
    "npu_fusion_attention_v3": forward_v3,
    "npu_fusion_attention_grad": backward,
    "npu_fusion_attention_grad_v2": backward_v2,
    "npu_fusion_attention_grad_v3": backward,
}
__all__: Sequence[str] = ("NPU", "Attention")

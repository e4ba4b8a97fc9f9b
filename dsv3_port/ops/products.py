"""Which form of a product runs on which device: the one place that asks. None of these products is an
NPU operator of its own. A form is in the table because it was measured to be the fastest on that
device, or because it is what the device's port would run; what is not in it is PyTorch's own.

| product | cpu | cuda | npu | why |
|---|---|---|---|---|
| linear | cpu.py | plain | plain | few rows on a CPU: sums or turned products, 1.2 to 4 times F.linear |
| head_matmul | cpu.py | plain | plain | one row compiled on a CPU: 1.3 to 2.1 times bmm |
| shared_scores | cpu.py | plain | plain | float32 compiled on a CPU: up to 1.3 times |
| decode_attention | plain | kernels, if the plan says "split" | plain | reads what is filled; no GPU has run it |
| attention | plain | plain | operator by operator | as an NPU's port runs it; torch's fused kernels elsewhere |
| grouped_matmul | cpu.py | cuda.py | operator | on cuda torch's grouped_mm, which does not ask the host |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from . import cpu, cuda, plain
from .split_attention import decode_attention_op

Form = Callable[..., Tensor]
LINEAR: dict[str, Form] = {"cpu": cpu.linear}
HEAD_MATMUL: dict[str, Form] = {"cpu": cpu.head_matmul}
SHARED_SCORES: dict[str, Form] = {"cpu": cpu.shared_scores}
ATTENTION: dict[str, Form] = {
    "npu": plain.plain_attention,
    "meta": plain.plain_attention,  # where shapes are counted: each product as itself
}
DECODE_ATTENTION: dict[str, Form] = {"cuda": decode_attention_op}
GROUPED_MATMUL: dict[str, Form] = {"cuda": cuda.grouped_matmul}


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in], weight [out, in] -> [..., out], contiguous for contiguous x; 16-bit products add
    up in float32."""
    return LINEAR.get(x.device.type, plain.linear)(x, weight)


def head_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Each head's own matrix: x [B, N, S, D], weight [N, D, R] -> [B, N, S, R]."""
    return HEAD_MATMUL.get(x.device.type, plain.head_matmul)(x, weight)


def shared_scores(q: Tensor, rows: Tensor) -> Tensor:
    """One key row for all heads: q [B, M, D], rows [B, L, D] -> [B, M, L]."""
    return SHARED_SCORES.get(q.device.type, plain.shared_scores)(q, rows)


def decode_attention(
    q: Tensor, rows: Tensor, pad: Tensor, slot: Tensor, scale: float, latent: int
) -> Tensor:
    """Attention of S positions, one or few, over the cached rows, one row for all heads, of which only
    the filled part counts.

    q [B, N, S, R + Dr]; rows [B, L, R + Dr], the cache's whole buffer; latent: R, the first numbers of
    a row are its value too -> [B, N, S, R]. Position s of sequence b sees the keys from pad[b] to slot[b]
    + s; pad, slot [B] int64 on the device, and the host reads neither. What a query gives that sees no
    key is finite and means nothing: 0 by the kernels. Keys that nobody sees must be finite but where
    the kernels run, which do not read them.
    """
    form = DECODE_ATTENTION.get(q.device.type)
    if form is not None:
        return form(q, rows, pad, slot, scale, latent)
    return plain.decode_attention(q, rows, pad, slot, scale, latent, shared_scores)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + mask) v. q [B, N, S, D], k [B, N, L, D], v [B, N, L, Dv], mask added to
    the scores."""
    return ATTENTION.get(q.device.type, plain.attention)(q, k, v, mask, scale)


def causal_attention(
    q: Sequence[Tensor], k: Sequence[Tensor], v: Tensor, pad: Tensor, scale: float
) -> Tensor:
    """`attention` of a prompt to itself, each position to those up to it, without a mask and without
    scores in memory; where `prompt_without_mask`.

    q, k: parts [B, N, S, D1], [B, N, S, D2], … of the queries and keys; v [B, N, S, Dv]; pad [B]: the
    first pad[b] keys of a row are hidden. What padding itself sees is finite and means nothing.
    """
    return plain.causal_attention(q, k, v, pad, scale)


def prompt_without_mask(device: str) -> bool:
    """Whether this kind of device has torch's fused kernels, and not an attention of its own."""
    return device not in ATTENTION


def grouped_matmul(x: Tensor, weight: Tensor | Sequence[Tensor], cumulative: Tensor) -> Tensor:
    """Rows of group g times weight[g]: x [M, K], weight [E, K, N], cumulative int64 [E] -> [M, N].

    Rows past cumulative[-1] become NaN (on cuda they may be anything). ValueError on a CPU if
    cumulative[-1] > M.
    """
    return GROUPED_MATMUL.get(x.device.type, cpu.grouped_matmul)(x, weight, cumulative)

"""Matrix products, embedding and LM head, whole and cut over ranks.

The cut follows Megatron-LM (arXiv 1909.08053, section 3): a column cut gives each rank
some of the outputs, a row cut some of the inputs, so that one all-reduce after the row
cut completes a block. `weight` is [out, in] as in nn.Linear.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from . import int8
from .context import BuildContext

Int8Linear = Callable[[Tensor, Tensor, Tensor], Tensor]


class Linear(nn.Module):
    """Upstream: the whole matrix on every rank. [..., in] -> [..., out]. With the plan's
    quant 'w8a8' it is int8, unless `keep`, and `weight` [in, out] with weight_format 'nz'."""

    def __init__(
        self, ctx: BuildContext, inputs: int, outputs: int, keep: bool = False
    ) -> None:
        super().__init__()
        self.weight = (ctx.empty if keep else ctx.matrix)(outputs, inputs)
        self.weight_scale = ctx.scale(outputs) if ctx.int8 and not keep else None
        self.int8_linear: Int8Linear = int8.linear
        self.nz = ctx.nz and not keep
        self.laid: Tensor | None = None  # [in, out] of the same memory: mla_prolog.py

    @property
    def codes(self) -> Tensor:
        """The int8 matrix [in, out], as the products take it."""
        if self.laid is not None:
            return self.laid
        return self.weight if self.nz else self.weight.t()

    def product(self, x: Tensor) -> Tensor:
        if self.weight_scale is None:
            return ops.linear(x, self.weight) if self.laid is None else x @ self.laid
        return self.int8_linear(x, self.codes, self.weight_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class ColumnParallelLinear(Linear):
    """Column cut: this rank's out/W outputs. [..., in] -> [..., out/W]; no
    communication."""

    def __init__(
        self, ctx: BuildContext, inputs: int, outputs: int, keep: bool = False
    ) -> None:
        super().__init__(ctx, inputs, ctx.share(outputs, "outputs"), keep)


class RowParallelLinear(Linear):
    """Row cut: this rank's in/W inputs. [..., in/W] -> [..., out], summed over ranks
    unless `reduce` is False."""

    def __init__(
        self, ctx: BuildContext, inputs: int, outputs: int, reduce: bool = True
    ) -> None:
        super().__init__(ctx, ctx.share(inputs, "inputs"), outputs)
        self.parallel = ctx.parallel
        self.reduce = reduce

    def forward(self, x: Tensor) -> Tensor:
        return self.reduced(self.product(x))

    def of_int8(self, codes: Tensor, scales: Tensor, like: Tensor) -> Tensor:
        """`forward` of inputs that are int8 [T, in/W] with scales [T] already; the result
        has the dtype and the leading dimensions of `like`."""
        assert self.weight_scale is not None
        y = int8.product(codes, scales, self.codes, self.weight_scale, like.dtype)
        return self.reduced(y.unflatten(0, like.shape[:-1]))

    def reduced(self, y: Tensor) -> Tensor:
        return self.parallel.all_reduce(y) if self.reduce else y


class VocabParallelEmbedding(nn.Module):
    """Token ids [B, S] -> [B, S, H]; cut over the vocabulary each rank looks up its own
    rows and the sum completes."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        self.parallel = ctx.parallel
        self.rows = ctx.share(ctx.config.vocab_size, "vocab_size")
        self.weight = ctx.empty(self.rows, ctx.config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        if self.parallel.world_size == 1:
            return F.embedding(ids, self.weight)
        local = ids - self.parallel.rank * self.rows
        mine = (local >= 0) & (local < self.rows)
        rows = F.embedding(torch.where(mine, local, 0), self.weight)
        return self.parallel.all_reduce(torch.where(mine.unsqueeze(-1), rows, 0.0))


class ParallelLMHead(nn.Module):
    """LM head [B, S, H] -> logits [B, S, V] in float32; cut over the vocabulary the
    shards are gathered."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        self.parallel = ctx.parallel
        self.weight = ctx.empty(
            ctx.share(ctx.config.vocab_size, "vocab_size"), ctx.config.hidden_size
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.parallel.all_gather_last(ops.linear(x, self.weight)).float()


def every_position(hidden: Tensor) -> Tensor:
    """Upstream: logits for all S positions. [B, S, H] -> [B, S, H]."""
    return hidden


def last_position(hidden: Tensor) -> Tensor:
    """Ported: generation reads the last position only. [B, S, H] -> [B, 1, H]."""
    return hidden[:, -1:]


LM_HEAD = {"all": every_position, "last": last_position}

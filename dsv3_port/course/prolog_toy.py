"""The small inputs of 16_one_launch's slot: a function with two results that also writes two caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..messages import tr
from .slots import Function
from .toys import Toy

EPS = 1e-3  # not the operator's default, so that forgetting it shows


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Small tokens, so that eps counts; caches hold rows of before; one token has no slot, and the slots
    are in no order."""
    t, h, n, d = (sizes[k] for k in ("T", "H", "N", "D"))
    q, r, rope, blocks, block = (sizes[k] for k in ("Rq", "R", "Dr", "blocks", "block"))

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    angle = 9 * torch.rand(t, rope // 2, generator=generator)
    sin, cos = (torch.cat((f(angle),) * 2, -1) for f in (torch.sin, torch.cos))
    slots = 1 + torch.randperm(blocks * block - 2, generator=generator)[:t]  # neither end
    slots[t // 2] = -1
    return {
        "token_x": 0.1 * some(t, h),
        "matrices": [
            some(h, q) / h**0.5,
            some(q, n * (d + rope)) / q**0.5,
            some(n, d, r) / d**0.5,
            some(h, r + rope) / h**0.5,
        ],
        "gammas": [1 + 0.3 * some(q), 1 + 0.3 * some(r)],
        "sin": sin,
        "cos": cos,
        "caches": [some(blocks, block, 1, width) for width in (r, rope)],
        "slots": slots,
        "eps": EPS,
    }


class Prolog(Toy):
    """Both queries and both caches in one row, with the queries' shapes behind them."""

    def outcome(self, function: Function, seed: int) -> tuple[Any, list[str]]:
        def whole(*given: Any) -> Any:
            found, caches = function(*given), given[5]
            if not _two(found):
                return found
            shapes = torch.tensor([n / 100 for part in found for n in (*part.shape, 0)])
            return torch.cat([part.flatten() for part in (*found, *caches, shapes)])

        return super().outcome(whole, seed)

    def first_place(self, got: tuple[Any, list[str]], want: tuple[Any, list[str]]) -> str:
        n, t, r, rope = (self.sizes[k] for k in ("N", "T", "R", "Dr"))
        if got[1]:
            return super().first_place(got, want)
        if not isinstance(got[0], Tensor) or got[0].shape != want[0].shape:
            said = tr(
                "mla_prolog returns two tensors, query [T, N, R] and query_rope [T, N, Dr], here {query} and "
                "{rope}; yours returned something else"
            )
            return said.format(query=[t, n, r], rope=[t, n, rope])
        rows = self.sizes["blocks"] * self.sizes["block"]
        parts = got[0].split([t * n * r, t * n * rope, rows * r, rows * rope, 8])
        due = want[0].split([len(p) for p in parts])
        names = "query", "query_rope", "caches[0]", "caches[1]", tr("the results' shapes")
        off = [name for name, a, b in zip(names, parts, due, strict=True) if not self.equal(a, b)]
        return tr("other numbers than due: {names}").format(names=", ".join(off))


def _two(found: Any) -> bool:
    pair = isinstance(found, (tuple, list)) and len(found) == 2
    return pair and all(isinstance(part, Tensor) and part.dim() == 3 for part in found)


PROLOG = Prolog(
    {"T": 5, "H": 23, "Rq": 11, "N": 3, "D": 7, "R": 13, "Dr": 6, "blocks": 3, "block": 4},
    inputs,
    ("T", "N", "R"),
)
